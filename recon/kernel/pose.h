// The normal equations of the photometric residual, in one pass: what Gauss-Newton and Levenberg-Marquardt need.
#pragma once
#include "composite.h"
#include "context.h"
#include "project.h"
#include "vector.h"

namespace {

// Change of the inverse of a symmetric matrix with that of the matrix, both as xx, xy, yy: - inverse change inverse.
inline void through_inverse(Lanes i_xx, Lanes i_xy, Lanes i_yy, Lanes g_xx, Lanes g_xy, Lanes g_yy, Lanes out[3]) {
  const Lanes zero = set(0.0f);
  const Lanes m00 = mul_add(i_xx, g_xx, i_xy * g_xy), m01 = mul_add(i_xx, g_xy, i_xy * g_yy);
  const Lanes m10 = mul_add(i_xy, g_xx, i_yy * g_xy), m11 = mul_add(i_xy, g_xy, i_yy * g_yy);
  out[0] = zero - mul_add(m00, i_xx, m01 * i_xy);
  out[1] = zero - mul_add(m00, i_xy, m01 * i_yy);
  out[2] = zero - mul_add(m10, i_xy, m11 * i_yy);
}

// Tangents of each splat by the unknowns. Layout for unknown k at [9 k]: the derivative of log2 alpha as a
// polynomial in (1, dx, dy, dx^2, dx dy, dy^2), then the derivative of red, green, blue.
void tangent_task(void* argument, int32_t chunk_index) {
  const Call& call = *static_cast<Call*>(argument);
  Context& context = *call.context;
  const SplatInput& splats = *call.splats;
  const View16 view = view16(*call.camera);
  const Lanes* m = view.m;
  const float* pivot = call.pose->pivot;
  const int unknowns = call.pose->unknowns;
  const Lanes zero = set(0.0f), one = set(1.0f), two = set(2.0f), half = set(0.5f), log2_e = set(kLog2E);
  const bool view_dependent = splats.colours == nullptr && splats.sh_degree > 0;
  const int terms = (splats.sh_degree + 1) * (splats.sh_degree + 1);
  const int first = chunk_index * kSplatChunk, last = smaller(first + kSplatChunk, context.drawn_count);
  for (int start = first; start < last; start += 16) {
    uint32_t index[16];
    for (int lane = 0; lane < 16; ++lane) index[lane] = context.order[smaller(start + lane, last - 1)];
    const int count = smaller(16, last - start);
    Projection p;
    project_sixteen(splats, view, index, p);
    const Lanes u = p.x * p.inverse, v = p.y * p.inverse;
    const Lanes arm[3] = {p.x - set(pivot[0]), p.y - set(pivot[1]), p.z - set(pivot[2])};
    const Lanes over = one / p.det;
    const Lanes i_xx = p.yy * over, i_xy = zero - p.xy * over, i_yy = p.xx * over;
    const LaneMask solid = greater(p.det_before, set(1e-30f));
    const Lanes over_before = one / maximum(p.det_before, set(1e-30f));

    Direction d{zero, zero, zero, zero};
    Lanes slope[3][3];  // derivative of a colour channel by the unit direction
    if (view_dependent) {
      d = direction_to(p, call.camera_centre);
      Lanes by_x[16], by_y[16], by_z[16];
      harmonics_derivative(splats.sh_degree, d.x, d.y, d.z, by_x, by_y, by_z);
      alignas(64) float bright[3][16];
      for (int lane = 0; lane < 16; ++lane)
        for (int channel = 0; channel < 3; ++channel)
          bright[channel][lane] = (context.shown[index[lane]] >> (1 + channel)) & 1;
      for (int channel = 0; channel < 3; ++channel) {
        Lanes total[3] = {zero, zero, zero};
        for (int k = 1; k < terms; ++k) {
          const Lanes sh = load_field(splats.sh, 3 * splats.sh_stride, 3 * k + channel, index);
          total[0] = mul_add(by_x[k], sh, total[0]);
          total[1] = mul_add(by_y[k], sh, total[1]);
          total[2] = mul_add(by_z[k], sh, total[2]);
        }
        const LaneMask free = greater(load(bright[channel]), zero);  // not clamped at 0
        for (int axis = 0; axis < 3; ++axis) slope[channel][axis] = keep(free, total[axis]);
      }
    }

    alignas(64) float tangent[9 * kPoseMost][16];
    for (int k = 0; k < unknowns; ++k) {
      const bool turns = k < 3, zooms = k == 6;
      const int i = k % 3, next = (k + 1) % 3, after = (k + 2) % 3;
      Lanes move[3] = {zero, zero, zero};  // of the centre in camera coordinates: axis x arm, or axis
      if (turns)
        move[next] = zero - arm[after], move[after] = arm[next];
      else if (!zooms)
        move[i] = one;
      const Lanes du = (move[0] - u * move[2]) * p.inverse, dv = (move[1] - v * move[2]) * p.inverse;
      const Lanes d_mx = view.fl_x * (zooms ? u : du), d_my = view.fl_y * (zooms ? v : dv);
      const Lanes recede = zooms ? one : zero - p.inverse * move[2];
      const Lanes d_jx = p.j_x * recede, d_jy = p.j_y * recede;
      // The limits to which u and v are held go with 1 / focal length.
      const Lanes d_u = zooms ? keep(p.u_free, p.u) - p.u : keep(p.u_free, du);
      const Lanes d_v = zooms ? keep(p.v_free, p.v) - p.v : keep(p.v_free, dv);
      Lanes d_xx = zero, d_xy = zero, d_yy = zero;
      for (int a = 0; a < 3; ++a) {
        const Lanes t0 = p.turned[a], t1 = p.turned[3 + a], t2 = p.turned[6 + a];
        const Lanes along[3] = {t0, t1, t2};
        Lanes spin[3] = {zero, zero, zero};
        if (turns) spin[next] = zero - along[after], spin[after] = along[next];
        const Lanes d_top =
            mul_add(d_jx, t0 - p.u * t2, p.j_x * (spin[0] - d_u * t2 - p.u * spin[2])) * p.scale[a];
        const Lanes d_low =
            mul_add(d_jy, t1 - p.v * t2, p.j_y * (spin[1] - d_v * t2 - p.v * spin[2])) * p.scale[a];
        d_xx = mul_add(two * d_top, p.half[a], d_xx);
        d_xy = mul_add(d_top, p.half[3 + a], mul_add(d_low, p.half[a], d_xy));
        d_yy = mul_add(two * d_low, p.half[3 + a], d_yy);
      }
      Lanes inverse_change[3];  // of the inverse covariance: - conic dcov conic
      through_inverse(i_xx, i_xy, i_yy, d_xx, d_xy, d_yy, inverse_change);
      Lanes d_lo = zero;
      if (view.antialiased) {
        const Lanes before =
            mul_add(p.yy_before, d_xx, p.xx_before * d_yy - two * p.xy * d_xy) * over_before;
        const Lanes after_blur = mul_add(i_xx, d_xx, mul_add(two * i_xy, d_xy, i_yy * d_yy));
        d_lo = keep(solid, half * log2_e * (before - after_blur));
      }
      float(*t)[16] = &tangent[9 * k];
      store(t[0], d_lo);
      store(t[1], log2_e * mul_add(i_xx, d_mx, i_xy * d_my));
      store(t[2], log2_e * mul_add(i_xy, d_mx, i_yy * d_my));
      store(t[3], set(-0.5f * kLog2E) * inverse_change[0]);
      store(t[4], set(-kLog2E) * inverse_change[1]);
      store(t[5], set(-0.5f * kLog2E) * inverse_change[2]);
      for (int channel = 0; channel < 3; ++channel) store(t[6 + channel], zero);
      if (view_dependent && !zooms) {
        // The camera moves about the pivot: the world vector from its centre to the splat changes by
        // R^T (pivot x axis) for a turn and by R^T axis for a shift.
        float back[3] = {0.0f, 0.0f, 0.0f};
        if (turns)
          back[next] = pivot[after], back[after] = -pivot[next];
        else
          back[i] = 1.0f;
        Lanes change[3];
        for (int axis = 0; axis < 3; ++axis)
          change[axis] = m[axis] * set(back[0]) + m[4 + axis] * set(back[1]) + m[8 + axis] * set(back[2]);
        const Lanes along = mul_add(change[0], d.x, mul_add(change[1], d.y, change[2] * d.z));
        const Lanes d_dir[3] = {(change[0] - along * d.x) * d.shorten, (change[1] - along * d.y) * d.shorten,
                                (change[2] - along * d.z) * d.shorten};
        for (int channel = 0; channel < 3; ++channel)
          store(t[6 + channel], mul_add(slope[channel][0], d_dir[0],
                                        mul_add(slope[channel][1], d_dir[1], slope[channel][2] * d_dir[2])));
      }
    }
    for (int lane = 0; lane < count; ++lane) {
      float* out = &context.tangents[static_cast<size_t>(start + lane) * kTangent];
      for (int k = 0; k < 9 * unknowns; ++k) out[k] = tangent[k][lane];
    }
  }
}

// Sums of a tile: upper triangle of the normal matrix, right side, then cost, weight, squares, moments, cross moments.
constexpr int kPoseTriangle = kPoseMost * (kPoseMost + 1) / 2;
constexpr int kRightAt = kPoseTriangle, kCostAt = kRightAt + kPoseMost, kMomentAt = kCostAt + 3;
constexpr int kCrossAt = kMomentAt + 18, kPoseSums = kCrossAt + 6 * kPoseMost;
constexpr size_t kTileJacobian = 64 * 3 * kPoseMost * 16;  // floats

using BlockJacobian = float[3 * kPoseMost][16];  // row 3 unknown + channel

// The Jacobian of a tile's pixels, front to back; returns the blocks that any splat touched.
template <int kUnknowns>
uint64_t tile_jacobian(const Call& call, int tile, uint64_t present, BlockJacobian* jacobian) {
  const Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  const bool view_dependent = call.splats->colours == nullptr && call.splats->sh_degree > 0;
  alignas(64) float through[64][16], rest[3][64][16];
  StoredMask open[64];
  const Lanes zero = set(0.0f), one = set(1.0f);
  uint64_t alive = present, used = 0;
  for (uint64_t blocks = present; blocks != 0; blocks &= blocks - 1) {
    const int block = __builtin_ctzll(blocks);
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    store(through[block], one);
    store_mask(open[block], greater(one, zero));
    for (int channel = 0; channel < 3; ++channel)
      read_block(call.rgb + channel * plane, camera, place, rest[channel][block]);
  }
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes ceiling = set(kAlphaMax);
  for (uint32_t at = begin; at < end && alive != 0; ++at) {
    if (at + 4 < end) {
      const float* ahead = &context.tangents[static_cast<size_t>(context.pairs[at + 4]->rank) * kTangent];
      for (int line = 0; line < 4; ++line) __builtin_prefetch(ahead + 16 * line);
    }
    if (at + kAhead < end) __builtin_prefetch(context.pairs[at + kAhead]);
    const Pair& pair = *context.pairs[at];
    uint64_t blocks = pair.mask & alive;
    if (blocks == 0) continue;
    const float* tangent = &context.tangents[static_cast<size_t>(pair.rank) * kTangent];
    const float colour[3] = {pair.red, pair.green, pair.blue};
    PairLanes lanes;
    pair_lanes(pair, x0, y0, lanes);
    const Lanes from_x = x0 - set(pair.mx), from_y = y0 - set(pair.my);
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      Lanes p, q;
      const Lanes raw = exp2_lanes(exponent(lanes, block, p, q));
      const Lanes dx = from_x + set(kBlockOffset[block & 7]), dy = from_y + set(kBlockOffset[block >> 3]);
      const Lanes alpha = minimum(raw, ceiling);
      const Lanes t = load(through[block]);
      const Passage passage = pass_block(alpha, t, open[block], block, alive);
      if (!any(passage.live)) continue;
      if (!((used >> block) & 1)) {
        memset(jacobian[block], 0, sizeof(jacobian[block]));
        used |= 1ull << block;
      }
      const Lanes w = passage.weight;
      const Lanes over = reciprocal(one - alpha);
      Lanes by_alpha[3];
      for (int channel = 0; channel < 3; ++channel) {
        const Lanes left = load(rest[channel][block]) - w * set(colour[channel]);
        store(rest[channel][block], left);
        by_alpha[channel] = t * set(colour[channel]) - left * over;
      }
      const Lanes gate = keep(both(passage.live, greater(ceiling, raw)), alpha * set(kLn2));
      const Lanes dxx = dx * dx, dxy = dx * dy, dyy = dy * dy;
      for (int k = 0; k < kUnknowns; ++k) {
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
      store(through[block], passage.next);
    }
  }
  return used;
}

// Residuals of a block, their robust weights, and all sums that need no Jacobian. Channels cut to 0..1 get no weight.
struct BlockResidual {
  alignas(64) float r[3][16];   // residual
  alignas(64) float w[3][16];   // weight by channel: what a derivative of the render counts
  alignas(64) float c[3][16];   // render without background
  alignas(64) float a[16];      // alpha
};

void block_residual(const Call& call, const BlockPlace& place, BlockResidual& out, double* sums) {
  const CameraInput& camera = *call.camera;
  const PoseStep& pose = *call.pose;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  alignas(64) float target[3][16], weights[16];
  if (call.pixel_weight != nullptr) {
    read_block(call.pixel_weight, camera, place, weights);
  } else {
    for (int lane = 0; lane < 16; ++lane)
      weights[lane] = place.x + lane % 4 < camera.width && place.y + lane / 4 < camera.height ? 1.0f : 0.0f;
  }
  read_block(call.alpha, camera, place, out.a);
  const Lanes zero = set(0.0f), one = set(1.0f), half = set(0.5f), base = load(weights), a = load(out.a);
  Lanes square = zero, uncut[3];  // uncut: 1 where the channel is within 0..1, else 0
  for (int channel = 0; channel < 3; ++channel) {
    read_block(call.rgb + channel * plane, camera, place, out.c[channel]);
    read_block(call.target + channel * plane, camera, place, target[channel]);
    const Lanes shown = mul_add(set(pose.gain[channel]), load(out.c[channel]), set(pose.bias[channel]));
    const Lanes within = minimum(maximum(shown, zero), one);
    uncut[channel] = keep(both(greater_equal(shown, zero), greater_equal(one, shown)), one);
    const Lanes r = within - load(target[channel]);
    store(out.r[channel], r);
    square = mul_add(r, r, square);
  }
  Lanes share = one, value = half * square;
  if (pose.geman > 0.0f) {
    const Lanes scale = set(pose.geman * pose.geman);
    const Lanes fall = scale / (scale + square);
    share = fall * fall;
    value = value * fall;
  } else if (pose.huber > 0.0f) {
    const Lanes huber = set(pose.huber);
    const LaneMask outside = greater(square, huber * huber);
    if (any(outside)) {
      const Lanes norm = maximum(square_root(square), set(1e-20f));
      share = pick(outside, huber / norm, share);
      value = pick(outside, huber * (norm - half * huber), value);
    }
  }
  const Lanes w = base * share;
  double *cost = sums + kCostAt, *moments = sums + kMomentAt;
  cost[0] += sum(base * value), cost[1] += sum(w), cost[2] += sum(base * square);
  const Lanes left = one - a;
  for (int channel = 0; channel < 3; ++channel) {
    const float behind = call.background[channel];
    const float shown_behind = pose.gain[channel] * behind + pose.bias[channel];
    const Lanes c = load(out.c[channel]) - left * set(behind), t = load(target[channel]) - left * set(shown_behind);
    const Lanes weight = w * uncut[channel];
    store(out.c[channel], c);
    store(out.w[channel], weight);
    const Lanes wa = weight * a, wc = weight * c, wt = weight * t;
    double* to = moments + 6 * channel;
    to[0] += sum(wa * a), to[1] += sum(wa * c), to[2] += sum(wc * c);
    to[3] += sum(wa * t), to[4] += sum(wc * t), to[5] += sum(wt * t);
  }
}

template <int kUnknowns>
void add_block(const PoseStep& pose, const BlockJacobian& jacobian, const BlockResidual& block, double* sums) {
  for (int channel = 0; channel < 3; ++channel) {
    const Lanes weight = load(block.w[channel]) * set(pose.gain[channel]);
    const Lanes square = weight * set(pose.gain[channel]);
    const Lanes pull = weight * load(block.r[channel]);
    const Lanes by_gain = weight * load(block.c[channel]), by_bias = weight * load(block.a);
    int at = 0;
    for (int row = 0; row < kUnknowns; ++row) {
      const Lanes left = load(jacobian[3 * row + channel]);
      sums[kRightAt + row] += sum(left * pull);
      double* cross = sums + kCrossAt + 2 * (kPoseMost * channel + row);
      cross[0] += sum(left * by_gain), cross[1] += sum(left * by_bias);
      const Lanes weighted = left * square;
      for (int col = row; col < kUnknowns; ++col) sums[at++] += sum(weighted * load(jacobian[3 * col + channel]));
    }
  }
}

template <int kUnknowns>
void pose_tile(const Call& call, int tile, double* sums) {
  Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  alignas(64) static thread_local BlockJacobian own[64];
  const uint64_t present = blocks_in_image(camera, tile_x, tile_y);
  BlockJacobian* jacobian = own;
  uint64_t used;
  if (call.pose->keep || call.pose->reuse)
    jacobian = reinterpret_cast<BlockJacobian*>(&context.jacobian[static_cast<size_t>(tile) * kTileJacobian]);
  if (call.pose->reuse) {
    used = context.jacobian_used[tile];
  } else {
    used = tile_jacobian<kUnknowns>(call, tile, present, own);
    if (call.pose->keep) {
      context.jacobian_used[tile] = used;
      for (uint64_t blocks = used; blocks != 0; blocks &= blocks - 1) {
        const int block = __builtin_ctzll(blocks);
        memcpy(jacobian[block], own[block], 3 * kUnknowns * sizeof(own[block][0]));
      }
      jacobian = own;
    }
  }
  for (int k = 0; k < kPoseSums; ++k) sums[k] = 0.0;
  for (uint64_t blocks = present; blocks != 0; blocks &= blocks - 1) {
    const int block = __builtin_ctzll(blocks);
    BlockResidual residual;
    block_residual(call, block_place(camera, tile_x, tile_y, block), residual, sums);
    if ((used >> block) & 1) add_block<kUnknowns>(*call.pose, jacobian[block], residual, sums);
  }
  if (call.jacobian != nullptr) {
    const size_t plane = static_cast<size_t>(camera.width) * camera.height;
    const float nothing[16] = {0};
    for (uint64_t blocks = present; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      const BlockPlace place = block_place(camera, tile_x, tile_y, block);
      for (int k = 0; k < kUnknowns; ++k)
        for (int channel = 0; channel < 3; ++channel)
          write_block(call.jacobian + (kUnknowns * channel + k) * plane, camera, place,
                      (used >> block) & 1 ? jacobian[block][3 * k + channel] : nothing);
    }
  }
}

void pose_task(void* argument, int32_t tile) {
  const Call& call = *static_cast<Call*>(argument);
  double* sums = &call.context->partial.data[static_cast<size_t>(tile) * kPoseSums];
  if (call.pose->unknowns == kPoseMost)
    pose_tile<kPoseMost>(call, tile, sums);
  else
    pose_tile<6>(call, tile, sums);
}

}  // namespace
