// Small helpers without the standard library's templates: the linker would merge their instances across instruction
// sets.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <typename T>
T smaller(T a, T b) { return b < a ? b : a; }
template <typename T>
T larger(T a, T b) { return a < b ? b : a; }
template <typename T>
T clamped(T x, T low, T high) { return x < low ? low : (high < x ? high : x); }

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

}  // namespace
