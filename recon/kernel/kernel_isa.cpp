// The rasteriser for one instruction set: project, sort, bin, composite, and what runs backwards through them.
//
// Image formation: EWA splatting (Zwicker et al. 2001) as in 3D Gaussian Splatting (Kerbl et al. 2023), with gsplat's
// constants. A tile is 32x32 px = 64 blocks of 4x4 px; each splat-tile pair carries a 64-bit mask of the blocks its
// alpha >= 1/255 ellipse meets, so that only those are evaluated. Every splat-tile pair owns one gradient slot and
// slots are summed in a fixed order: results do not depend on the number of threads.
//
// No standard-library templates here: the linker would merge their instances across instruction sets.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "maths.h"
#include "photometric.h"
#include "vector.h"

#define SPLATAD_JOIN2(a, b) a##b
#define SPLATAD_JOIN(a, b) SPLATAD_JOIN2(a, b)
#define SPLATAD_TEXT2(a) #a
#define SPLATAD_TEXT(a) SPLATAD_TEXT2(a)

struct Context;

namespace {

constexpr int kTile = 32;                         // px
constexpr int kBlocksAcross = 8;                  // 4 px blocks in a tile row
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kAlphaMax = 0.999f;
constexpr float kAlphaMin = 1.0f / 255.0f;
constexpr float kLog2AlphaMin = -7.994353436858858f;
constexpr float kStop = 1e-4f;                    // transmittance at which a pixel stops
constexpr int kSplatChunk = 1024;                 // fixed, so that sums do not depend on the number of threads
constexpr int kSlot = 12;                         // floats a gradient slot holds
constexpr int kTangent = 56;                      // floats a splat's pose tangents hold

// Grows, never shrinks, 64-byte aligned, contents lost on growth unless `keep_count` says otherwise.
template <typename T>
struct Buffer {
  T* data = nullptr;
  size_t capacity = 0;
  bool reserve(size_t count, size_t keep_count = 0) {
    if (count <= capacity) return true;
    const size_t wanted = count + count / 4 + 64;
    T* fresh = static_cast<T*>(aligned_alloc(64, (wanted * sizeof(T) + 63) / 64 * 64));
    if (fresh == nullptr) return false;
    if (keep_count != 0) memcpy(fresh, data, keep_count * sizeof(T));
    free(data);
    data = fresh;
    capacity = wanted;
    return true;
  }
  void release() {
    free(data);
    data = nullptr;
    capacity = 0;
  }
  T& operator[](size_t i) { return data[i]; }
  const T& operator[](size_t i) const { return data[i]; }
};

struct alignas(64) Drawn {  // one splat as the pixels see it
  float mx, my;             // centre, px
  float a, b, c;            // log2 alpha = lo - (a dx^2 + b dx dy + c dy^2)
  float lo;                 // log2 of the opacity (compensated where antialiased)
  float red, green, blue, depth;
  float half_width, half_height;  // of the box round the alpha >= 1/255 ellipse, px
  float pad[4];
};

struct Entry {  // a splat meets a tile
  uint64_t mask;
  uint32_t tile;
  uint32_t position;  // in the tile's list, once known
};

struct Chunk {  // of splats in depth order, during binning
  Buffer<Entry> entries;
  int32_t entry_count;
  bool out_of_memory;
};

struct Vec3 {
  float x, y, z;
};

inline float dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec3 cross(Vec3 a, Vec3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }

}  // namespace

// Not in the anonymous namespace because kernel.h names it; each instruction set has its own layout-identical copy
// and only hands out opaque pointers.
struct Context {
  Buffer<Drawn> projected;     // by splat index
  Buffer<uint32_t> keys, keys_other, order, order_other;
  Buffer<int32_t> rank_of;     // by splat index; -1 where not drawn
  Buffer<Drawn> drawn;         // by rank (front to back)
  Buffer<Chunk> chunks;
  int32_t chunk_capacity = 0;
  Buffer<uint32_t> chunk_tile;  // chunk x tile: entries, then where they start in the tile's list
  Buffer<uint32_t> tile_start;  // tiles + 1
  Buffer<uint32_t> pair_rank;
  Buffer<uint64_t> pair_mask;
  Buffer<uint32_t> first_entry;  // by rank, within its chunk
  Buffer<float> slots;           // by pair
  Buffer<double> partial;        // per chunk or per tile sums
  Buffer<float> tangents;        // by rank, for the pose
  int32_t count = 0, drawn_count = 0, tiles_x = 0, tiles_y = 0, chunk_count = 0;
  int64_t pair_count = 0;
};

