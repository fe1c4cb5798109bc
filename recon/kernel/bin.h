// Which 4x4 blocks of which tiles each splat's ellipse meets, exactly per block row; then one list per tile, front to
// back.
#pragma once
#include "context.h"
#include "vector.h"

namespace {

inline void write_pair(const Drawn& d, uint64_t mask, uint32_t tile, uint32_t rank, Pair& to) {
  memcpy(&to, &d, 10 * sizeof(float));  // mx to depth
  to.mask = mask, to.tile = tile, to.rank = rank;
}

void bin_task(void* argument, int32_t index) {
  const Call& call = *static_cast<Call*>(argument);
  Context& context = *call.context;
  Chunk& chunk = context.chunks[index];
  const int tiles = context.tiles_x * context.tiles_y;
  uint32_t* tile_count = &context.chunk_tile[static_cast<size_t>(index) * tiles];
  memset(tile_count, 0, sizeof(uint32_t) * tiles);
  chunk.pair_count = 0;
  chunk.out_of_memory = false;
  const int first = index * kSplatChunk, last = smaller(first + kSplatChunk, context.drawn_count);
  if (!chunk.pairs.reserve(4 * kSplatChunk)) {
    chunk.out_of_memory = true;
    return;
  }
  uint32_t pair_count = 0;  // not the chunk's own: its neighbours in memory belong to other threads
  constexpr float kSlack = 0.01f;  // px; covers rounding, an extra block costs time only
  const float width = static_cast<float>(call.camera->width), height = static_cast<float>(call.camera->height);
  const Lanes zero = set(0.0f), none_low = set(8.0f), none_high = set(-1.0f), quarter = set(0.25f);
  for (int rank = first; rank < last; ++rank) {
    if (rank + 8 < last) {
      __builtin_prefetch(&context.projected[context.order[rank + 8]]);
      __builtin_prefetch(&context.slot_range[context.order[rank + 8]], 1);
    }
    const Drawn d = context.projected[context.order[rank]];
    const uint32_t before = pair_count;
    // In tiles, rounded outwards, within the image.
    const int tile_left = static_cast<int>(larger(0.0f, d.mx - d.half_width - kSlack)) / kTile;
    const int tile_right = static_cast<int>(smaller(width - 1.0f, d.mx + d.half_width + kSlack)) / kTile;
    const int tile_top = static_cast<int>(larger(0.0f, d.my - d.half_height - kSlack)) / kTile;
    const int tile_low = static_cast<int>(smaller(height - 1.0f, d.my + d.half_height + kSlack)) / kTile;
    const size_t most = static_cast<size_t>(tile_right - tile_left + 1) * (tile_low - tile_top + 2) + 2;
    if (!chunk.pairs.reserve(pair_count + most, pair_count)) {
      chunk.out_of_memory = true;
      return;
    }
    const float reach = d.lo - kLog2AlphaMin;
    const float a = d.along * d.along, inverse_a = 1.0f / a;
    // At height dy the chord has its middle at slant dy and a * half chord^2 = reach - (across dy)^2.
    const float rightmost_dy = a * d.slant / (a * d.slant * d.slant + d.across * d.across) * d.half_width;
    const Lanes half_height = set(d.half_height), low_height = set(-d.half_height);
    const Lanes chord_0 = set(reach * inverse_a), chord_2 = set(-d.across * d.across * inverse_a);
    const Lanes middle = set(d.slant);
    for (int tile_y = tile_top; tile_y <= tile_low; tile_y += 2) {  // sixteen block rows are two tile rows
      const Lanes row = mul_add(lane_numbers(), set(4.0f), set(tile_y * static_cast<float>(kTile) - d.my));
      const Lanes top = maximum(row + set(0.5f - kSlack), low_height);
      const Lanes bottom = minimum(row + set(3.5f + kSlack), half_height);
      const LaneMask met = greater_equal(bottom, top);
      const Lanes dy_right = minimum(maximum(set(rightmost_dy), top), bottom);
      const Lanes dy_left = minimum(maximum(set(-rightmost_dy), top), bottom);
      const Lanes half_right = square_root(maximum(zero, mul_add(chord_2 * dy_right, dy_right, chord_0)));
      const Lanes half_left = square_root(maximum(zero, mul_add(chord_2 * dy_left, dy_left, chord_0)));
      const Lanes right = mul_add(middle, dy_right, half_right) + set(d.mx + kSlack);
      const Lanes left = mul_add(middle, dy_left, zero - half_left) + set(d.mx - kSlack);
      // Block b holds the pixel centres from 4 b + 0.5 to 4 b + 3.5.
      const Lanes block_low = pick(met, zero - round_down((set(3.5f) - left) * quarter), none_low);
      const Lanes block_high = pick(met, round_down((right - set(0.5f)) * quarter), none_high);
      const Lanes low = maximum(block_low, set(-1e6f)), high = minimum(block_high, set(1e6f));
      const bool second = tile_y + 1 < context.tiles_y;
      for (int t = tile_left; t <= tile_right; ++t) {
        uint64_t masks[2];
        const Lanes shift = set(-static_cast<float>(t * kBlocksAcross));
        row_masks(pick(met, low + shift, none_low), pick(met, high + shift, none_high), masks);
        const uint32_t tile = static_cast<uint32_t>(tile_y * context.tiles_x + t);
        // Without branches, which would be guessed wrong half of the time: an empty pair is written over.
        if (!second) masks[1] = 0;
        const uint32_t below = tile + (second ? static_cast<uint32_t>(context.tiles_x) : 0u);
        Pair* to = &chunk.pairs[pair_count];
        write_pair(d, masks[0], tile, static_cast<uint32_t>(rank), *to);
        to += masks[0] != 0;
        write_pair(d, masks[1], below, static_cast<uint32_t>(rank), *to);
        tile_count[tile] += masks[0] != 0;
        tile_count[below] += masks[1] != 0;
        pair_count += (masks[0] != 0) + (masks[1] != 0);
      }
    }
    context.slot_range[context.order[rank]].count = pair_count - before;
  }
  chunk.pair_count = pair_count;
}

// Gradient slots in the order of the splats, so that reading them and writing the gradients both run straight on.
void slot_task(void* argument, int32_t chunk) {
  Context& context = *static_cast<Call*>(argument)->context;
  const int first = chunk * kSplatChunk, last = smaller(first + kSplatChunk, context.count);
  uint32_t total = 0;
  for (int i = first; i < last; ++i) {
    if (context.shown[i] == 0) continue;
    context.slot_range[i].first = total;
    total += context.slot_range[i].count;
  }
  context.chunk_slot[chunk] = total;
}

// The lists hold pointers: copying the pairs into the order of the tiles costs more than reading them out of order.
void place_task(void* argument, int32_t index) {
  Context& context = *static_cast<Call*>(argument)->context;
  Chunk& chunk = context.chunks[index];
  const int tiles = context.tiles_x * context.tiles_y;
  uint32_t* cursor = &context.chunk_tile[static_cast<size_t>(index) * tiles];
  const int first = index * kSplatChunk, last = smaller(first + kSplatChunk, context.drawn_count);
  uint32_t at = 0;
  for (int rank = first; rank < last; ++rank) {
    if (rank + 16 < last) __builtin_prefetch(&context.slot_range[context.order[rank + 16]]);
    const uint32_t splat = context.order[rank];
    const SlotRange range = context.slot_range[splat];
    uint32_t slot = context.chunk_slot[splat / kSplatChunk] + range.first;
    for (const uint32_t end = at + range.count; at < end; ++at) {
      Pair& pair = chunk.pairs[at];
      pair.slot = slot++;
      context.pairs[cursor[pair.tile]++] = &pair;
    }
  }
}

// Tiles by the power of two of their pairs, the fullest first.
void order_tiles(Context& context, int tiles) {
  uint32_t start[34] = {0};
  for (int pass = 0; pass < 2; ++pass) {
    for (int tile = 0; tile < tiles; ++tile) {
      const uint32_t pairs = context.tile_start[tile + 1] - context.tile_start[tile];
      const int group = pairs == 0 ? 32 : __builtin_clz(pairs);
      if (pass == 0)
        ++start[group + 1];
      else
        context.tile_order[start[group]++] = static_cast<uint32_t>(tile);
    }
    if (pass == 0)
      for (int group = 0; group < 33; ++group) start[group + 1] += start[group];
  }
}

bool bin_splats(Call& call, const Runtime& runtime) {
  Context& context = *call.context;
  const size_t tiles = static_cast<size_t>(context.tiles_x) * context.tiles_y;
  const size_t chunks = static_cast<size_t>(chunks_of(context.drawn_count));
  context.chunk_count = static_cast<int32_t>(chunks);
  if (!context.chunks.reserve(chunks, context.chunk_capacity)) return false;
  for (; context.chunk_capacity < chunks; ++context.chunk_capacity) {
    context.chunks[context.chunk_capacity].pairs.data = nullptr;
    context.chunks[context.chunk_capacity].pairs.capacity = 0;
  }
  if (!context.chunk_tile.reserve(chunks * tiles + 1) || !context.tile_start.reserve(tiles + 1) ||
      !context.tile_order.reserve(tiles) || !context.tile_blocks.reserve(tiles))
    return false;
  runtime.parallel_for(context.chunk_count, bin_task, &call);
  uint32_t* start = context.tile_start.data;  // first the count of each tile, one further on
  memset(start, 0, sizeof(uint32_t) * (tiles + 1));
  uint32_t total = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    if (context.chunks[chunk].out_of_memory) return false;
    total += context.chunks[chunk].pair_count;
    const uint32_t* count = &context.chunk_tile[chunk * tiles];
    for (size_t tile = 0; tile < tiles; ++tile) start[tile + 1] += count[tile];
  }
  for (size_t tile = 0; tile < tiles; ++tile) start[tile + 1] += start[tile];
  const int index_chunks = chunks_of(context.count);
  runtime.parallel_for(index_chunks, slot_task, &call);
  uint32_t first_slot = 0;
  for (int chunk = 0; chunk < index_chunks; ++chunk) {
    const uint32_t count = context.chunk_slot[chunk];
    context.chunk_slot[chunk] = first_slot;
    first_slot += count;
  }
  context.pair_count = total;
  order_tiles(context, static_cast<int>(tiles));
  // Where each chunk's part of each tile's list begins.
  uint32_t* running = start;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    uint32_t* count = &context.chunk_tile[chunk * tiles];
    for (size_t tile = 0; tile < tiles; ++tile) {
      const uint32_t size = count[tile];
      count[tile] = running[tile];
      running[tile] += size;
    }
  }
  for (size_t tile = tiles; tile > 0; --tile) start[tile] = start[tile - 1];
  start[0] = 0;
  if (!context.pairs.reserve(static_cast<size_t>(total) + 16)) return false;
  runtime.parallel_for(context.chunk_count, place_task, &call);
  return true;
}

}  // namespace
