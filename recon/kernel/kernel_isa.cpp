// The rasteriser for one instruction set: project, sort, bin, composite, and what runs backwards through them.
//
// Image formation: EWA splatting (Zwicker et al. 2001) as in 3D Gaussian Splatting (Kerbl et al. 2023), with gsplat's
// constants. A tile is 32x32 px = 64 blocks of 4x4 px; each splat-tile pair carries a 64-bit mask of the blocks its
// alpha >= 1/255 ellipse meets, so that only those are evaluated. Every splat-tile pair owns one gradient slot and
// slots are summed in a fixed order: results do not depend on the number of threads.
//
// No standard-library templates here or in what is included: the linker would merge their instances across
// instruction sets.
#include <time.h>

#include "adam.h"
#include "backward.h"
#include "bin.h"
#include "composite.h"
#include "context.h"
#include "kernel.h"
#include "peak.h"
#include "photometric.h"
#include "pose.h"
#include "project.h"
#include "sort.h"

#define SPLATAD_JOIN2(a, b) a##b
#define SPLATAD_JOIN(a, b) SPLATAD_JOIN2(a, b)
#define SPLATAD_TEXT2(a) #a
#define SPLATAD_TEXT(a) SPLATAD_TEXT2(a)

namespace {

double now_ms() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
}

// Charges the time since the last call to a stage.
struct StageClock {
  Context& context;
  double last;
  explicit StageClock(Context& of) : context(of), last(now_ms()) {}
  void finish(Stage stage) {
    const double now = now_ms();
    context.stage_ms[stage] = now - last;
    last = now;
  }
};

int32_t forward(Context* context, const Runtime* runtime, const SplatInput* splats, const CameraInput* camera,
                const float* background, float* rgb, float* alpha, float* depth) {
  context->count = splats->count;
  context->tiles_x = (camera->width + kTile - 1) / kTile;
  context->tiles_y = (camera->height + kTile - 1) / kTile;
  if (context->tiles_x > 4096) return 2;
  const int chunks = chunks_of(splats->count);
  const size_t n = static_cast<size_t>(splats->count) + 1;
  if (!context->projected.reserve(n) || !context->shown.reserve(n) || !context->chunk_visible.reserve(chunks + 1) ||
      !context->slot_range.reserve(n) || !context->chunk_slot.reserve(chunks + 1) ||
      !context->keys.reserve(n) || !context->keys_other.reserve(n) || !context->order.reserve(n) ||
      !context->order_other.reserve(n))
    return 1;
  Call call{};
  call.context = context, call.splats = splats, call.camera = camera, call.background = background;
  call.out_rgb = rgb, call.out_alpha = alpha, call.out_depth = depth;
  camera_centre(*camera, call.camera_centre);
  StageClock clock(*context);
  runtime->parallel_for(chunks, project_task, &call);
  clock.finish(kProject);
  if (!sort_by_depth(*context, *runtime)) return 1;
  clock.finish(kSort);
  if (!bin_splats(call, *runtime)) return 1;
  clock.finish(kBin);
  runtime->parallel_for(context->tiles_x * context->tiles_y, composite_task, &call);
  clock.finish(kComposite);
  return 0;
}

int32_t composite_extra(Context* context, const Runtime* runtime, const CameraInput* camera, const float* extra,
                        int32_t extra_width, const float* background, float* out) {
  Call call{};
  call.context = context, call.camera = camera;
  call.extra = extra, call.extra_width = extra_width, call.extra_background = background, call.out_extra = out;
  runtime->parallel_for(context->tiles_x * context->tiles_y * ((extra_width + 2) / 3), extra_task, &call);
  return 0;
}

int32_t backward(Context* context, const Runtime* runtime, const SplatInput* splats, const CameraInput* camera,
                 const float* background, const float* rgb, const float* alpha, const float* depth,
                 const float* v_rgb, const float* v_alpha, const float* v_depth, const SplatGradients* gradients) {
  const int chunks = chunks_of(splats->count);
  if (!context->slots.reserve(static_cast<size_t>(context->pair_count) * kSlot + kSlot)) return 1;
  if (!context->partial.reserve(static_cast<size_t>(chunks) * 12 + 12)) return 1;
  Call call{};
  call.context = context, call.splats = splats, call.camera = camera, call.background = background;
  call.rgb = rgb, call.alpha = alpha, call.depth = depth;
  call.v_rgb = v_rgb, call.v_alpha = v_alpha, call.v_depth = v_depth, call.gradients = gradients;
  camera_centre(*camera, call.camera_centre);
  StageClock clock(*context);
  runtime->parallel_for(context->tiles_x * context->tiles_y, backward_task, &call);
  clock.finish(kBackwardComposite);
  runtime->parallel_for(chunks, backward_project_task, &call);
  clock.finish(kBackwardProject);
  if (gradients->world_to_cam) {
    double total[12] = {0};
    for (int chunk = 0; chunk < chunks; ++chunk)
      for (int k = 0; k < 12; ++k) total[k] += context->partial[static_cast<size_t>(chunk) * 12 + k];
    for (int k = 0; k < 12; ++k) gradients->world_to_cam[k] = static_cast<float>(total[k]);
  }
  return 0;
}