namespace {

struct Call {  // everything a task needs of one view
  Context* context;
  const SplatInput* splats;
  const CameraInput* camera;
  const float* background;
  float* out_rgb;
  float* out_alpha;
  float* out_depth;
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

void camera_centre(const CameraInput& camera, float centre[3]) {
  const float* m = camera.world_to_cam;
  for (int axis = 0; axis < 3; ++axis) centre[axis] = -(m[axis] * m[3] + m[4 + axis] * m[7] + m[8 + axis] * m[11]);
}

// ---------------------------------------------------------------------------------------------------- harmonics

// Real spherical harmonics of 3DGS's order and signs as polynomials of the direction, and their derivatives.
void harmonics(int degree, float x, float y, float z, float basis[16]) {
  basis[0] = 0.28209479177387814f;
  if (degree < 1) return;
  const float c1 = 0.4886025119029199f;
  basis[1] = -c1 * y;
  basis[2] = c1 * z;
  basis[3] = -c1 * x;
  if (degree < 2) return;
  const float xx = x * x, yy = y * y, zz = z * z;
  const float c2 = 1.0925484305920792f;
  basis[4] = c2 * x * y;
  basis[5] = -c2 * y * z;
  basis[6] = 0.31539156525252005f * (2.0f * zz - xx - yy);
  basis[7] = -c2 * x * z;
  basis[8] = 0.5f * c2 * (xx - yy);
  if (degree < 3) return;
  basis[9] = -0.5900435899266435f * y * (3.0f * xx - yy);
  basis[10] = 2.890611442640554f * x * y * z;
  basis[11] = -0.4570457994644658f * y * (4.0f * zz - xx - yy);
  basis[12] = 0.3731763325901154f * z * (2.0f * zz - 3.0f * xx - 3.0f * yy);
  basis[13] = -0.4570457994644658f * x * (4.0f * zz - xx - yy);
  basis[14] = 1.445305721320277f * z * (xx - yy);
  basis[15] = -0.5900435899266435f * x * (xx - 3.0f * yy);
}

void harmonics_derivative(int degree, float x, float y, float z, float by_x[16], float by_y[16], float by_z[16]) {
  by_x[0] = by_y[0] = by_z[0] = 0.0f;
  if (degree < 1) return;
  const float c1 = 0.4886025119029199f;
  by_x[1] = 0.0f, by_y[1] = -c1, by_z[1] = 0.0f;
  by_x[2] = 0.0f, by_y[2] = 0.0f, by_z[2] = c1;
  by_x[3] = -c1, by_y[3] = 0.0f, by_z[3] = 0.0f;
  if (degree < 2) return;
  const float xx = x * x, yy = y * y, zz = z * z;
  const float c2 = 1.0925484305920792f, c20 = 0.31539156525252005f;
  by_x[4] = c2 * y, by_y[4] = c2 * x, by_z[4] = 0.0f;
  by_x[5] = 0.0f, by_y[5] = -c2 * z, by_z[5] = -c2 * y;
  by_x[6] = -2.0f * c20 * x, by_y[6] = -2.0f * c20 * y, by_z[6] = 4.0f * c20 * z;
  by_x[7] = -c2 * z, by_y[7] = 0.0f, by_z[7] = -c2 * x;
  by_x[8] = c2 * x, by_y[8] = -c2 * y, by_z[8] = 0.0f;
  if (degree < 3) return;
  const float c3 = 0.5900435899266435f, c31 = 2.890611442640554f, c32 = 0.4570457994644658f,
              c33 = 0.3731763325901154f, c35 = 1.445305721320277f;
  by_x[9] = -c3 * 6.0f * x * y, by_y[9] = -c3 * (3.0f * xx - 3.0f * yy), by_z[9] = 0.0f;
  by_x[10] = c31 * y * z, by_y[10] = c31 * x * z, by_z[10] = c31 * x * y;
  by_x[11] = c32 * 2.0f * x * y, by_y[11] = -c32 * (4.0f * zz - xx - 3.0f * yy), by_z[11] = -c32 * 8.0f * y * z;
  by_x[12] = -c33 * 6.0f * x * z, by_y[12] = -c33 * 6.0f * y * z, by_z[12] = c33 * (6.0f * zz - 3.0f * xx - 3.0f * yy);
  by_x[13] = -c32 * (4.0f * zz - 3.0f * xx - yy), by_y[13] = c32 * 2.0f * x * y, by_z[13] = -c32 * 8.0f * x * z;
  by_x[14] = c35 * 2.0f * x * z, by_y[14] = -c35 * 2.0f * y * z, by_z[14] = c35 * (xx - yy);
  by_x[15] = -c3 * (3.0f * xx - 3.0f * yy), by_y[15] = c3 * 6.0f * x * y, by_z[15] = 0.0f;
}

// Colour of a splat seen along the unit direction d: 0.5 + harmonics, not yet clamped at 0.
void shade(const SplatInput& splats, int i, Vec3 d, float colour[3]) {
  float basis[16];
  harmonics(splats.sh_degree, d.x, d.y, d.z, basis);
  const int terms = (splats.sh_degree + 1) * (splats.sh_degree + 1);
  const float* sh = splats.sh + static_cast<size_t>(i) * splats.sh_stride * 3;
  float r = 0.5f, g = 0.5f, b = 0.5f;
  for (int k = 0; k < terms; ++k) {
    r += basis[k] * sh[3 * k];
    g += basis[k] * sh[3 * k + 1];
    b += basis[k] * sh[3 * k + 2];
  }
  colour[0] = r, colour[1] = g, colour[2] = b;
}

// --------------------------------------------------------------------------------------------------- projection

struct Projection {     // of one splat, with what its derivatives need
  Vec3 in_cam;          // centre in camera coordinates
  float u, v;           // x/z and y/z, clamped as in the Jacobian of the projection
  bool u_free, v_free;  // whether the clamp left them alone
  float rotation[9];    // of the splat, from the normalised quaternion
  float quat[4], quat_norm;
  float turned[9];      // camera rotation times splat rotation
  float scale[3];
  float half[6];        // J * turned * diag(scale): rows of the 2x3 square root of the projected covariance
  float xx, xy, yy;     // projected covariance, blur added
  float det_before, det;
  float compensation;   // 1 unless antialiased
  float opacity;        // before compensation
};

// False where the splat cannot be drawn (behind the near plane, not finite).
bool project_splat(const SplatInput& splats, const CameraInput& camera, int i, Projection& out) {
  const float* m = camera.world_to_cam;
  const float* p = splats.means + 3 * static_cast<size_t>(i);
  Vec3 t{m[0] * p[0] + m[1] * p[1] + m[2] * p[2] + m[3], m[4] * p[0] + m[5] * p[1] + m[6] * p[2] + m[7],
         m[8] * p[0] + m[9] * p[1] + m[10] * p[2] + m[11]};
  if (!(t.z > camera.near_plane)) return false;
  out.in_cam = t;
  const float* q = splats.quats + 4 * static_cast<size_t>(i);
  const float norm = sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  if (!(norm > 1e-12f)) return false;
  const float w = q[0] / norm, x = q[1] / norm, y = q[2] / norm, z = q[3] / norm;
  out.quat[0] = w, out.quat[1] = x, out.quat[2] = y, out.quat[3] = z, out.quat_norm = norm;
  float* r = out.rotation;
  r[0] = 1.0f - 2.0f * (y * y + z * z), r[1] = 2.0f * (x * y - w * z), r[2] = 2.0f * (x * z + w * y);
  r[3] = 2.0f * (x * y + w * z), r[4] = 1.0f - 2.0f * (x * x + z * z), r[5] = 2.0f * (y * z - w * x);
  r[6] = 2.0f * (x * z - w * y), r[7] = 2.0f * (y * z + w * x), r[8] = 1.0f - 2.0f * (x * x + y * y);
  for (int row = 0; row < 3; ++row)
    for (int col = 0; col < 3; ++col)
      out.turned[3 * row + col] = m[4 * row] * r[col] + m[4 * row + 1] * r[3 + col] + m[4 * row + 2] * r[6 + col];
  const float* log_scale = splats.log_scales + 3 * static_cast<size_t>(i);
  for (int axis = 0; axis < 3; ++axis) out.scale[axis] = expf(log_scale[axis]);

  const float inverse = 1.0f / t.z;
  // Outside 1.15 fields of view the affine approximation is taken at its edge, as in gsplat.
  const float u_limit_low = -camera.cx / camera.fl_x - 0.15f * camera.width / camera.fl_x;
  const float u_limit_high = (camera.width - camera.cx) / camera.fl_x + 0.15f * camera.width / camera.fl_x;
  const float v_limit_low = -camera.cy / camera.fl_y - 0.15f * camera.height / camera.fl_y;
  const float v_limit_high = (camera.height - camera.cy) / camera.fl_y + 0.15f * camera.height / camera.fl_y;
  const float u = t.x * inverse, v = t.y * inverse;
  out.u = clamped(u, u_limit_low, u_limit_high);
  out.v = clamped(v, v_limit_low, v_limit_high);
  out.u_free = out.u == u;
  out.v_free = out.v == v;
  const float j_x = camera.fl_x * inverse, j_y = camera.fl_y * inverse;
  float xx = 0.0f, xy = 0.0f, yy = 0.0f;
  for (int axis = 0; axis < 3; ++axis) {
    const float s = out.scale[axis];
    const float top = j_x * (out.turned[axis] - out.u * out.turned[6 + axis]) * s;
    const float low = j_y * (out.turned[3 + axis] - out.v * out.turned[6 + axis]) * s;
    out.half[axis] = top;
    out.half[3 + axis] = low;
    xx += top * top, xy += top * low, yy += low * low;
  }
  out.det_before = larger(0.0f, xx * yy - xy * xy);
  out.xx = xx + camera.blur, out.xy = xy, out.yy = yy + camera.blur;
  // Expanded, not multiplied out: for needle-like splats xx * yy - xy^2 loses all digits.
  out.det = out.det_before + camera.blur * (xx + yy) + camera.blur * camera.blur;
  out.compensation = camera.antialiased ? sqrtf(out.det_before / out.det) : 1.0f;
  out.opacity = 1.0f / (1.0f + expf(-splats.logit_opacities[i]));
  return isfinite(out.det) && out.det > 0.0f;
}

void project_task(void* argument, int32_t chunk) {
  const Call& call = *static_cast<Call*>(argument);
  const SplatInput& splats = *call.splats;
  const CameraInput& camera = *call.camera;
  Context& context = *call.context;
  const int first = chunk * kSplatChunk, last = smaller(first + kSplatChunk, splats.count);
  for (int i = first; i < last; ++i) {
    context.keys[i] = 0xffffffffu;
    Projection p;
    if (!project_splat(splats, camera, i, p)) continue;
    const float lo = log2f(p.opacity * p.compensation);
    const float reach = lo - kLog2AlphaMin;
    if (!(reach > 0.0f)) continue;
    // p(d) = lo - log2(e)/2 d^T cov^-1 d; its level set log2(1/255) has half extents sqrt(2 ln(255 o) cov_ii).
    const float spread = 2.0f * reach * kLn2;
    const float half_width = sqrtf(spread * p.xx), half_height = sqrtf(spread * p.yy);
    const float inverse = 1.0f / p.in_cam.z;
    const float mx = camera.fl_x * p.in_cam.x * inverse + camera.cx;
    const float my = camera.fl_y * p.in_cam.y * inverse + camera.cy;
    if (!(mx + half_width > 0.5f && mx - half_width < camera.width - 0.5f && my + half_height > 0.5f &&
          my - half_height < camera.height - 0.5f))
      continue;
    Drawn& d = context.projected[i];
    const float k = 0.5f * kLog2E / p.det;
    d.mx = mx, d.my = my;
    d.a = k * p.yy, d.b = -2.0f * k * p.xy, d.c = k * p.xx;
    d.lo = lo;
    d.depth = p.in_cam.z;
    d.half_width = half_width, d.half_height = half_height;
    if (splats.colours != nullptr) {
      const float* colour = splats.colours + 3 * static_cast<size_t>(i);
      d.red = colour[0], d.green = colour[1], d.blue = colour[2];
    } else {
      const float* mean = splats.means + 3 * static_cast<size_t>(i);
      Vec3 view{mean[0] - call.camera_centre[0], mean[1] - call.camera_centre[1], mean[2] - call.camera_centre[2]};
      const float length = 1.0f / sqrtf(larger(dot(view, view), 1e-20f));
      float colour[3];
      shade(splats, i, {view.x * length, view.y * length, view.z * length}, colour);
      d.red = larger(colour[0], 0.0f), d.green = larger(colour[1], 0.0f), d.blue = larger(colour[2], 0.0f);
    }
    uint32_t bits;
    memcpy(&bits, &p.in_cam.z, sizeof(bits));
    context.keys[i] = bits;
  }
}

// --------------------------------------------------------------------------------------------- depth sort and bins

void sort_by_depth(Context& context) {
  int visible = 0;
  for (int i = 0; i < context.count; ++i) {
    context.rank_of[i] = -1;
    if (context.keys[i] == 0xffffffffu) continue;
    context.order[visible] = static_cast<uint32_t>(i);
    context.keys_other[visible] = context.keys[i];
    ++visible;
  }
  context.drawn_count = visible;
  // Stable radix sort of the float's bits (depths are positive), 11 bits a pass. Equal depths keep index order.
  uint32_t* key = context.keys_other.data;
  uint32_t* key_to = context.keys.data;
  uint32_t* value = context.order.data;
  uint32_t* value_to = context.order_other.data;
  static constexpr int kBits = 11, kBuckets = 1 << kBits;
  uint32_t histogram[3][kBuckets];
  memset(histogram, 0, sizeof(histogram));
  for (int i = 0; i < visible; ++i)
    for (int pass = 0; pass < 3; ++pass) ++histogram[pass][(key[i] >> (kBits * pass)) & (kBuckets - 1)];
  for (int pass = 0; pass < 3; ++pass) {
    uint32_t* h = histogram[pass];
    if (visible > 0 && h[(key[0] >> (kBits * pass)) & (kBuckets - 1)] == static_cast<uint32_t>(visible)) continue;
    uint32_t start = 0;
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
      const uint32_t size = h[bucket];
      h[bucket] = start;
      start += size;
    }
    for (int i = 0; i < visible; ++i) {
      const uint32_t to = h[(key[i] >> (kBits * pass)) & (kBuckets - 1)]++;
      key_to[to] = key[i];
      value_to[to] = value[i];
    }
    uint32_t* swap = key;
    key = key_to, key_to = swap;
    swap = value;
    value = value_to, value_to = swap;
  }
  if (value != context.order.data) memcpy(context.order.data, value, sizeof(uint32_t) * visible);
  for (int rank = 0; rank < visible; ++rank) context.rank_of[context.order[rank]] = rank;
}

// Which 4x4 blocks of which tiles each splat's ellipse meets, exactly per block row.
void bin_task(void* argument, int32_t index) {
  const Call& call = *static_cast<Call*>(argument);
  Context& context = *call.context;
  Chunk& chunk = context.chunks[index];
  const int width = call.camera->width, height = call.camera->height;
  const int tiles = context.tiles_x * context.tiles_y;
  uint32_t* tile_count = &context.chunk_tile[static_cast<size_t>(index) * tiles];
  memset(tile_count, 0, sizeof(uint32_t) * tiles);
  chunk.entry_count = 0;
  chunk.out_of_memory = false;
  const int first = index * kSplatChunk, last = smaller(first + kSplatChunk, context.drawn_count);
  if (!chunk.entries.reserve(4 * kSplatChunk)) {
    chunk.out_of_memory = true;
    return;
  }
  uint64_t masks[4096];  // one tile row; images are at most 4096 tiles wide (checked in forward)
  for (int rank = first; rank < last; ++rank) {
    if (rank + 8 < last) __builtin_prefetch(&context.projected[context.order[rank + 8]]);
    const Drawn d = context.projected[context.order[rank]];
    context.drawn[rank] = d;
    context.first_entry[rank] = static_cast<uint32_t>(chunk.entry_count);
    constexpr float kSlack = 0.01f;  // px; covers rounding, an extra block costs time only
    const float reach = d.lo - kLog2AlphaMin;
    const int row_first = larger(0, static_cast<int>(ceilf(larger(d.my - d.half_height - 0.5f - kSlack, -1.0f)))) / 4;
    const int row_last =
        smaller(height - 1, static_cast<int>(floorf(smaller(d.my + d.half_height - 0.5f + kSlack, height + 1.0f)))) / 4;
    if (row_last < row_first) continue;
    const float inverse_a = 1.0f / d.a;
    const float slope = -0.5f * d.b * inverse_a;                      // centre of the chord at height dy
    const float fall = larger(0.0f, d.c - 0.25f * d.b * d.b * inverse_a);  // a * half chord^2 = reach - fall * dy^2
    const float rightmost_dy = -0.5f * d.b / d.c * d.half_width;
    const int max_entries = chunk.entry_count + context.tiles_x * ((row_last - row_first) / kBlocksAcross + 2);
    if (!chunk.entries.reserve(max_entries, chunk.entry_count)) {
      chunk.out_of_memory = true;
      return;
    }
    for (int tile_y = row_first / kBlocksAcross; tile_y <= row_last / kBlocksAcross; ++tile_y) {
      int tile_low = context.tiles_x, tile_high = -1;
      const int row_end = smaller(row_last, tile_y * kBlocksAcross + kBlocksAcross - 1);
      for (int row = larger(row_first, tile_y * kBlocksAcross); row <= row_end; ++row) {
        const float top = larger(4.0f * row + 0.5f - kSlack - d.my, -d.half_height);
        const float bottom = smaller(4.0f * row + 3.5f + kSlack - d.my, d.half_height);
        if (top > bottom) continue;
        const float dy_right = clamped(rightmost_dy, top, bottom), dy_left = clamped(-rightmost_dy, top, bottom);
        const float right = slope * dy_right + sqrtf(larger(0.0f, (reach - fall * dy_right * dy_right) * inverse_a));
        const float left = slope * dy_left - sqrtf(larger(0.0f, (reach - fall * dy_left * dy_left) * inverse_a));
        const float x_low = larger(d.mx + left - 0.5f - kSlack, -1.0f);
        const float x_high = smaller(d.mx + right - 0.5f + kSlack, width + 1.0f);
        const int column_low = larger(0, static_cast<int>(ceilf(x_low)));
        const int column_high = smaller(width - 1, static_cast<int>(floorf(x_high)));
        if (column_low > column_high) continue;
        const int block_low = column_low / 4, block_high = column_high / 4;
        const int low = block_low / kBlocksAcross, high = block_high / kBlocksAcross;
        if (tile_high < 0) {
          for (int t = low; t <= high; ++t) masks[t] = 0;
          tile_low = low, tile_high = high;
        } else {
          while (tile_low > low) masks[--tile_low] = 0;
          while (tile_high < high) masks[++tile_high] = 0;
        }
        for (int t = low; t <= high; ++t) {
          const int from = larger(0, block_low - t * kBlocksAcross);
          const int to = smaller(kBlocksAcross - 1, block_high - t * kBlocksAcross);
          const uint64_t bits = (0xffu >> (7 - (to - from))) << from;
          masks[t] |= bits << (8 * (row - tile_y * kBlocksAcross));
        }
      }
      for (int t = tile_low; t <= tile_high; ++t) {
        if (masks[t] == 0) continue;
        const uint32_t tile = static_cast<uint32_t>(tile_y * context.tiles_x + t);
        chunk.entries[chunk.entry_count++] = {masks[t], tile, 0};
        ++tile_count[tile];
      }
    }
  }
}

void place_task(void* argument, int32_t index) {
  Context& context = *static_cast<Call*>(argument)->context;
  Chunk& chunk = context.chunks[index];
  const int tiles = context.tiles_x * context.tiles_y;
  uint32_t* cursor = &context.chunk_tile[static_cast<size_t>(index) * tiles];
  const int first = index * kSplatChunk, last = smaller(first + kSplatChunk, context.drawn_count);
  for (int rank = first; rank < last; ++rank) {
    const uint32_t end = rank + 1 < last ? context.first_entry[rank + 1] : static_cast<uint32_t>(chunk.entry_count);
    for (uint32_t e = context.first_entry[rank]; e < end; ++e) {
      Entry& entry = chunk.entries[e];
      const uint32_t at = cursor[entry.tile]++;
      entry.position = at;
      context.pair_rank[at] = static_cast<uint32_t>(rank);
      context.pair_mask[at] = entry.mask;
    }
  }
}

bool bin_splats(Call& call, const Runtime& runtime) {
  Context& context = *call.context;
  const int tiles = context.tiles_x * context.tiles_y;
  context.chunk_count = (context.drawn_count + kSplatChunk - 1) / kSplatChunk;
  if (!context.chunks.reserve(context.chunk_count, context.chunk_capacity)) return false;
  for (; context.chunk_capacity < context.chunk_count; ++context.chunk_capacity) {
    context.chunks[context.chunk_capacity].entries.data = nullptr;
    context.chunks[context.chunk_capacity].entries.capacity = 0;
  }
  if (!context.chunk_tile.reserve(static_cast<size_t>(context.chunk_count) * tiles)) return false;
  if (!context.tile_start.reserve(tiles + 1)) return false;
  runtime.parallel_for(context.chunk_count, bin_task, &call);
  uint32_t total = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    context.tile_start[tile] = total;
    for (int chunk = 0; chunk < context.chunk_count; ++chunk) {
      uint32_t& count = context.chunk_tile[static_cast<size_t>(chunk) * tiles + tile];
      const uint32_t start = total;
      total += count;
      count = start;
    }
  }
  context.tile_start[tiles] = total;
  context.pair_count = total;
  for (int chunk = 0; chunk < context.chunk_count; ++chunk)
    if (context.chunks[chunk].out_of_memory) return false;
  if (!context.pair_rank.reserve(total + 16) || !context.pair_mask.reserve(total + 16)) return false;
  runtime.parallel_for(context.chunk_count, place_task, &call);
  return true;
}

