// From gradients by the pixels to gradients by every parameter and the camera.
#pragma once
#include "composite.h"
#include "context.h"
#include "project.h"
#include "vector.h"

namespace {

// Slot layout: sums over the pixels of g, g p, g q, g p^2, g p q, g q^2 with g = dL/d(ln alpha) and p, q as in Drawn,
// then of weight * v for red, green, blue, depth, and of the weight alone.
enum Slot { kG, kGp, kGq, kGpp, kGpq, kGqq, kToRed, kToGreen, kToBlue, kToDepth, kWeight, kSums };

struct alignas(64) BackwardState {
  float through[16], behind[16], v_red[16], v_green[16], v_blue[16], v_depth[16];
  StoredMask open;  // the pixels that have not stopped
};

template <bool kDepth>
void backward_tile(const Call& call, int tile) {
  Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  if (begin == end) return;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  BackwardState state[64];
  const Lanes zero = set(0.0f), one = set(1.0f);
  uint64_t alive = context.tile_blocks[tile];
  for (uint64_t blocks = alive; blocks != 0; blocks &= blocks - 1) {
    const int block = __builtin_ctzll(blocks);
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    alignas(64) float value[16];
    BackwardState& b = state[block];
    float* const v[3] = {b.v_red, b.v_green, b.v_blue};
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
      read_block(call.v_depth, camera, place, b.v_depth);
      read_block(call.depth, camera, place, value);
      rest = mul_add(load(value), load(b.v_depth), rest);
    }
    store(b.behind, rest);
    store(b.through, one);
    store_mask(b.open, greater(one, zero));
  }
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes ceiling = set(kAlphaMax);
  for (uint32_t at = begin; at < end; ++at) {
    if (at + 3 < end) __builtin_prefetch(&context.slots[static_cast<size_t>(context.pairs[at + 3]->slot) * kSlot], 1);
    if (at + kAhead < end) __builtin_prefetch(context.pairs[at + kAhead]);
    const Pair& pair = *context.pairs[at];
    float* slot = &context.slots[static_cast<size_t>(pair.slot) * kSlot];
    uint64_t blocks = pair.mask & alive;
    if (blocks == 0) {
      store(slot, zero);
      continue;
    }
    PairLanes lanes;
    pair_lanes(pair, x0, y0, lanes);
    Lanes g0 = zero, gp = zero, gq = zero, gpp = zero, gpq = zero, gqq = zero;
    Lanes to_red = zero, to_green = zero, to_blue = zero, to_depth = zero, weights = zero;
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      BackwardState& b = state[block];
      Lanes p, q;
      const Lanes raw = exp2_lanes(exponent(lanes, block, p, q));
      const Lanes alpha = minimum(raw, ceiling);
      const Passage passage = pass_block(alpha, load(b.through), b.open, block, alive);
      const Lanes w = passage.weight;
      const Lanes vr = load(b.v_red), vg = load(b.v_green), vb = load(b.v_blue);
      weights = weights + w;
      to_red = mul_add(w, vr, to_red);
      to_green = mul_add(w, vg, to_green);
      to_blue = mul_add(w, vb, to_blue);
      Lanes seen = mul_add(set(pair.red), vr, mul_add(set(pair.green), vg, set(pair.blue) * vb));
      if (kDepth) {
        const Lanes vd = load(b.v_depth);
        to_depth = mul_add(w, vd, to_depth);
        seen = mul_add(set(pair.depth), vd, seen);
      }
      const Lanes shown = w * seen;
      const Lanes rest = load(b.behind) - shown;
      store(b.behind, rest);
      // d alpha / d ln alpha = alpha, and nothing passes the clamp at 0.999.
      const Lanes g = keep(both(passage.live, greater(ceiling, raw)), shown - rest * (alpha * reciprocal(one - alpha)));
      g0 = g0 + g;
      const Lanes g_p = g * p, g_q = g * q;
      gp = gp + g_p;
      gq = gq + g_q;
      gpp = mul_add(g_p, p, gpp);
      gpq = mul_add(g_p, q, gpq);
      gqq = mul_add(g_q, q, gqq);
      store(b.through, passage.next);
    }
    sum_four(g0, gp, gq, gpp, slot);
    sum_four(gpq, gqq, to_red, to_green, slot + 4);
    sum_four(to_blue, to_depth, weights, zero, slot + 8);
  }
}

