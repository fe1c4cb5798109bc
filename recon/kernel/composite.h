// Front to back over the pixels of a tile.
#pragma once
#include "context.h"
#include "vector.h"

namespace {

constexpr uint32_t kAhead = 10;  // pairs fetched before they are needed

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

// The blocks of a tile that have a pixel in the image.
inline uint64_t blocks_in_image(const CameraInput& camera, int tile_x, int tile_y) {
  const int across = smaller(kBlocksAcross, (camera.width - tile_x * kTile + 3) / 4);
  const int down = smaller(kBlocksAcross, (camera.height - tile_y * kTile + 3) / 4);
  const uint64_t row = 0xffu >> (kBlocksAcross - across);
  uint64_t all = 0;
  for (int y = 0; y < down; ++y) all |= row << (8 * y);
  return all;
}

inline void read_block(const float* plane, const CameraInput& camera, const BlockPlace& place, float out[16]) {
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

inline void write_block(float* plane, const CameraInput& camera, const BlockPlace& place, const float in[16]) {
  if (place.inside) {
    for (int row = 0; row < 4; ++row)
      memcpy(plane + static_cast<size_t>(place.y + row) * camera.width + place.x, in + 4 * row, 16);
    return;
  }
  for (int row = 0; row < 4 && place.y + row < camera.height; ++row)
    for (int col = 0; col < 4 && place.x + col < camera.width; ++col)
      plane[static_cast<size_t>(place.y + row) * camera.width + place.x + col] = in[4 * row + col];
}

// Where a block's pixels lie from a tile's first block, px.
alignas(64) constexpr float kBlockOffset[kBlocksAcross] = {0, 4, 8, 12, 16, 20, 24, 28};

struct PairLanes {  // a pair's p and q (see Drawn) at the pixels of the tile's first block; what each block adds
  Lanes p, q, lo;
  alignas(32) float p_across[kBlocksAcross], p_down[kBlocksAcross], q_down[kBlocksAcross];
};

inline void pair_lanes(const Pair& pair, Lanes x0, Lanes y0, PairLanes& out) {
  const float lean = -pair.along * pair.slant;
  const Lanes y = y0 - set(pair.my);
  out.p = mul_add(set(pair.along), x0 - set(pair.mx), set(lean) * y);
  out.q = set(pair.across) * y;
  out.lo = set(pair.lo);
  for (int k = 0; k < kBlocksAcross; ++k) {
    out.p_across[k] = pair.along * kBlockOffset[k];
    out.p_down[k] = lean * kBlockOffset[k];
    out.q_down[k] = pair.across * kBlockOffset[k];
  }
}

// log2 alpha before the clamps, and its coordinates.
inline Lanes exponent(const PairLanes& pair, int block, Lanes& p, Lanes& q) {
  q = pair.q + set(pair.q_down[block >> 3]);
  p = pair.p + set(pair.p_down[block >> 3]) + set(pair.p_across[block & 7]);
  return (pair.lo - q * q) - p * p;
}

void fill_rows(float* plane, const CameraInput& camera, int tile_x, int tile_y, float value) {
  const int width = smaller(kTile, camera.width - tile_x * kTile);
  const int height = smaller(kTile, camera.height - tile_y * kTile);
  for (int row = 0; row < height; ++row) {
    float* to = plane + static_cast<size_t>(tile_y * kTile + row) * camera.width + tile_x * kTile;
    for (int col = 0; col < width; ++col) to[col] = value;
  }
}

struct alignas(64) BlockState {
  float through[16], red[16], green[16], blue[16], depth[16];
  StoredMask open;  // the pixels that have not stopped
};

struct Passage {  // what a splat does in the sixteen pixels of a block
  Lanes weight;   // of its colour
  Lanes next;     // transmittance behind it
  LaneMask live;  // where it counts: alpha >= 1/255 in a pixel that has not stopped and does not stop here
};

// The one place that decides which splats count, so that forward, backward and pose agree. A splat that would bring the
// transmittance `t` to the limit does not count and closes the pixel; a block without open pixels leaves `alive`.
inline Passage pass_block(Lanes alpha, Lanes t, StoredMask& open, int block, uint64_t& alive) {
  Passage passage;
  passage.live = both(load_mask(open), greater_equal(alpha, set(kAlphaMin)));
  passage.weight = keep(passage.live, t * alpha);
  passage.next = t - passage.weight;
  const LaneMask stops = both(passage.live, greater_equal(set(kStop), passage.next));
  if (any(stops)) {
    const LaneMask left = but_not(load_mask(open), stops);
    store_mask(open, left);
    passage.live = but_not(passage.live, stops);
    passage.weight = keep(passage.live, passage.weight);
    passage.next = pick(stops, t, passage.next);
    if (!any(left)) alive &= ~(1ull << block);
  }
  return passage;
}

template <bool kDepth>
void composite_tile(const Call& call, int tile) {
  const Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  if (begin == end) {
    for (int channel = 0; channel < 3; ++channel)
      fill_rows(call.out_rgb + channel * plane, camera, tile_x, tile_y, call.background[channel]);
    fill_rows(call.out_alpha, camera, tile_x, tile_y, 0.0f);
    if (kDepth) fill_rows(call.out_depth, camera, tile_x, tile_y, 0.0f);
    return;
  }
  BlockState state[64];
  const uint64_t present = blocks_in_image(camera, tile_x, tile_y);
  uint64_t used = 0, alive = present;
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes ceiling = set(kAlphaMax), one = set(1.0f), zero = set(0.0f);
  const LaneMask all = greater(one, zero);
  for (uint32_t at = begin; at < end && alive != 0; ++at) {
    if (at + kAhead < end) __builtin_prefetch(context.pairs[at + kAhead]);
    const Pair& pair = *context.pairs[at];
    uint64_t blocks = pair.mask & alive;
    for (uint64_t fresh = blocks & ~used; fresh != 0; fresh &= fresh - 1) {
      const int block = __builtin_ctzll(fresh);
      BlockState& b = state[block];
      store_mask(b.open, all);
      store(b.through, one), store(b.red, zero), store(b.green, zero), store(b.blue, zero);
      if (kDepth) store(b.depth, zero);
    }
    used |= blocks;
    PairLanes lanes;
    pair_lanes(pair, x0, y0, lanes);
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      BlockState& b = state[block];
      Lanes p, q;
      const Lanes alpha = minimum(exp2_lanes(exponent(lanes, block, p, q)), ceiling);
      const Passage passage = pass_block(alpha, load(b.through), b.open, block, alive);
      const Lanes w = passage.weight;
      store(b.red, mul_add(w, set(pair.red), load(b.red)));
      store(b.green, mul_add(w, set(pair.green), load(b.green)));
      store(b.blue, mul_add(w, set(pair.blue), load(b.blue)));
      if (kDepth) store(b.depth, mul_add(w, set(pair.depth), load(b.depth)));
      store(b.through, passage.next);
    }
  }
  context.tile_blocks.data[tile] = used;
  alignas(64) float out[16];
  for (uint64_t blocks = present; blocks != 0; blocks &= blocks - 1) {
    const int block = __builtin_ctzll(blocks);
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    const BlockState& b = state[block];
    const bool hit = (used >> block) & 1;
    const Lanes t = hit ? load(b.through) : one;
    const float* const colour[3] = {b.red, b.green, b.blue};
    for (int channel = 0; channel < 3; ++channel) {
      const Lanes base = hit ? load(colour[channel]) : zero;
      store(out, mul_add(t, set(call.background[channel]), base));
      write_block(call.out_rgb + channel * plane, camera, place, out);
    }
    store(out, one - t);
    write_block(call.out_alpha, camera, place, out);
    if (kDepth) {
      store(out, hit ? load(b.depth) : zero);
      write_block(call.out_depth, camera, place, out);
    }
  }
}

// Further channels through the lists of the last forward, three at a time: projecting, sorting and binning are not
// repeated.
void extra_tile(const Call& call, int tile, int first) {
  const Context& context = *call.context;
  const CameraInput& camera = *call.camera;
  const int tile_x = tile % context.tiles_x, tile_y = tile / context.tiles_x;
  const size_t plane = static_cast<size_t>(camera.width) * camera.height;
  const int channels = smaller(3, call.extra_width - first);
  float* const out_planes = call.out_extra + first * plane;
  const uint32_t begin = context.tile_start[tile], end = context.tile_start[tile + 1];
  if (begin == end) {
    for (int channel = 0; channel < channels; ++channel)
      fill_rows(out_planes + channel * plane, camera, tile_x, tile_y, call.extra_background[first + channel]);
    return;
  }
  BlockState state[64];
  const uint64_t used = context.tile_blocks[tile];
  uint64_t alive = used;
  const Lanes x0 = lane_columns() + set(tile_x * static_cast<float>(kTile) + 0.5f);
  const Lanes y0 = lane_rows() + set(tile_y * static_cast<float>(kTile) + 0.5f);
  const Lanes ceiling = set(kAlphaMax), one = set(1.0f), zero = set(0.0f);
  for (uint64_t blocks = used; blocks != 0; blocks &= blocks - 1) {
    BlockState& b = state[__builtin_ctzll(blocks)];
    store_mask(b.open, greater(one, zero));
    store(b.through, one), store(b.red, zero), store(b.green, zero), store(b.blue, zero);
  }
  for (uint32_t at = begin; at < end && alive != 0; ++at) {
    if (at + kAhead < end) __builtin_prefetch(context.pairs[at + kAhead]);
    const Pair& pair = *context.pairs[at];
    uint64_t blocks = pair.mask & alive;
    if (blocks == 0) continue;
    const float* given = call.extra + static_cast<size_t>(context.order[pair.rank]) * call.extra_width + first;
    const Lanes red = set(given[0]), green = channels > 1 ? set(given[1]) : zero;
    const Lanes blue = channels > 2 ? set(given[2]) : zero;
    PairLanes lanes;
    pair_lanes(pair, x0, y0, lanes);
    for (; blocks != 0; blocks &= blocks - 1) {
      const int block = __builtin_ctzll(blocks);
      BlockState& b = state[block];
      Lanes p, q;
      const Lanes alpha = minimum(exp2_lanes(exponent(lanes, block, p, q)), ceiling);
      const Passage passage = pass_block(alpha, load(b.through), b.open, block, alive);
      const Lanes w = passage.weight;
      store(b.red, mul_add(w, red, load(b.red)));
      store(b.green, mul_add(w, green, load(b.green)));
      store(b.blue, mul_add(w, blue, load(b.blue)));
      store(b.through, passage.next);
    }
  }
  alignas(64) float out[16];
  for (uint64_t blocks = blocks_in_image(camera, tile_x, tile_y); blocks != 0; blocks &= blocks - 1) {
    const int block = __builtin_ctzll(blocks);
    const BlockPlace place = block_place(camera, tile_x, tile_y, block);
    const BlockState& b = state[block];
    const bool hit = (used >> block) & 1;
    const float* const value[3] = {b.red, b.green, b.blue};
    for (int channel = 0; channel < channels; ++channel) {
      const Lanes behind = set(call.extra_background[first + channel]);
      store(out, hit ? mul_add(load(b.through), behind, load(value[channel])) : behind);
      write_block(out_planes + channel * plane, camera, place, out);
    }
  }
}

void extra_task(void* argument, int32_t place) {
  const Call& call = *static_cast<Call*>(argument);
  const int tiles = call.context->tiles_x * call.context->tiles_y;
  extra_tile(call, static_cast<int>(call.context->tile_order[place % tiles]), 3 * (place / tiles));
}

void composite_task(void* argument, int32_t place) {
  const Call& call = *static_cast<Call*>(argument);
  const int tile = static_cast<int>(call.context->tile_order[place]);
  if (call.out_depth != nullptr)
    composite_tile<true>(call, tile);
  else
    composite_tile<false>(call, tile);
}

}  // namespace