// ----------------------------------------------------------------------------------------------------- compositing

struct BlockPlace {
  int x, y;      // first pixel
  bool inside;   // all 16 pixels are in the image
};

inline BlockPlace block_place(const CameraInput& camera, int tile_x, int tile_y, int block) {
  BlockPlace place;
  place.x = tile_x * kTile + 4 * (block & 7);
  place.y = tile_y * kTile + 4 * (block >> 3);
  place.inside = place.x + 4 <= camera.width && place.y + 4 <= camera.height;
  return place;
}

inline bool touches(const CameraInput& camera, const BlockPlace& place) {
  return place.x < camera.width && place.y < camera.height;
}

void read_block(const float* plane, const CameraInput& camera, const BlockPlace& place, float out[16]) {
  if (place.inside) {
    for (int row = 0; row < 4; ++row)
      memcpy(out + 4 * row, plane + static_cast<size_t>(place.y + row) * camera.width + place.x, 16);
    return;
  }
  for (int row = 0; row < 4; ++row)
    for (int col = 0; col < 4; ++col)
      out[4 * row + col] = place.y + row < camera.height && place.x + col < camera.width
                               ? plane[static_cast<size_t>(place.y + row) * camera.width + place.x + col]
                               : 0.0f;
}

void write_block(float* plane, const CameraInput& camera, const BlockPlace& place, const float in[16]) {
  if (place.inside) {
    for (int row = 0; row < 4; ++row)
      memcpy(plane + static_cast<size_t>(place.y + row) * camera.width + place.x, in + 4 * row, 16);
    return;
  }
  for (int row = 0; row < 4 && place.y + row < camera.height; ++row)
    for (int col = 0; col < 4 && place.x + col < camera.width; ++col)
      plane[static_cast<size_t>(place.y + row) * camera.width + place.x + col] = in[4 * row + col];
}

