// From splats to their ellipses on the image, sixteen at a time.
#pragma once
#include "context.h"
#include "harmonics.h"
#include "vector.h"

namespace {

// base[stride * index + offset] of sixteen splats.
inline Lanes load_field(const float* base, int stride, int offset, const uint32_t index[16]) {
  alignas(64) float value[16];
  for (int lane = 0; lane < 16; ++lane) value[lane] = base[static_cast<size_t>(stride) * index[lane] + offset];
  return load(value);
}

struct View16 {  // one camera, ready for sixteen splats
  Lanes m[12];
  Lanes fl_x, fl_y, cx, cy, near_plane, blur;
  Lanes u_low, u_high, v_low, v_high;  // limits of the affine approximation: 1.15 fields of view, as in gsplat
  bool antialiased;
};

inline View16 view16(const CameraInput& camera) {
  View16 view;
  for (int k = 0; k < 12; ++k) view.m[k] = set(camera.world_to_cam[k]);
  view.fl_x = set(camera.fl_x), view.fl_y = set(camera.fl_y), view.cx = set(camera.cx), view.cy = set(camera.cy);
  view.near_plane = set(camera.near_plane), view.blur = set(camera.blur);
  view.u_low = set(-camera.cx / camera.fl_x - 0.15f * camera.width / camera.fl_x);
  view.u_high = set((camera.width - camera.cx) / camera.fl_x + 0.15f * camera.width / camera.fl_x);
  view.v_low = set(-camera.cy / camera.fl_y - 0.15f * camera.height / camera.fl_y);
  view.v_high = set((camera.height - camera.cy) / camera.fl_y + 0.15f * camera.height / camera.fl_y);
  view.antialiased = camera.antialiased != 0;
  return view;
}

struct Projection {      // of sixteen splats, with what its derivatives need
  Lanes mean[3];         // world
  Lanes x, y, z;         // centre in camera coordinates
  Lanes inverse;         // 1 / z
  Lanes u, v;            // x/z and y/z, clamped as in the Jacobian of the projection
  LaneMask u_free, v_free;  // whether the clamp left them alone
  Lanes quat[4], inverse_norm;
  Lanes rotation[9];     // of the splat, from the normalised quaternion
  Lanes turned[9];       // camera rotation times splat rotation
  Lanes scale[3];
  Lanes j_x, j_y;        // focal length / z
  Lanes half[6];         // J * turned * diag(scale): rows of the 2x3 square root of the projected covariance
  Lanes xx_before, yy_before;  // projected covariance ...
  Lanes xx, xy, yy;            // ... blur added
  Lanes det_before, det;
  Lanes compensation;    // 1 unless antialiased
  Lanes opacity;         // before compensation
  LaneMask drawable;     // in front of the near plane, finite, with a direction
};

// Source: Zwicker et al. 2001; constants of gsplat.
inline void project_sixteen(const SplatInput& splats, const View16& view, const uint32_t index[16], Projection& p) {
  const Lanes one = set(1.0f), two = set(2.0f), zero = set(0.0f);
  const Lanes* m = view.m;
  for (int axis = 0; axis < 3; ++axis) p.mean[axis] = load_field(splats.means, 3, axis, index);
  const Lanes mx = p.mean[0], my = p.mean[1], mz = p.mean[2];
  p.x = mul_add(m[0], mx, mul_add(m[1], my, mul_add(m[2], mz, m[3])));
  p.y = mul_add(m[4], mx, mul_add(m[5], my, mul_add(m[6], mz, m[7])));
  p.z = mul_add(m[8], mx, mul_add(m[9], my, mul_add(m[10], mz, m[11])));
  p.inverse = one / p.z;
  for (int c = 0; c < 4; ++c) p.quat[c] = load_field(splats.quats, 4, c, index);
  const Lanes norm = square_root(mul_add(p.quat[0], p.quat[0], mul_add(p.quat[1], p.quat[1],
                                 mul_add(p.quat[2], p.quat[2], p.quat[3] * p.quat[3]))));
  p.inverse_norm = one / norm;
  for (int c = 0; c < 4; ++c) p.quat[c] = p.quat[c] * p.inverse_norm;
  const Lanes w = p.quat[0], x = p.quat[1], y = p.quat[2], z = p.quat[3];
  Lanes* r = p.rotation;
  r[0] = one - two * mul_add(y, y, z * z), r[1] = two * (x * y - w * z), r[2] = two * mul_add(x, z, w * y);
  r[3] = two * mul_add(x, y, w * z), r[4] = one - two * mul_add(x, x, z * z), r[5] = two * (y * z - w * x);
  r[6] = two * (x * z - w * y), r[7] = two * mul_add(y, z, w * x), r[8] = one - two * mul_add(x, x, y * y);
  for (int row = 0; row < 3; ++row)
    for (int col = 0; col < 3; ++col)
      p.turned[3 * row + col] =
          mul_add(m[4 * row], r[col], mul_add(m[4 * row + 1], r[3 + col], m[4 * row + 2] * r[6 + col]));
  for (int axis = 0; axis < 3; ++axis) p.scale[axis] = exp_lanes(load_field(splats.log_scales, 3, axis, index));

  const Lanes u = p.x * p.inverse, v = p.y * p.inverse;
  p.u = minimum(maximum(u, view.u_low), view.u_high);
  p.v = minimum(maximum(v, view.v_low), view.v_high);
  p.u_free = both(greater_equal(u, view.u_low), greater_equal(view.u_high, u));
  p.v_free = both(greater_equal(v, view.v_low), greater_equal(view.v_high, v));
  p.j_x = view.fl_x * p.inverse, p.j_y = view.fl_y * p.inverse;
  Lanes xx = zero, xy = zero, yy = zero;
  for (int axis = 0; axis < 3; ++axis) {
    const Lanes top = p.j_x * (p.turned[axis] - p.u * p.turned[6 + axis]) * p.scale[axis];
    const Lanes low = p.j_y * (p.turned[3 + axis] - p.v * p.turned[6 + axis]) * p.scale[axis];
    p.half[axis] = top;
    p.half[3 + axis] = low;
    xx = mul_add(top, top, xx), xy = mul_add(top, low, xy), yy = mul_add(low, low, yy);
  }
  // Cauchy-Binet: xx * yy - xy^2 of a needle-like splat would lose all digits.
  p.det_before = zero;
  for (int axis = 0; axis < 3; ++axis) {
    const int next = (axis + 1) % 3;
    const Lanes minor = p.half[axis] * p.half[3 + next] - p.half[next] * p.half[3 + axis];
    p.det_before = mul_add(minor, minor, p.det_before);
  }
  p.xx_before = xx, p.yy_before = yy;
  p.xx = xx + view.blur, p.xy = xy, p.yy = yy + view.blur;
  p.det = mul_add(view.blur, xx + yy, mul_add(view.blur, view.blur, p.det_before));
  p.compensation = view.antialiased ? square_root(p.det_before / p.det) : one;
  p.opacity = one / (one + exp_lanes(zero - load_field(splats.logit_opacities, 1, 0, index)));
  p.drawable = both(both(greater(p.z, view.near_plane), greater(norm, set(1e-12f))),
                    both(greater(p.det, zero), greater(set(3e38f), p.det)));
}

struct Whitening {  // of the ellipse: see Drawn
  Lanes along, slant, across;
};

inline Whitening whiten(const Projection& p) {
  const Lanes k = set(0.5f * kLog2E), over_yy = set(1.0f) / p.yy;
  return {square_root(k * p.yy / p.det), p.xy * over_yy, square_root(k * over_yy)};
}

struct Direction {  // from the camera's centre to sixteen splats, unit length
  Lanes x, y, z;
  Lanes shorten;  // 1 / distance
};

inline Direction direction_to(const Projection& p, const float camera_centre[3]) {
  const Lanes x = p.mean[0] - set(camera_centre[0]), y = p.mean[1] - set(camera_centre[1]);
  const Lanes z = p.mean[2] - set(camera_centre[2]);
  const Lanes square = maximum(mul_add(x, x, mul_add(y, y, z * z)), set(1e-20f));
  Direction d;
  d.shorten = set(1.0f) / square_root(square);
  d.x = x * d.shorten, d.y = y * d.shorten, d.z = z * d.shorten;
  return d;
}

// Colours of the splats named by `drawn`'s bits seen along the unit directions: 0.5 + harmonics, clamped at 0.
void shade(const SplatInput& splats, const uint32_t index[16], uint32_t drawn, const Direction& d,
           float colour[3][16]) {
  Lanes basis[16];
  harmonics(splats.sh_degree, d.x, d.y, d.z, basis);
  const int terms = (splats.sh_degree + 1) * (splats.sh_degree + 1);
  alignas(64) float value[16][16];
  for (int k = 0; k < terms; ++k) store(value[k], basis[k]);
  for (; drawn != 0; drawn &= drawn - 1) {
    const int lane = __builtin_ctz(drawn);
    const float* sh = splats.sh + static_cast<size_t>(index[lane]) * splats.sh_stride * 3;
    float r = 0.5f, g = 0.5f, b = 0.5f;
    for (int k = 0; k < terms; ++k) {
      r += value[k][lane] * sh[3 * k];
      g += value[k][lane] * sh[3 * k + 1];
      b += value[k][lane] * sh[3 * k + 2];
    }
    colour[0][lane] = larger(r, 0.0f), colour[1][lane] = larger(g, 0.0f), colour[2][lane] = larger(b, 0.0f);
  }
}

void camera_centre(const CameraInput& camera, float centre[3]) {
  const float* m = camera.world_to_cam;
  for (int axis = 0; axis < 3; ++axis) centre[axis] = -(m[axis] * m[3] + m[4 + axis] * m[7] + m[8 + axis] * m[11]);
}

// Sixteen indices from `first`, the last one repeated where there are fewer; returns how many there are.
inline int indices_from(int first, int last, uint32_t index[16]) {
  for (int lane = 0; lane < 16; ++lane) index[lane] = static_cast<uint32_t>(smaller(first + lane, last - 1));
  return smaller(16, last - first);
}

void project_task(void* argument, int32_t chunk) {
  const Call& call = *static_cast<Call*>(argument);
  const SplatInput& splats = *call.splats;
  const CameraInput& camera = *call.camera;
  Context& context = *call.context;
  const View16 view = view16(camera);
  const Lanes zero = set(0.0f), half_px = set(0.5f);
  const Lanes right_edge = set(camera.width - 0.5f), low_edge = set(camera.height - 0.5f);
  const int first = chunk * kSplatChunk, last = smaller(first + kSplatChunk, splats.count);
  int found = 0;
  for (int start = first; start < last; start += 16) {
    uint32_t index[16];
    const int count = indices_from(start, last, index);
    Projection p;
    project_sixteen(splats, view, index, p);
    const Lanes lo = log2_lanes(maximum(p.opacity * p.compensation, set(1e-30f)));
    const Lanes reach = lo - set(kLog2AlphaMin);
    // p(d) = lo - log2(e)/2 d^T cov^-1 d; its level set log2(1/255) has half extents sqrt(2 ln(255 o) cov_ii).
    const Lanes spread = set(2.0f * kLn2) * maximum(reach, zero);
    const Lanes half_width = square_root(spread * p.xx), half_height = square_root(spread * p.yy);
    const Lanes mx = mul_add(view.fl_x, p.x * p.inverse, view.cx), my = mul_add(view.fl_y, p.y * p.inverse, view.cy);
    const LaneMask across = both(greater(mx + half_width, half_px), greater(right_edge, mx - half_width));
    const LaneMask down = both(greater(my + half_height, half_px), greater(low_edge, my - half_height));
    const LaneMask shown = both(both(p.drawable, greater(reach, zero)), both(across, down));
    const uint32_t drawn = bits(shown) & (0xffffu >> (16 - count));
    for (int lane = 0; lane < count; ++lane) context.shown[start + lane] = (drawn >> lane) & 1 ? kShown : 0;
    if (drawn == 0) continue;
    alignas(64) float field[10][16], colour[3][16];
    const Whitening white = whiten(p);
    store(field[0], mx), store(field[1], my);
    store(field[2], white.along), store(field[3], white.slant), store(field[4], white.across);
    store(field[5], lo), store(field[6], p.z);
    store(field[7], half_width), store(field[8], half_height);
    if (splats.colours == nullptr) shade(splats, index, drawn, direction_to(p, call.camera_centre), colour);
    for (uint32_t left = drawn; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const int i = start + lane;
      Drawn& d = context.projected[i];
      d.mx = field[0][lane], d.my = field[1][lane];
      d.along = field[2][lane], d.slant = field[3][lane], d.across = field[4][lane];
      d.lo = field[5][lane], d.depth = field[6][lane];
      d.half_width = field[7][lane], d.half_height = field[8][lane];
      if (splats.colours != nullptr) {
        const float* given = splats.colours + 3 * static_cast<size_t>(i);
        d.red = given[0], d.green = given[1], d.blue = given[2];
      } else {
        d.red = colour[0][lane], d.green = colour[1][lane], d.blue = colour[2][lane];
        context.shown[i] = static_cast<uint8_t>(kShown | (d.red > 0.0f ? kRed : 0) | (d.green > 0.0f ? kGreen : 0) |
                                                (d.blue > 0.0f ? kBlue : 0));
      }
      memcpy(&context.keys_other[first + found], &d.depth, sizeof(uint32_t));
      context.order_other[first + found] = static_cast<uint32_t>(i);
      ++found;
    }
  }
  context.chunk_visible[chunk] = found;
}

}  // namespace
