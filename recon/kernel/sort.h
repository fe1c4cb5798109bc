// Drawn splats by depth: a stable radix sort of the floats' bits, in parallel over fixed chunks.
#pragma once
#include "context.h"

namespace {

constexpr int kSortChunk = 8192;
constexpr int kMostDigitBits = 11;

struct SortPass {
  const uint32_t *key, *value;
  uint32_t *key_to, *value_to;
  uint32_t* histograms;  // chunk x bucket
  uint32_t least;        // of all keys
  int count, shift, bits;
};

void count_digits_task(void* argument, int32_t chunk) {
  const SortPass& pass = *static_cast<SortPass*>(argument);
  const uint32_t buckets = 1u << pass.bits, mask = buckets - 1;
  uint32_t* histogram = pass.histograms + static_cast<size_t>(chunk) * buckets;
  memset(histogram, 0, sizeof(uint32_t) * buckets);
  const int first = chunk * kSortChunk, last = smaller(first + kSortChunk, pass.count);
  for (int i = first; i < last; ++i) ++histogram[((pass.key[i] - pass.least) >> pass.shift) & mask];
}

void scatter_digits_task(void* argument, int32_t chunk) {
  const SortPass& pass = *static_cast<SortPass*>(argument);
  const uint32_t buckets = 1u << pass.bits, mask = buckets - 1;
  uint32_t* cursor = pass.histograms + static_cast<size_t>(chunk) * buckets;
  const int first = chunk * kSortChunk, last = smaller(first + kSortChunk, pass.count);
  for (int i = first; i < last; ++i) {
    const uint32_t to = cursor[((pass.key[i] - pass.least) >> pass.shift) & mask]++;
    pass.key_to[to] = pass.key[i];
    pass.value_to[to] = pass.value[i];
  }
}

// project_task left each chunk's drawn splats at the chunk's own place: close the gaps. Moves to the front only.
int close_gaps(Context& context, int chunks) {
  int total = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int first = chunk * kSplatChunk, found = context.chunk_visible[chunk];
    if (first != total && found != 0) {
      memmove(&context.keys_other[total], &context.keys_other[first], sizeof(uint32_t) * found);
      memmove(&context.order_other[total], &context.order_other[first], sizeof(uint32_t) * found);
    }
    total += found;
  }
  return total;
}

// Fills context.order; equal depths keep index order. False where memory ran out.
bool sort_by_depth(Context& context, const Runtime& runtime) {
  const int count = close_gaps(context, chunks_of(context.count));
  context.drawn_count = count;
  uint32_t *key = context.keys_other.data, *key_to = context.keys.data;
  uint32_t *value = context.order_other.data, *value_to = context.order.data;
  uint32_t least = 0xffffffffu, most = 0;
  for (int i = 0; i < count; ++i) {
    least = smaller(least, key[i]);
    most = larger(most, key[i]);
  }
  const int width = most > least ? 32 - __builtin_clz(most - least) : 0;  // depths are positive: order of the bits
  const int passes = (width + kMostDigitBits - 1) / kMostDigitBits;
  const int chunks = (count + kSortChunk - 1) / kSortChunk;
  for (int done = 0; done < passes; ++done) {
    const int bits = (width + passes - 1) / passes;
    const uint32_t buckets = 1u << bits;
    if (!context.histograms.reserve(static_cast<size_t>(chunks) * buckets)) return false;
    SortPass pass{key, value, key_to, value_to, context.histograms.data, least, count, done * bits, bits};
    runtime.parallel_for(chunks, count_digits_task, &pass);
    uint32_t start = 0;
    for (uint32_t bucket = 0; bucket < buckets; ++bucket)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        uint32_t& here = pass.histograms[static_cast<size_t>(chunk) * buckets + bucket];
        const uint32_t size = here;
        here = start;
        start += size;
      }
    runtime.parallel_for(chunks, scatter_digits_task, &pass);
    uint32_t* swap = key;
    key = key_to, key_to = swap;
    swap = value;
    value = value_to, value_to = swap;
  }
  if (value != context.order.data) memcpy(context.order.data, value, sizeof(uint32_t) * count);
  return true;
}

}  // namespace