// log2 alpha before the clamps, and the offsets from the splat's centre.
inline Lanes exponent(const Drawn& d, Lanes x0, Lanes y0, int block, Lanes& dx, Lanes& dy) {
  dx = x0 + set(static_cast<float>(4 * (block & 7)) - d.mx);
  dy = y0 + set(static_cast<float>(4 * (block >> 3)) - d.my);
  const Lanes quadratic = mul_add(mul_add(set(d.a), dx, set(d.b) * dy), dx, set(d.c) * dy * dy);
  return set(d.lo) - quadratic;
}

template <bool kDepth>
void composite_tile(const Call& call, int tile) {
  const Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  // A negative transmittance marks a pixel that has stopped; its magnitude is kept.
  alignas(64) float through[64][16], red[64][16], green[64][16], blue[64][16], depth[kDepth ? 64 : 1][16];
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  uint64_t used = 0;
  uint64_t alive = ~0ull;
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes threshold = set(kAlphaMin), ceiling = set(kAlphaMax), one = set(1.0f), stop = set(kStop);
  const Lanes zero = set(0.0f);
  for (uint32_t pair = begin; pair < end && alive != 0; ++pair) {
    if (pair + 4 < end) __builtin_prefetch(&context.drawn[context.pair_rank[pair + 4]]);
    uint64_t blocks = context.pair_mask[pair] & alive;
    if (blocks == 0) continue;
    const Drawn& d = context.drawn[context.pair_rank[pair]];
    for (uint64_t fresh = blocks & ~used; fresh != 0; fresh &= fresh - 1) {
      const int block = __builtin_ctzll(fresh);
      store(through[block], one);
      store(red[block], zero), store(green[block], zero), store(blue[block], zero);
      if (kDepth) store(depth[block], zero);
    }
    used |= blocks;
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      Lanes dx, dy;
      const Lanes power = exponent(d, x0, y0, block, dx, dy);
      const Lanes alpha = minimum(exp2_lanes(power), ceiling);
      const Lanes t = load(through[block]);
      const LaneMask live = both(greater_equal(alpha, threshold), greater(t, zero));
      if (!any(live)) continue;
      const Lanes weight = t * alpha;
      const Lanes next = t - weight;
      const LaneMask goes_on = both(live, greater(next, stop));
      const LaneMask stops = but_not(live, goes_on);
      const Lanes w = keep(goes_on, weight);
      store(red[block], mul_add(w, set(d.red), load(red[block])));
      store(green[block], mul_add(w, set(d.green), load(green[block])));
      store(blue[block], mul_add(w, set(d.blue), load(blue[block])));
      if (kDepth) store(depth[block], mul_add(w, set(d.depth), load(depth[block])));
      Lanes t_new = pick(goes_on, next, t);
      if (any(stops)) {
        t_new = pick(stops, zero - t, t_new);
        if (!any(greater(t_new, zero))) alive &= ~(1ull << block);
      }
      store(through[block], t_new);
    }
  }
  alignas(64) float out[16];
  for (int block = 0; block < 64; ++block) {
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    if (!touches(camera, place)) continue;
    const bool hit = (used >> block) & 1;
    const Lanes t = hit ? magnitude(load(through[block])) : one;
    const float* const colour[3] = {red[block], green[block], blue[block]};
    for (int channel = 0; channel < 3; ++channel) {
      const Lanes base = hit ? load(colour[channel]) : zero;
      store(out, mul_add(t, set(call.background[channel]), base));
      write_block(call.out_rgb + channel * plane, camera, place, out);
    }
    store(out, one - t);
    write_block(call.out_alpha, camera, place, out);
    if (kDepth) {
      store(out, hit ? load(depth[block]) : zero);
      write_block(call.out_depth, camera, place, out);
    }
  }
}

void composite_task(void* argument, int32_t tile) {
  const Call& call = *static_cast<Call*>(argument);
  if (call.out_depth != nullptr)
    composite_tile<true>(call, tile);
  else
    composite_tile<false>(call, tile);
}

int32_t forward(Context* context, const Runtime* runtime, const SplatInput* splats, const CameraInput* camera,
                const float* background, float* rgb, float* alpha, float* depth) {
  context->count = splats->count;
  context->tiles_x = (camera->width + kTile - 1) / kTile;
  context->tiles_y = (camera->height + kTile - 1) / kTile;
  if (context->tiles_x > 4096) return 2;
  const size_t n = static_cast<size_t>(splats->count) + 1;
  if (!context->projected.reserve(n) || !context->keys.reserve(n) || !context->keys_other.reserve(n) ||
      !context->order.reserve(n) || !context->order_other.reserve(n) || !context->rank_of.reserve(n) ||
      !context->drawn.reserve(n) || !context->first_entry.reserve(n))
    return 1;
  Call call{};
  call.context = context, call.splats = splats, call.camera = camera, call.background = background;
  call.out_rgb = rgb, call.out_alpha = alpha, call.out_depth = depth;
  camera_centre(*camera, call.camera_centre);
  runtime->parallel_for((splats->count + kSplatChunk - 1) / kSplatChunk, project_task, &call);
  sort_by_depth(*context);
  if (!bin_splats(call, *runtime)) return 1;
  runtime->parallel_for(context->tiles_x * context->tiles_y, composite_task, &call);
  return 0;
}

// -------------------------------------------------------------------------------------------------------- backward