void backward_task(void* argument, int32_t place) {
  const Call& call = *static_cast<Call*>(argument);
  const int tile = static_cast<int>(call.context->tile_order[place]);
  if (call.v_depth != nullptr)
    backward_tile<true>(call, tile);
  else
    backward_tile<false>(call, tile);
}

// Writes `value[field]` of `count` splats from `first` as rows of `fields` floats; nothing where `to` is null.
inline void write_fields(float* to, int first, int count, int fields, const Lanes* value) {
  if (to == nullptr) return;
  alignas(64) float field[4][16];
  for (int k = 0; k < fields; ++k) store(field[k], value[k]);
  to += static_cast<size_t>(first) * fields;
  for (int lane = 0; lane < count; ++lane)
    for (int k = 0; k < fields; ++k) to[fields * lane + k] = field[k][lane];
}

void write_zeros(const SplatGradients& out, size_t first, size_t count, size_t sh_floats) {
  if (out.means) memset(out.means + 3 * first, 0, 3 * sizeof(float) * count);
  if (out.quats) memset(out.quats + 4 * first, 0, 4 * sizeof(float) * count);
  if (out.log_scales) memset(out.log_scales + 3 * first, 0, 3 * sizeof(float) * count);
  if (out.logit_opacities) memset(out.logit_opacities + first, 0, sizeof(float) * count);
  if (out.sh) memset(out.sh + sh_floats * first, 0, sh_floats * sizeof(float) * count);
  if (out.colours) memset(out.colours + 3 * first, 0, 3 * sizeof(float) * count);
  if (out.means2d) memset(out.means2d + 2 * first, 0, 2 * sizeof(float) * count);
  if (out.weights) memset(out.weights + first, 0, sizeof(float) * count);
}

