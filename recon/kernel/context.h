// What a view keeps between forward and what follows it, and what the tasks of one call share.
#pragma once
#include "kernel.h"
#include "maths.h"

namespace {

constexpr int kTile = 32;          // px
constexpr int kBlocksAcross = 8;   // 4 px blocks in a tile row
constexpr float kAlphaMax = 0.999f;
constexpr float kAlphaMin = 1.0f / 255.0f;
constexpr float kLog2AlphaMin = -7.994353436858858f;
constexpr float kStop = 1e-4f;     // transmittance at which a pixel stops
constexpr int kSplatChunk = 1024;  // fixed, so that sums do not depend on the number of threads; a multiple of 16
constexpr int kSlot = 16;          // floats a gradient slot holds: one cache line
constexpr int kTangent = 64;       // floats a splat's pose tangents hold

struct alignas(64) Drawn {  // one splat as the pixels see it
  float mx, my;             // centre, px
  // log2 alpha = lo - p^2 - q^2 with p = along (dx - slant dy), q = across dy: the Cholesky factor of the inverse
  // covariance, which keeps its digits where the ellipse is a needle, and takes two multiplications a pixel.
  float along, slant, across;
  float lo;                 // log2 of the opacity (compensated where antialiased)
  float red, green, blue, depth;
  float half_width, half_height;  // of the box round the alpha >= 1/255 ellipse, px
  float unused[4];
};

struct alignas(64) Pair {  // a splat in a tile: all that compositing reads
  float mx, my, along, slant, across, lo;
  float red, green, blue, depth;
  uint64_t mask;  // of the tile's 4x4 blocks that the alpha >= 1/255 ellipse meets
  uint32_t slot;  // where its gradient sums go
  uint32_t rank;  // of the splat, front to back
  uint32_t tile;
  uint32_t unused;
};
static_assert(sizeof(Drawn) == 64 && sizeof(Pair) == 64, "one cache line each");

struct SlotRange {  // a splat's gradient slots, one for each tile it meets
  uint32_t first;   // counted from its chunk's first
  uint32_t count;
};

// Bits of Context::shown.
constexpr uint8_t kShown = 1, kRed = 2, kGreen = 4, kBlue = 8;  // drawn at all; the colour not clamped at 0

struct Chunk {  // of splats in depth order
  Buffer<Pair> pairs;
  uint32_t pair_count;
  bool out_of_memory;
};

enum Stage { kProject, kSort, kBin, kComposite, kBackwardComposite, kBackwardProject, kStages };

}  // namespace

// Not in the anonymous namespace because kernel.h names it; each instruction set has its own layout-identical copy
// and only hands out opaque pointers. Made by calloc and never constructed, so that there is nothing to merge.
#pragma GCC diagnostic push
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#endif
struct Context {
  Buffer<Drawn> projected;       // by splat index; only those drawn are written
  Buffer<uint8_t> shown;         // by splat index: bits as above
  Buffer<SlotRange> slot_range;  // by splat index, where shown
  Buffer<uint32_t> chunk_slot;   // by chunk of splat indices: their first slot
  Buffer<int32_t> chunk_visible; // by chunk of splat indices: how many are drawn, then where they start
  Buffer<uint32_t> keys, keys_other, order, order_other;
  Buffer<uint32_t> histograms;
  Buffer<Chunk> chunks;          // of ranks (front to back)
  size_t chunk_capacity = 0;
  Buffer<uint32_t> chunk_tile;   // chunk x tile: entries, then where they start in the tile's list
  Buffer<uint32_t> tile_start;   // tiles + 1
  Buffer<uint64_t> tile_blocks;  // of each tile: those that compositing touched
  Buffer<uint32_t> tile_order;   // the fullest first, so that no thread ends alone with one
  Buffer<Pair*> pairs;           // by tile, then front to back; they lie in the chunks
  Buffer<float> slots;           // by splat index, then tile
  Buffer<double> partial;        // per chunk or per tile sums
  Buffer<float> tangents;        // by rank, for the pose
  Buffer<float> jacobian;        // by tile and block: of the render by the pose, where a pass was told to keep it
  Buffer<uint64_t> jacobian_used;  // of each tile: the blocks that have one
  int32_t jacobian_tiles = 0, jacobian_unknowns = 0;  // what they are of
  int32_t count = 0, drawn_count = 0, tiles_x = 0, tiles_y = 0, chunk_count = 0;
  int64_t pair_count = 0;
  double stage_ms[kStages] = {0};
};
#pragma GCC diagnostic pop

namespace {

struct Call {  // everything a task needs of one view
  Context* context;
  const SplatInput* splats;
  const CameraInput* camera;
  const float* background;
  float* out_rgb;
  float* out_alpha;
  float* out_depth;
  const float* extra;             // n x extra_width, by splat index: composited like colours; null in the main pass
  const float* extra_background;  // extra_width
  float* out_extra;               // extra_width x height x width
  int32_t extra_width;
  const float* rgb;
  const float* alpha;
  const float* depth;
  const float* v_rgb;
  const float* v_alpha;
  const float* v_depth;
  const SplatGradients* gradients;
  const float* target;
  const float* pixel_weight;
  const PoseStep* pose;
  float* jacobian;
  float camera_centre[3];
};

inline int chunks_of(int count) { return (count + kSplatChunk - 1) / kSplatChunk; }

}  // namespace