// Slot layout: sums over the pixels of g, g dx, g dy, g dx^2, g dx dy, g dy^2 with g = dL/d(log2 alpha), then of
// weight * v for red, green, blue, depth.
template <bool kDepth>
void backward_tile(const Call& call, int tile) {
  Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  if (begin == end) return;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  alignas(64) float through[64][16], behind[64][16], v_red[64][16], v_green[64][16], v_blue[64][16];
  alignas(64) float v_depth[kDepth ? 64 : 1][16];
  const Lanes zero = set(0.0f), one = set(1.0f);
  uint64_t alive = 0;
  for (int block = 0; block < 64; ++block) {
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    if (!touches(camera, place)) continue;
    alive |= 1ull << block;
    alignas(64) float value[16];
    float* const v[3] = {v_red[block], v_green[block], v_blue[block]};
    read_block(call.alpha, camera, place, value);
    const Lanes last = one - load(value);  // final transmittance
    // What lies behind the splats done so far, as the loss sees it: colours still to come, and minus the part of
    // alpha's gradient that the final transmittance carries.
    Lanes rest = zero;
    for (int channel = 0; channel < 3; ++channel) {
      read_block(call.v_rgb + channel * plane, camera, place, v[channel]);
      read_block(call.rgb + channel * plane, camera, place, value);
      rest = mul_add(load(value), load(v[channel]), rest);  // includes the background seen through
    }
    if (call.v_alpha != nullptr) {
      read_block(call.v_alpha, camera, place, value);
      rest = rest - load(value) * last;
    }
    if (kDepth) {
      read_block(call.v_depth, camera, place, v_depth[block]);
      read_block(call.depth, camera, place, value);
      rest = mul_add(load(value), load(v_depth[block]), rest);
    }
    store(behind[block], rest);
    store(through[block], one);
  }
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes threshold = set(kAlphaMin), ceiling = set(kAlphaMax), stop = set(kStop);
  for (uint32_t pair = begin; pair < end; ++pair) {
    if (pair + 4 < end) __builtin_prefetch(&context.drawn[context.pair_rank[pair + 4]]);
    uint64_t blocks = context.pair_mask[pair] & alive;
    float* slot = &context.slots[static_cast<size_t>(pair) * kSlot];
    if (blocks == 0) {
      memset(slot, 0, sizeof(float) * kSlot);
      continue;
    }
    const Drawn& d = context.drawn[context.pair_rank[pair]];
    Lanes g0 = zero, gx = zero, gy = zero, gxx = zero, gxy = zero, gyy = zero;
    Lanes to_red = zero, to_green = zero, to_blue = zero, to_depth = zero;
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      Lanes dx, dy;
      const Lanes power = exponent(d, x0, y0, block, dx, dy);
      const Lanes raw = exp2_lanes(power);
      const Lanes alpha = minimum(raw, ceiling);
      const Lanes t = load(through[block]);
      const LaneMask live = both(greater_equal(alpha, threshold), greater(t, zero));
      if (!any(live)) continue;
      const Lanes weight = t * alpha;
      const Lanes next = t - weight;
      const LaneMask goes_on = both(live, greater(next, stop));
      const LaneMask stops = but_not(live, goes_on);
      const Lanes w = keep(goes_on, weight);
      const Lanes vr = load(v_red[block]), vg = load(v_green[block]), vb = load(v_blue[block]);
      to_red = mul_add(w, vr, to_red);
      to_green = mul_add(w, vg, to_green);
      to_blue = mul_add(w, vb, to_blue);
      Lanes seen = mul_add(set(d.red), vr, mul_add(set(d.green), vg, set(d.blue) * vb));
      if (kDepth) {
        const Lanes vd = load(v_depth[block]);
        to_depth = mul_add(w, vd, to_depth);
        seen = mul_add(set(d.depth), vd, seen);
      }
      const Lanes rest = load(behind[block]) - w * seen;
      store(behind[block], rest);
      const Lanes by_alpha = t * seen - rest * reciprocal(one - alpha);
      // d alpha / d log2 alpha = alpha ln 2, and nothing passes the clamp at 0.999.
      const Lanes g = keep(both(goes_on, greater(ceiling, raw)), by_alpha * alpha);
      g0 = g0 + g;
      const Lanes g_dx = g * dx, g_dy = g * dy;
      gx = gx + g_dx;
      gy = gy + g_dy;
      gxx = mul_add(g_dx, dx, gxx);
      gxy = mul_add(g_dx, dy, gxy);
      gyy = mul_add(g_dy, dy, gyy);
      Lanes t_new = pick(goes_on, next, t);
      if (any(stops)) {
        t_new = pick(stops, zero - t, t_new);
        if (!any(greater(t_new, zero))) alive &= ~(1ull << block);
      }
      store(through[block], t_new);
    }
    slot[0] = kLn2 * sum(g0);
    slot[1] = kLn2 * sum(gx), slot[2] = kLn2 * sum(gy);
    slot[3] = kLn2 * sum(gxx), slot[4] = kLn2 * sum(gxy), slot[5] = kLn2 * sum(gyy);
    slot[6] = sum(to_red), slot[7] = sum(to_green), slot[8] = sum(to_blue);
    slot[9] = kDepth ? sum(to_depth) : 0.0f;
  }
}

void backward_task(void* argument, int32_t tile) {
  const Call& call = *static_cast<Call*>(argument);
  if (call.v_depth != nullptr)
    backward_tile<true>(call, tile);
  else
    backward_tile<false>(call, tile);
}