int32_t pose_step(Context* context, const Runtime* runtime, const SplatInput* splats, const CameraInput* camera,
                  const float* background, const float* rgb, const float* alpha, const float* target,
                  const float* pixel_weight, PoseStep* step, float* jacobian) {
  const int tiles = context->tiles_x * context->tiles_y, unknowns = step->unknowns;
  if (unknowns != 6 && unknowns != kPoseMost) return 4;
  if (step->reuse && (context->jacobian_tiles != tiles || context->jacobian_unknowns != unknowns)) return 4;
  if (!context->partial.reserve(static_cast<size_t>(tiles) * kPoseSums)) return 1;
  if (step->keep) {
    context->jacobian_tiles = 0;
    if (!context->jacobian.reserve(static_cast<size_t>(tiles) * kTileJacobian)) return 1;
    if (!context->jacobian_used.reserve(tiles)) return 1;
    context->jacobian_tiles = tiles, context->jacobian_unknowns = unknowns;
  }
  Call call{};
  call.context = context, call.splats = splats, call.camera = camera, call.background = background;
  call.rgb = rgb, call.alpha = alpha, call.target = target, call.pixel_weight = pixel_weight;
  call.pose = step, call.jacobian = jacobian;
  if (!step->reuse) {
    if (!context->tangents.reserve(static_cast<size_t>(context->drawn_count) * kTangent + 256)) return 1;
    camera_centre(*camera, call.camera_centre);
    runtime->parallel_for(context->chunk_count, tangent_task, &call);
  }
  runtime->parallel_for(tiles, pose_task, &call);
  double sums[kPoseSums] = {0};
  for (int tile = 0; tile < tiles; ++tile)
    for (int k = 0; k < kPoseSums; ++k) sums[k] += context->partial[static_cast<size_t>(tile) * kPoseSums + k];
  int at = 0;
  for (int row = 0; row < unknowns; ++row)
    for (int col = row; col < unknowns; ++col)
      step->hessian[unknowns * row + col] = step->hessian[unknowns * col + row] = sums[at++];
  for (int row = 0; row < unknowns; ++row) step->gradient[row] = sums[kRightAt + row];
  step->cost = sums[kCostAt], step->weight = sums[kCostAt + 1], step->squared = sums[kCostAt + 2];
  for (int k = 0; k < 18; ++k) step->moments[k] = sums[kMomentAt + k];
  for (int k = 0; k < 6 * kPoseMost; ++k) step->cross[k] = sums[kCrossAt + k];
  return 0;
}

// ------------------------------------------------------------------------------------------------------- life cycle

Context* create() {
  void* memory = calloc(1, sizeof(Context));
  return static_cast<Context*>(memory);
}

void destroy(Context* context) {
  if (context == nullptr) return;
  for (size_t chunk = 0; chunk < context->chunk_capacity; ++chunk) context->chunks[chunk].pairs.release();
  context->projected.release(), context->shown.release(), context->slot_range.release();
  context->chunk_slot.release(), context->chunk_visible.release(), context->keys.release();
  context->keys_other.release(), context->order.release(), context->order_other.release();
  context->histograms.release(), context->chunks.release(), context->chunk_tile.release();
  context->tile_start.release(), context->tile_blocks.release(), context->tile_order.release();
  context->pairs.release(), context->slots.release(), context->partial.release(), context->tangents.release();
  context->jacobian.release(), context->jacobian_used.release();
  free(context);
}

void statistics(const Context* context, ViewStatistics* out) {
  out->drawn = context->drawn_count;
  out->pairs = context->pair_count;
  out->block_operations = 0;
  for (int64_t pair = 0; pair < context->pair_count; ++pair)
    out->block_operations += __builtin_popcountll(context->pairs[pair]->mask);
  for (int stage = 0; stage < kStages; ++stage) out->stage_ms[stage] = context->stage_ms[stage];
}

const KernelTable kernel_table{
    SPLATAD_TEXT(SPLATAD_ISA), create,  destroy,   forward,    composite_extra,    backward, pose_step,
    ssim_moments,              l1_ssim, adam_step, statistics, peak_multiply_adds,
};

}  // namespace

extern "C" const KernelTable* SPLATAD_JOIN(splatad_kernel_, SPLATAD_ISA)() { return &kernel_table; }