// Gradient of the loss by the unit direction, from that by the colour, of the splats named by `drawn`'s bits; and by
// the harmonics' coefficients, which it writes where `out_sh` is not null.
void shade_backward(const SplatInput& splats, int first, int count, uint32_t drawn, const Direction& d,
                    const Lanes v_colour[3], float* out_sh, Lanes v_direction[3]) {
  const int terms = (splats.sh_degree + 1) * (splats.sh_degree + 1);
  const size_t sh_floats = static_cast<size_t>(splats.sh_stride) * 3;
  alignas(64) float colour[3][16], pull[16][16];
  for (int channel = 0; channel < 3; ++channel) store(colour[channel], v_colour[channel]);
  if (out_sh != nullptr) {
    Lanes basis[16];
    harmonics(splats.sh_degree, d.x, d.y, d.z, basis);
    alignas(64) float value[16][16];
    for (int k = 0; k < terms; ++k) store(value[k], basis[k]);
    for (int lane = 0; lane < count; ++lane) {
      float* to = out_sh + sh_floats * (first + lane);
      if (((drawn >> lane) & 1) == 0) {
        memset(to, 0, sh_floats * sizeof(float));
        continue;
      }
      const float r = colour[0][lane], g = colour[1][lane], b = colour[2][lane];
      for (int k = 0; k < terms; ++k) {
        const float share = value[k][lane];
        to[3 * k] = share * r, to[3 * k + 1] = share * g, to[3 * k + 2] = share * b;
      }
      if (terms < splats.sh_stride) memset(to + 3 * terms, 0, (sh_floats - 3 * terms) * sizeof(float));
    }
  }
  for (int axis = 0; axis < 3; ++axis) v_direction[axis] = set(0.0f);
  if (splats.sh_degree == 0) return;
  Lanes by_x[16], by_y[16], by_z[16];
  harmonics_derivative(splats.sh_degree, d.x, d.y, d.z, by_x, by_y, by_z);
  memset(pull, 0, sizeof(pull));
  for (uint32_t left = drawn; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const float* sh = splats.sh + sh_floats * (first + lane);
    const float r = colour[0][lane], g = colour[1][lane], b = colour[2][lane];
    for (int k = 1; k < terms; ++k) pull[k][lane] = sh[3 * k] * r + sh[3 * k + 1] * g + sh[3 * k + 2] * b;
  }
  for (int k = 1; k < terms; ++k) {
    const Lanes value = load(pull[k]);
    v_direction[0] = mul_add(by_x[k], value, v_direction[0]);
    v_direction[1] = mul_add(by_y[k], value, v_direction[1]);
    v_direction[2] = mul_add(by_z[k], value, v_direction[2]);
  }
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
  const View16 view = view16(camera);
  const Lanes* m = view.m;
  const Lanes zero = set(0.0f), one = set(1.0f), two = set(2.0f), half = set(0.5f);
  const size_t sh_floats = static_cast<size_t>(splats.sh_stride) * 3;
  for (int start = first; start < last; start += 16) {
    uint32_t index[16];
    const int count = indices_from(start, last, index);
    uint32_t drawn = 0;
    alignas(64) float sums[16][kSlot];
    LaneMask bright[3];  // the channels not clamped at 0
    alignas(64) float flags[4][16] = {{0}};
    const float* slot = &context.slots[context.chunk_slot[chunk_index] * static_cast<size_t>(kSlot)];
    for (int lane = 0; lane < 16; ++lane) {
      Lanes total = zero;
      const uint8_t shown = lane < count ? context.shown[start + lane] : 0;
      if (shown != 0) {
        const SlotRange range = context.slot_range[start + lane];
        const float* from = slot + static_cast<size_t>(range.first) * kSlot;
        for (uint32_t k = 0; k < range.count; ++k) total = total + load(from + k * kSlot);
        drawn |= 1u << lane;
        flags[0][lane] = 1.0f;
        for (int channel = 0; channel < 3; ++channel) flags[1 + channel][lane] = (shown >> (1 + channel)) & 1;
      }
      store(sums[lane], total);
    }
    for (int channel = 0; channel < 3; ++channel) bright[channel] = greater(load(flags[1 + channel]), zero);
    if (drawn == 0) {
      write_zeros(out, start, count, sh_floats);
      continue;
    }
    alignas(64) float by_slot[kSums][16];
    for (int k = 0; k < kSums; ++k)
      for (int lane = 0; lane < 16; ++lane) by_slot[k][lane] = sums[lane][k];
    Lanes s[kSums];
    for (int k = 0; k < kSums; ++k) s[k] = load(by_slot[k]);
    Projection p;
    project_sixteen(splats, view, index, p);
    // What was not drawn has sums of zero, but zero times infinity is not a number: such lanes are set to zero below.
    const LaneMask shown = greater(load(flags[0]), zero);

    // ln alpha = ln opacity - d^T cov^-1 d / 2; with w = cov^-1 d its derivative by the centre is w and by the
    // covariance w w^T / 2. In Drawn's coordinates w = 2 ln 2 (along p, across q - slant along p).
    const Whitening white = whiten(p);
    const Lanes by_p = set(2.0f * kLn2) * white.along, by_q = set(2.0f * kLn2) * white.across;
    const Lanes lean = zero - white.slant * by_p;
    const Lanes g_mx = by_p * s[kGp];
    const Lanes g_my = mul_add(by_q, s[kGq], lean * s[kGp]);
    const Lanes q_row = mul_add(by_q, s[kGpq], lean * s[kGpp]);  // sum of g p w_y
    Lanes h[3];  // dL/dcov, a symmetric matrix
    h[0] = half * by_p * by_p * s[kGpp];
    h[1] = half * by_p * q_row;
    h[2] = half * mul_add(by_q, mul_add(by_q, s[kGqq], lean * s[kGpq]), lean * q_row);
    const Lanes over = one / p.det;
    const Lanes i_xx = p.yy * over, i_xy = zero - p.xy * over, i_yy = p.xx * over;  // inverse of the covariance
    const Lanes g_log_opacity = s[kG];
    if (view.antialiased) {
      // ln compensation = (ln det_before - ln det) / 2; the derivative of ln det is the inverse.
      const Lanes share = keep(greater(p.det_before, set(1e-30f)), half * g_log_opacity);
      const Lanes over_before = one / maximum(p.det_before, set(1e-30f));
      h[0] = mul_add(share, p.yy_before * over_before - i_xx, h[0]);
      h[1] = mul_add(share, zero - p.xy * over_before - i_xy, h[1]);
      h[2] = mul_add(share, p.xx_before * over_before - i_yy, h[2]);
    }
    const Lanes g_logit = keep(shown, g_log_opacity * (one - p.opacity));
    write_fields(out.logit_opacities, start, count, 1, &g_logit);
    const Lanes g_centre[2] = {keep(shown, g_mx), keep(shown, g_my)};
    write_fields(out.means2d, start, count, 2, g_centre);
    write_fields(out.weights, start, count, 1, &s[kWeight]);

    // cov = half half^T: gradient by the 2x3 square root, then by its factors.
    Lanes g_turned[9], g_scale[3];
    Lanes g_jx = zero, g_jy = zero, g_u = zero, g_v = zero;
    for (int axis = 0; axis < 3; ++axis) {
      const Lanes g_top = two * mul_add(h[0], p.half[axis], h[1] * p.half[3 + axis]);
      const Lanes g_low = two * mul_add(h[1], p.half[axis], h[2] * p.half[3 + axis]);
      const Lanes sc = p.scale[axis];
      const Lanes t0 = p.turned[axis], t1 = p.turned[3 + axis], t2 = p.turned[6 + axis];
      const Lanes top_scaled = g_top * sc, low_scaled = g_low * sc;
      const Lanes top_j = top_scaled * p.j_x, low_j = low_scaled * p.j_y;
      g_turned[axis] = top_j;
      g_turned[3 + axis] = low_j;
      g_turned[6 + axis] = zero - mul_add(top_j, p.u, low_j * p.v);
      g_scale[axis] = keep(shown, mul_add(g_top, p.half[axis], g_low * p.half[3 + axis]));  // by ln scale
      g_jx = mul_add(top_scaled, t0 - p.u * t2, g_jx);
      g_jy = mul_add(low_scaled, t1 - p.v * t2, g_jy);
      g_u = g_u - top_j * t2;
      g_v = g_v - low_j * t2;
    }
    write_fields(out.log_scales, start, count, 3, g_scale);
    // j_x = fl_x / z, u = x / z (where free), mx = fl_x x / z + cx.
    const Lanes u = p.x * p.inverse, v = p.y * p.inverse;
    const Lanes through_u = mul_add(g_mx, view.fl_x, keep(p.u_free, g_u));
    const Lanes through_v = mul_add(g_my, view.fl_y, keep(p.v_free, g_v));
    Lanes g_cam[3];
    g_cam[0] = keep(shown, through_u * p.inverse);
    g_cam[1] = keep(shown, through_v * p.inverse);
    const Lanes inward = mul_add(through_u, u, through_v * v) + mul_add(g_jx, p.j_x, g_jy * p.j_y);
    g_cam[2] = keep(shown, s[kToDepth] - inward * p.inverse);

    if (out.quats) {  // turned = R_cam * rotation
      Lanes g[9];
      for (int row = 0; row < 3; ++row)
        for (int col = 0; col < 3; ++col)
          g[3 * row + col] =
              mul_add(m[row], g_turned[col], mul_add(m[4 + row], g_turned[3 + col], m[8 + row] * g_turned[6 + col]));
      const Lanes w = p.quat[0], x = p.quat[1], y = p.quat[2], z = p.quat[3];
      const Lanes s01 = g[1] + g[3], s02 = g[2] + g[6], s12 = g[5] + g[7];
      const Lanes d21 = g[7] - g[5], d02 = g[2] - g[6], d10 = g[3] - g[1];
      Lanes q[4];
      q[0] = two * mul_add(x, d21, mul_add(y, d02, z * d10));
      q[1] = two * mul_add(y, s01, mul_add(z, s02, w * d21 - two * x * (g[4] + g[8])));
      q[2] = two * mul_add(x, s01, mul_add(z, s12, w * d02 - two * y * (g[0] + g[8])));
      q[3] = two * mul_add(x, s02, mul_add(y, s12, w * d10 - two * z * (g[0] + g[4])));
      const Lanes along = mul_add(w, q[0], mul_add(x, q[1], mul_add(y, q[2], z * q[3])));
      for (int c = 0; c < 4; ++c) q[c] = keep(shown, (q[c] - along * p.quat[c]) * p.inverse_norm);
      write_fields(out.quats, start, count, 4, q);
    }

    // Colour, and through the viewing direction back to mean and camera.
    Lanes g_view[3] = {zero, zero, zero};  // by the vector from camera centre to splat, world axes
    if (splats.colours != nullptr) {
      write_fields(out.colours, start, count, 3, &s[kToRed]);
    } else {
      const Direction d = direction_to(p, call.camera_centre);
      Lanes g_colour[3], g_dir[3];
      for (int channel = 0; channel < 3; ++channel)
        g_colour[channel] = keep(bright[channel], s[kToRed + channel]);
      shade_backward(splats, start, count, drawn, d, g_colour, out.sh, g_dir);
      if (splats.sh_degree > 0) {
        const Lanes along = mul_add(g_dir[0], d.x, mul_add(g_dir[1], d.y, g_dir[2] * d.z));
        g_view[0] = keep(shown, (g_dir[0] - along * d.x) * d.shorten);
        g_view[1] = keep(shown, (g_dir[1] - along * d.y) * d.shorten);
        g_view[2] = keep(shown, (g_dir[2] - along * d.z) * d.shorten);
      }
    }
    if (out.means) {
      Lanes g_mean[3];
      for (int axis = 0; axis < 3; ++axis)
        g_mean[axis] =
            mul_add(m[axis], g_cam[0], mul_add(m[4 + axis], g_cam[1], mul_add(m[8 + axis], g_cam[2], g_view[axis])));
      write_fields(out.means, start, count, 3, g_mean);
    }
    if (out.world_to_cam) {
      // x_cam = R x + t; the camera centre is -R^T t, so view = x + R^T t.
      for (int row = 0; row < 3; ++row) {
        alignas(16) float total[4];
        Lanes by[3];
        for (int col = 0; col < 3; ++col) {
          const Lanes turn = mul_add(g_turned[3 * row], p.rotation[3 * col],
                                     mul_add(g_turned[3 * row + 1], p.rotation[3 * col + 1],
                                             g_turned[3 * row + 2] * p.rotation[3 * col + 2]));
          by[col] = mul_add(g_cam[row], p.mean[col], mul_add(m[4 * row + 3], g_view[col], keep(shown, turn)));
          by[col] = keep(shown, by[col]);
        }
        const Lanes shift = mul_add(m[4 * row], g_view[0],
                                    mul_add(m[4 * row + 1], g_view[1], mul_add(m[4 * row + 2], g_view[2], g_cam[row])));
        // The lanes past the end repeat the last splat.
        const Lanes counted = load(flags[0]);
        sum_four(counted * by[0], counted * by[1], counted * by[2], counted * shift, total);
        for (int col = 0; col < 4; ++col) to_camera[4 * row + col] += total[col];
      }
    }
  }
}

}  // namespace