// From the summed slots to the parameters of each splat, and per chunk to the camera.
void backward_project_task(void* argument, int32_t chunk_index) {
  const Call& call = *static_cast<Call*>(argument);
  const Context& context = *call.context;
  const SplatInput& splats = *call.splats;
  const CameraInput& camera = *call.camera;
  const SplatGradients& out = *call.gradients;
  double* to_camera = &context.partial.data[static_cast<size_t>(chunk_index) * 12];
  for (int k = 0; k < 12; ++k) to_camera[k] = 0.0;
  const int first = chunk_index * kSplatChunk, last = smaller(first + kSplatChunk, splats.count);
  const float* m = camera.world_to_cam;
  const size_t sh_floats = static_cast<size_t>(splats.sh_stride) * 3;
  for (int i = first; i < last; ++i) {
    const int rank = context.rank_of[i];
    float s[kSlot] = {0};
    if (rank >= 0) {
      const Chunk& chunk = context.chunks[rank / kSplatChunk];
      const uint32_t begin = context.first_entry[rank];
      const bool last_of_chunk = rank + 1 == context.drawn_count || (rank + 1) % kSplatChunk == 0;
      const uint32_t end = last_of_chunk ? static_cast<uint32_t>(chunk.entry_count) : context.first_entry[rank + 1];
      for (uint32_t e = begin; e < end; ++e) {
        const float* slot = &context.slots[static_cast<size_t>(chunk.entries[e].position) * kSlot];
        for (int k = 0; k < 10; ++k) s[k] += slot[k];
      }
    }
    Projection p;
    if (rank < 0 || !project_splat(splats, camera, i, p)) {
      if (out.means) memset(out.means + 3 * static_cast<size_t>(i), 0, 3 * sizeof(float));
      if (out.quats) memset(out.quats + 4 * static_cast<size_t>(i), 0, 4 * sizeof(float));
      if (out.log_scales) memset(out.log_scales + 3 * static_cast<size_t>(i), 0, 3 * sizeof(float));
      if (out.logit_opacities) out.logit_opacities[i] = 0.0f;
      if (out.sh) memset(out.sh + sh_floats * i, 0, sh_floats * sizeof(float));
      if (out.colours) memset(out.colours + 3 * static_cast<size_t>(i), 0, 3 * sizeof(float));
      if (out.means2d) memset(out.means2d + 2 * static_cast<size_t>(i), 0, 2 * sizeof(float));
      continue;
    }
    const Drawn& d = context.drawn[rank];
    // p = lo - (a dx^2 + b dx dy + c dy^2), dx = pixel - mx.
    const float g_mx = 2.0f * d.a * s[1] + d.b * s[2];
    const float g_my = d.b * s[1] + 2.0f * d.c * s[2];
    if (out.means2d) out.means2d[2 * static_cast<size_t>(i)] = g_mx, out.means2d[2 * static_cast<size_t>(i) + 1] = g_my;
    // a = k yy / det, b = -2 k xy / det, c = k xx / det with k = log2(e)/2: through the inverse of the covariance,
    // dL/dcov = - conic G conic with G the gradient by the conic (symmetric, off-diagonal halved).
    const float k = 0.5f * kLog2E;
    const float i_xx = p.yy / p.det, i_xy = -p.xy / p.det, i_yy = p.xx / p.det;
    const float c_xx = -k * s[3], c_xy = -k * s[4], c_yy = -k * s[5];
    float h_xx, h_xy, h_yy;  // dL/dcov as a symmetric matrix
    {
      const float m00 = i_xx * c_xx + i_xy * c_xy, m01 = i_xx * c_xy + i_xy * c_yy;
      const float m10 = i_xy * c_xx + i_yy * c_xy, m11 = i_xy * c_xy + i_yy * c_yy;
      h_xx = -(m00 * i_xx + m01 * i_xy);
      h_xy = -(m00 * i_xy + m01 * i_yy);
      h_yy = -(m10 * i_xy + m11 * i_yy);
    }
    const float g_log_opacity = s[0] * kLog2E;  // by ln of the drawn opacity
    if (camera.antialiased && p.det_before > 0.0f) {
      // ln compensation = (ln det_before - ln det) / 2; the derivative of ln det is the inverse.
      const float half = 0.5f * g_log_opacity;
      const float n_xx = p.xx - camera.blur, n_yy = p.yy - camera.blur;
      h_xx += half * (n_yy / p.det_before - i_xx);
      h_xy += half * (-p.xy / p.det_before - i_xy);
      h_yy += half * (n_xx / p.det_before - i_yy);
    }
    if (out.logit_opacities) out.logit_opacities[i] = g_log_opacity * (1.0f - p.opacity);

    // cov = half half^T: gradient by the 2x3 square root, then by its factors.
    const float inverse = 1.0f / p.in_cam.z;
    const float j_x = camera.fl_x * inverse, j_y = camera.fl_y * inverse;
    float g_turned[9], g_scale[3];
    float g_jx = 0.0f, g_jy = 0.0f, g_u = 0.0f, g_v = 0.0f;
    for (int axis = 0; axis < 3; ++axis) {
      const float g_top = 2.0f * (h_xx * p.half[axis] + h_xy * p.half[3 + axis]);
      const float g_low = 2.0f * (h_xy * p.half[axis] + h_yy * p.half[3 + axis]);
      const float sc = p.scale[axis];
      const float t0 = p.turned[axis], t1 = p.turned[3 + axis], t2 = p.turned[6 + axis];
      g_turned[axis] = g_top * j_x * sc;
      g_turned[3 + axis] = g_low * j_y * sc;
      g_turned[6 + axis] = -(g_top * j_x * p.u + g_low * j_y * p.v) * sc;
      g_scale[axis] = g_top * p.half[axis] + g_low * p.half[3 + axis];  // by ln scale
      g_jx += g_top * (t0 - p.u * t2) * sc;
      g_jy += g_low * (t1 - p.v * t2) * sc;
      g_u -= g_top * j_x * t2 * sc;
      g_v -= g_low * j_y * t2 * sc;
    }
    if (out.log_scales) memcpy(out.log_scales + 3 * static_cast<size_t>(i), g_scale, sizeof(g_scale));
    // j_x = fl_x / z, u = x / z (where free), mx = fl_x x / z + cx.
    const float u = p.in_cam.x * inverse, v = p.in_cam.y * inverse;
    Vec3 g_cam;
    const float through_u = g_mx * camera.fl_x + (p.u_free ? g_u : 0.0f);
    const float through_v = g_my * camera.fl_y + (p.v_free ? g_v : 0.0f);
    g_cam.x = through_u * inverse;
    g_cam.y = through_v * inverse;
    g_cam.z = -(through_u * u + through_v * v) * inverse - (g_jx * j_x + g_jy * j_y) * inverse + s[9];

    // turned = R_cam * rotation.
    const float* r = p.rotation;
    float g_rotation[9];
    float g_camera[9];
    for (int row = 0; row < 3; ++row)
      for (int col = 0; col < 3; ++col) {
        g_rotation[3 * row + col] = m[row] * g_turned[col] + m[4 + row] * g_turned[3 + col] + m[8 + row] * g_turned[6 + col];
        g_camera[3 * row + col] =
            g_turned[3 * row] * r[3 * col] + g_turned[3 * row + 1] * r[3 * col + 1] + g_turned[3 * row + 2] * r[3 * col + 2];
      }
    if (out.quats) {
      const float w = p.quat[0], x = p.quat[1], y = p.quat[2], z = p.quat[3];
      const float* g = g_rotation;
      float q[4];
      q[0] = 2.0f * (x * (g[7] - g[5]) + y * (g[2] - g[6]) + z * (g[3] - g[1]));
      q[1] = 2.0f * (-2.0f * x * (g[4] + g[8]) + y * (g[1] + g[3]) + z * (g[2] + g[6]) + w * (g[7] - g[5]));
      q[2] = 2.0f * (x * (g[1] + g[3]) - 2.0f * y * (g[0] + g[8]) + z * (g[5] + g[7]) + w * (g[2] - g[6]));
      q[3] = 2.0f * (x * (g[2] + g[6]) + y * (g[5] + g[7]) - 2.0f * z * (g[0] + g[4]) + w * (g[3] - g[1]));
      const float along = w * q[0] + x * q[1] + y * q[2] + z * q[3];
      float* to = out.quats + 4 * static_cast<size_t>(i);
      for (int c = 0; c < 4; ++c) to[c] = (q[c] - along * p.quat[c]) / p.quat_norm;
    }

    // Colour, and through the viewing direction back to mean and camera.
    float g_colour[3] = {s[6], s[7], s[8]};
    Vec3 g_view{0.0f, 0.0f, 0.0f};  // by the vector from camera centre to splat, world axes
    const float* mean = splats.means + 3 * static_cast<size_t>(i);
    if (splats.colours != nullptr) {
      if (out.colours) memcpy(out.colours + 3 * static_cast<size_t>(i), g_colour, sizeof(g_colour));
    } else {
      Vec3 view{mean[0] - call.camera_centre[0], mean[1] - call.camera_centre[1], mean[2] - call.camera_centre[2]};
      const float shorten = 1.0f / sqrtf(larger(dot(view, view), 1e-20f));
      const Vec3 dir{view.x * shorten, view.y * shorten, view.z * shorten};
      if (d.red <= 0.0f) g_colour[0] = 0.0f;
      if (d.green <= 0.0f) g_colour[1] = 0.0f;
      if (d.blue <= 0.0f) g_colour[2] = 0.0f;
      const int terms = (splats.sh_degree + 1) * (splats.sh_degree + 1);
      if (out.sh) {
        float basis[16];
        harmonics(splats.sh_degree, dir.x, dir.y, dir.z, basis);
        float* to = out.sh + sh_floats * i;
        for (int t = 0; t < terms; ++t)
          for (int c = 0; c < 3; ++c) to[3 * t + c] = basis[t] * g_colour[c];
        if (terms < splats.sh_stride) memset(to + 3 * terms, 0, (sh_floats - 3 * terms) * sizeof(float));
      }
      if (splats.sh_degree > 0) {
        float by_x[16], by_y[16], by_z[16];
        harmonics_derivative(splats.sh_degree, dir.x, dir.y, dir.z, by_x, by_y, by_z);
        const float* sh = splats.sh + sh_floats * i;
        Vec3 g_dir{0.0f, 0.0f, 0.0f};
        for (int t = 1; t < terms; ++t) {
          const float pull = sh[3 * t] * g_colour[0] + sh[3 * t + 1] * g_colour[1] + sh[3 * t + 2] * g_colour[2];
          g_dir.x += by_x[t] * pull, g_dir.y += by_y[t] * pull, g_dir.z += by_z[t] * pull;
        }
        const float along = dot(g_dir, dir);
        g_view = {(g_dir.x - along * dir.x) * shorten, (g_dir.y - along * dir.y) * shorten,
                  (g_dir.z - along * dir.z) * shorten};
      }
    }
    if (out.means) {
      float* to = out.means + 3 * static_cast<size_t>(i);
      to[0] = m[0] * g_cam.x + m[4] * g_cam.y + m[8] * g_cam.z + g_view.x;
      to[1] = m[1] * g_cam.x + m[5] * g_cam.y + m[9] * g_cam.z + g_view.y;
      to[2] = m[2] * g_cam.x + m[6] * g_cam.y + m[10] * g_cam.z + g_view.z;
    }
    // x_cam = R x + t; the camera centre is -R^T t, so view = x + R^T t.
    const float g_in[3] = {g_cam.x, g_cam.y, g_cam.z};
    const float g_from[3] = {g_view.x, g_view.y, g_view.z};
    for (int row = 0; row < 3; ++row) {
      for (int col = 0; col < 3; ++col)
        to_camera[4 * row + col] += g_in[row] * mean[col] + g_camera[3 * row + col] + m[4 * row + 3] * g_from[col];
      to_camera[4 * row + 3] +=
          g_in[row] + m[4 * row] * g_from[0] + m[4 * row + 1] * g_from[1] + m[4 * row + 2] * g_from[2];
    }
  }
}

int32_t backward(Context* context, const Runtime* runtime, const SplatInput* splats, const CameraInput* camera,
                 const float* background, const float* rgb, const float* alpha, const float* depth,
                 const float* v_rgb, const float* v_alpha, const float* v_depth, const SplatGradients* gradients) {
  const int chunks = (splats->count + kSplatChunk - 1) / kSplatChunk;
  if (!context->slots.reserve(static_cast<size_t>(context->pair_count) * kSlot + 16)) return 1;
  if (!context->partial.reserve(static_cast<size_t>(chunks) * 12 + 12)) return 1;
  Call call{};
  call.context = context, call.splats = splats, call.camera = camera, call.background = background;
  call.rgb = rgb, call.alpha = alpha, call.depth = depth;
  call.v_rgb = v_rgb, call.v_alpha = v_alpha, call.v_depth = v_depth, call.gradients = gradients;
  camera_centre(*camera, call.camera_centre);
  runtime->parallel_for(context->tiles_x * context->tiles_y, backward_task, &call);
  runtime->parallel_for(chunks, backward_project_task, &call);
  if (gradients->world_to_cam) {
    double total[12] = {0};
    for (int chunk = 0; chunk < chunks; ++chunk)
      for (int k = 0; k < 12; ++k) total[k] += context->partial[static_cast<size_t>(chunk) * 12 + k];
    for (int k = 0; k < 12; ++k) gradients->world_to_cam[k] = static_cast<float>(total[k]);
  }
  return 0;
}

// ------------------------------------------------------------------------------------------------- pose, second order

// Tangents of one splat by the six unknowns. Layout for unknown k at [9 k]: the derivative of log2 alpha as a
// polynomial in (1, dx, dy, dx^2, dx dy, dy^2), then the derivative of red, green, blue.
void tangent_task(void* argument, int32_t chunk_index) {
  const Call& call = *static_cast<Call*>(argument);
  Context& context = *call.context;
  const SplatInput& splats = *call.splats;
  const CameraInput& camera = *call.camera;
  const float* m = camera.world_to_cam;
  const float* pivot = call.pose->pivot;
  const float k_conic = 0.5f * kLog2E;
  const int first = chunk_index * kSplatChunk, last = smaller(first + kSplatChunk, context.drawn_count);
  for (int rank = first; rank < last; ++rank) {
    const int i = static_cast<int>(context.order[rank]);
    const Drawn& d = context.drawn[rank];
    float* out = &context.tangents[static_cast<size_t>(rank) * kTangent];
    Projection p;
    if (!project_splat(splats, camera, i, p)) {
      memset(out, 0, kTangent * sizeof(float));
      continue;
    }
    const float inverse = 1.0f / p.in_cam.z;
    const float j_x = camera.fl_x * inverse, j_y = camera.fl_y * inverse;
    const float u = p.in_cam.x * inverse, v = p.in_cam.y * inverse;
    const Vec3 arm{p.in_cam.x - pivot[0], p.in_cam.y - pivot[1], p.in_cam.z - pivot[2]};
    const float i_xx = p.yy / p.det, i_xy = -p.xy / p.det, i_yy = p.xx / p.det;

    float by_x[16], by_y[16], by_z[16];
    Vec3 dir{0, 0, 0};
    float shorten = 0.0f;
    const bool view_dependent = splats.colours == nullptr && splats.sh_degree > 0;
    const int terms = (splats.sh_degree + 1) * (splats.sh_degree + 1);
    const float* sh = view_dependent ? splats.sh + static_cast<size_t>(i) * splats.sh_stride * 3 : nullptr;
    float slope[3][3] = {{0}};  // derivative of colour channel by the unit direction
    if (view_dependent) {
      const float* mean = splats.means + 3 * static_cast<size_t>(i);
      Vec3 view{mean[0] - call.camera_centre[0], mean[1] - call.camera_centre[1], mean[2] - call.camera_centre[2]};
      shorten = 1.0f / sqrtf(larger(dot(view, view), 1e-20f));
      dir = {view.x * shorten, view.y * shorten, view.z * shorten};
      harmonics_derivative(splats.sh_degree, dir.x, dir.y, dir.z, by_x, by_y, by_z);
      const float shown[3] = {d.red, d.green, d.blue};
      for (int channel = 0; channel < 3; ++channel) {
        if (shown[channel] <= 0.0f) continue;
        for (int t = 1; t < terms; ++t) {
          slope[channel][0] += by_x[t] * sh[3 * t + channel];
          slope[channel][1] += by_y[t] * sh[3 * t + channel];
          slope[channel][2] += by_z[t] * sh[3 * t + channel];
        }
      }
    }

    for (int k = 0; k < 6; ++k) {
      const Vec3 axis{k % 3 == 0 ? 1.0f : 0.0f, k % 3 == 1 ? 1.0f : 0.0f, k % 3 == 2 ? 1.0f : 0.0f};
      const bool turns = k < 3;
      const Vec3 move = turns ? cross(axis, arm) : axis;  // of the centre in camera coordinates
      const float du = (move.x - u * move.z) * inverse, dv = (move.y - v * move.z) * inverse;
      const float d_mx = camera.fl_x * du, d_my = camera.fl_y * dv;
      const float d_jx = -j_x * inverse * move.z, d_jy = -j_y * inverse * move.z;
      const float d_u = p.u_free ? du : 0.0f, d_v = p.v_free ? dv : 0.0f;
      float d_xx = 0.0f, d_xy = 0.0f, d_yy = 0.0f;
      for (int a = 0; a < 3; ++a) {
        const float t0 = p.turned[a], t1 = p.turned[3 + a], t2 = p.turned[6 + a];
        Vec3 spin{0, 0, 0};
        if (turns) spin = cross(axis, {t0, t1, t2});
        const float s = p.scale[a];
        const float d_top = (d_jx * (t0 - p.u * t2) + j_x * (spin.x - d_u * t2 - p.u * spin.z)) * s;
        const float d_low = (d_jy * (t1 - p.v * t2) + j_y * (spin.y - d_v * t2 - p.v * spin.z)) * s;
        d_xx += 2.0f * d_top * p.half[a];
        d_xy += d_top * p.half[3 + a] + d_low * p.half[a];
        d_yy += 2.0f * d_low * p.half[3 + a];
      }
      // derivative of the inverse covariance: - conic dcov conic
      const float m00 = i_xx * d_xx + i_xy * d_xy, m01 = i_xx * d_xy + i_xy * d_yy;
      const float m10 = i_xy * d_xx + i_yy * d_xy, m11 = i_xy * d_xy + i_yy * d_yy;
      const float da = -k_conic * (m00 * i_xx + m01 * i_xy);
      const float db = -2.0f * k_conic * (m00 * i_xy + m01 * i_yy);
      const float dc = -k_conic * (m10 * i_xy + m11 * i_yy);
      float d_lo = 0.0f;
      if (camera.antialiased && p.det_before > 0.0f) {
        const float n_xx = p.xx - camera.blur, n_yy = p.yy - camera.blur;
        const float before = (n_yy * d_xx - 2.0f * p.xy * d_xy + n_xx * d_yy) / p.det_before;
        const float after = i_xx * d_xx + 2.0f * i_xy * d_xy + i_yy * d_yy;
        d_lo = 0.5f * kLog2E * (before - after);
      }
      float* t = out + 9 * k;
      t[0] = d_lo;
      t[1] = 2.0f * d.a * d_mx + d.b * d_my;
      t[2] = d.b * d_mx + 2.0f * d.c * d_my;
      t[3] = -da, t[4] = -db, t[5] = -dc;
      t[6] = t[7] = t[8] = 0.0f;
      if (view_dependent) {
        // The camera moves about the pivot: the world vector from its centre to the splat changes by
        // R^T (pivot x axis) for a turn and by R^T axis for a shift.
        const Vec3 back = turns ? cross({pivot[0], pivot[1], pivot[2]}, axis) : axis;
        const Vec3 change{m[0] * back.x + m[4] * back.y + m[8] * back.z, m[1] * back.x + m[5] * back.y + m[9] * back.z,
                          m[2] * back.x + m[6] * back.y + m[10] * back.z};
        const float along = dot(change, dir);
        const Vec3 d_dir{(change.x - along * dir.x) * shorten, (change.y - along * dir.y) * shorten,
                         (change.z - along * dir.z) * shorten};
        for (int channel = 0; channel < 3; ++channel)
          t[6 + channel] = slope[channel][0] * d_dir.x + slope[channel][1] * d_dir.y + slope[channel][2] * d_dir.z;
      }
    }
  }
}

constexpr int kPoseSums = 21 + 6 + 3 + 18;  // upper triangle, right side, cost/weight/squares, gain-bias moments

void pose_tile(const Call& call, int tile, double* sums) {
  const Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const PoseStep& pose = *call.pose;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  const bool view_dependent = call.splats->colours == nullptr && call.splats->sh_degree > 0;
  alignas(64) float through[64][16], rest[3][64][16];
  alignas(64) static thread_local float jacobian[64][18][16];
  const Lanes zero = set(0.0f), one = set(1.0f);
  uint64_t alive = 0, used = 0;
  for (int block = 0; block < 64; ++block) {
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    if (!touches(camera, place)) continue;
    alive |= 1ull << block;
    store(through[block], one);
    for (int channel = 0; channel < 3; ++channel)
      read_block(call.rgb + channel * plane, camera, place, rest[channel][block]);
  }
  const uint64_t present = alive;
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes threshold = set(kAlphaMin), ceiling = set(kAlphaMax), stop = set(kStop);
  for (uint32_t pair = begin; pair < end && alive != 0; ++pair) {
    if (pair + 4 < end) {
      const uint32_t ahead = context.pair_rank[pair + 4];
      __builtin_prefetch(&context.drawn[ahead]);
      for (int line = 0; line < 4; ++line) __builtin_prefetch(&context.tangents[static_cast<size_t>(ahead) * kTangent + 16 * line]);
    }
    uint64_t blocks = context.pair_mask[pair] & alive;
    if (blocks == 0) continue;
    const uint32_t rank = context.pair_rank[pair];
    const Drawn& d = context.drawn[rank];
    const float* tangent = &context.tangents[static_cast<size_t>(rank) * kTangent];
    const float colour[3] = {d.red, d.green, d.blue};
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      Lanes dx, dy;
      const Lanes power = exponent(d, x0, y0, block, dx, dy);
      const Lanes raw = exp2_lanes(power);
      const Lanes alpha = minimum(raw, ceiling);
      const Lanes t = load(through[block]);
      const LaneMask live = both(greater_equal(alpha, threshold), greater(t, zero));
      if (!any(live)) continue;
      if (!((used >> block) & 1)) {
        memset(jacobian[block], 0, sizeof(jacobian[block]));
        used |= 1ull << block;
      }
      const Lanes weight = t * alpha;
      const Lanes next = t - weight;
      const LaneMask goes_on = both(live, greater(next, stop));
      const LaneMask stops = but_not(live, goes_on);
      const Lanes w = keep(goes_on, weight);
      const Lanes over = reciprocal(one - alpha);
      Lanes by_alpha[3];
      for (int channel = 0; channel < 3; ++channel) {
        const Lanes left = load(rest[channel][block]) - w * set(colour[channel]);
        store(rest[channel][block], left);
        by_alpha[channel] = t * set(colour[channel]) - left * over;
      }
      const Lanes gate = keep(both(goes_on, greater(ceiling, raw)), alpha * set(kLn2));
      const Lanes dxx = dx * dx, dxy = dx * dy, dyy = dy * dy;
      for (int k = 0; k < 6; ++k) {
        const float* c = tangent + 9 * k;
        const Lanes inner = mul_add(set(c[1]), dx, mul_add(set(c[2]), dy, set(c[0])));
        const Lanes outer = mul_add(set(c[3]), dxx, mul_add(set(c[4]), dxy, set(c[5]) * dyy));
        const Lanes change = gate * (inner + outer);
        float(*to)[16] = &jacobian[block][3 * k];
        for (int channel = 0; channel < 3; ++channel) {
          Lanes sum_to = mul_add(change, by_alpha[channel], load(to[channel]));
          if (view_dependent) sum_to = mul_add(w, set(c[6 + channel]), sum_to);
          store(to[channel], sum_to);
        }
      }
      Lanes t_new = pick(goes_on, next, t);
      if (any(stops)) {
        t_new = pick(stops, zero - t, t_new);
        if (!any(greater(t_new, zero))) alive &= ~(1ull << block);
      }
      store(through[block], t_new);
    }
  }
  for (int k = 0; k < kPoseSums; ++k) sums[k] = 0.0;
  alignas(64) float c[3][16], target[3][16], r[3][16], w[16], loss[16], square[16], wr[16];
  for (uint64_t blocks = present; blocks != 0; blocks &= blocks - 1) {
    const int block = __builtin_ctzll(blocks);
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    if (call.pixel_weight != nullptr) {
      read_block(call.pixel_weight, camera, place, w);
    } else {
      for (int lane = 0; lane < 16; ++lane)
        w[lane] = place.x + lane % 4 < camera.width && place.y + lane / 4 < camera.height ? 1.0f : 0.0f;
    }
    for (int channel = 0; channel < 3; ++channel) {
      read_block(call.rgb + channel * plane, camera, place, c[channel]);
      read_block(call.target + channel * plane, camera, place, target[channel]);
    }
    for (int lane = 0; lane < 16; ++lane) {
      square[lane] = 0.0f;
      for (int channel = 0; channel < 3; ++channel) {
        r[channel][lane] = pose.gain[channel] * c[channel][lane] + pose.bias[channel] - target[channel][lane];
        square[lane] += r[channel][lane] * r[channel][lane];
      }
    }
    for (int lane = 0; lane < 16; ++lane) {
      float share = 1.0f, value = 0.5f * square[lane];
      if (pose.geman > 0.0f) {
        const float scale = pose.geman * pose.geman;
        const float fall = scale / (scale + square[lane]);
        share = fall * fall;
        value *= fall;
      } else if (pose.huber > 0.0f && square[lane] > pose.huber * pose.huber) {
        const float norm = sqrtf(square[lane]);
        share = pose.huber / norm;
        value = pose.huber * (norm - 0.5f * pose.huber);
      }
      sums[29] += static_cast<double>(w[lane] * square[lane]);
      loss[lane] = w[lane] * value;
      w[lane] *= share;
      sums[27] += loss[lane];
      sums[28] += w[lane];
    }
    for (int channel = 0; channel < 3; ++channel) {
      double* to = sums + 30 + 6 * channel;
      for (int lane = 0; lane < 16; ++lane) {
        const float cw = w[lane] * c[channel][lane], tw = w[lane] * target[channel][lane];
        to[0] += w[lane], to[1] += cw, to[2] += cw * c[channel][lane];
        to[3] += tw, to[4] += cw * target[channel][lane], to[5] += tw * target[channel][lane];
      }
    }
    if (!((used >> block) & 1)) continue;
    for (int channel = 0; channel < 3; ++channel) {
      const float gain = pose.gain[channel];
      const Lanes weight = load(w) * set(gain * gain);
      for (int lane = 0; lane < 16; ++lane) wr[lane] = w[lane] * r[channel][lane] * gain;
      int at = 0;
      for (int row = 0; row < 6; ++row) {
        const Lanes left = load(jacobian[block][3 * row + channel]);
        sums[21 + row] += sum(left * load(wr));
        const Lanes weighted = left * weight;
        for (int col = row; col < 6; ++col) sums[at++] += sum(weighted * load(jacobian[block][3 * col + channel]));
      }
    }
  }
  if (call.jacobian != nullptr) {
    const float nothing[16] = {0};
    for (uint64_t blocks = present; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      const BlockPlace place = block_place(camera, tile_x, tile_y, block);
      for (int k = 0; k < 6; ++k)
        for (int channel = 0; channel < 3; ++channel)
          write_block(call.jacobian + (6 * channel + k) * plane, camera, place,
                      (used >> block) & 1 ? jacobian[block][3 * k + channel] : nothing);
    }
  }
}

void pose_task(void* argument, int32_t tile) {
  const Call& call = *static_cast<Call*>(argument);
  pose_tile(call, tile, &call.context->partial.data[static_cast<size_t>(tile) * kPoseSums]);
}

int32_t pose_step(Context* context, const Runtime* runtime, const SplatInput* splats, const CameraInput* camera,
                  const float* background, const float* rgb, const float* alpha, const float* target,
                  const float* pixel_weight, PoseStep* step, float* jacobian) {
  const int tiles = context->tiles_x * context->tiles_y;
  if (!context->tangents.reserve(static_cast<size_t>(context->drawn_count) * kTangent + 256)) return 1;
  if (!context->partial.reserve(static_cast<size_t>(tiles) * kPoseSums)) return 1;
  Call call{};
  call.context = context, call.splats = splats, call.camera = camera, call.background = background;
  call.rgb = rgb, call.alpha = alpha, call.target = target, call.pixel_weight = pixel_weight;
  call.pose = step, call.jacobian = jacobian;
  camera_centre(*camera, call.camera_centre);
  runtime->parallel_for(context->chunk_count, tangent_task, &call);
  runtime->parallel_for(tiles, pose_task, &call);
  double sums[kPoseSums] = {0};
  for (int tile = 0; tile < tiles; ++tile)
    for (int k = 0; k < kPoseSums; ++k) sums[k] += context->partial[static_cast<size_t>(tile) * kPoseSums + k];
  int at = 0;
  for (int row = 0; row < 6; ++row)
    for (int col = row; col < 6; ++col) step->hessian[6 * row + col] = step->hessian[6 * col + row] = sums[at++];
  for (int row = 0; row < 6; ++row) step->gradient[row] = sums[21 + row];
  step->cost = sums[27], step->weight = sums[28], step->squared = sums[29];
  for (int k = 0; k < 18; ++k) step->moments[k] = sums[30 + k];
  return 0;
}

// ------------------------------------------------------------------------------------------------------- life cycle

Context* create() {
  void* memory = calloc(1, sizeof(Context));
  return static_cast<Context*>(memory);
}

void destroy(Context* context) {
  if (context == nullptr) return;
  for (int chunk = 0; chunk < context->chunk_capacity; ++chunk) context->chunks[chunk].entries.release();
  context->projected.release(), context->keys.release(), context->keys_other.release(), context->order.release();
  context->order_other.release(), context->rank_of.release(), context->drawn.release(), context->chunks.release();
  context->chunk_tile.release(), context->tile_start.release(), context->pair_rank.release();
  context->pair_mask.release(), context->first_entry.release(), context->slots.release();
  context->partial.release(), context->tangents.release();
  free(context);
}

void statistics(const Context* context, int64_t out[3]) {
  out[0] = context->drawn_count;
  out[1] = context->pair_count;
  out[2] = 0;
  for (int64_t pair = 0; pair < context->pair_count; ++pair) out[2] += __builtin_popcountll(context->pair_mask[pair]);
}

const KernelTable kernel_table{SPLATAD_TEXT(SPLATAD_ISA), create, destroy,      forward, backward,
                               pose_step,                 ssim_moments, l1_ssim, statistics};

}  // namespace

extern "C" const KernelTable* SPLATAD_JOIN(splatad_kernel_, SPLATAD_ISA)() { return &kernel_table; }
