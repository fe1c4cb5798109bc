// What a core can do at most: the yardstick of the compositing loops.
#pragma once
#include <time.h>

#include "vector.h"

namespace {

// Enough independent chains to hide the latency of two units, few enough to stay in the registers.
#if defined(__AVX512F__) && !defined(SPLATAD_PORTABLE)
constexpr int kChains = 12;
#elif defined(__AVX2__) && defined(__FMA__) && !defined(SPLATAD_PORTABLE)
constexpr int kChains = 6;
#else
constexpr int kChains = 3;
#endif

inline double seconds_now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Multiply-adds of 16 lanes that this core does in a second: the best of many stretches of a fraction of a millisecond,
// so that losing the core now and then does not count. Takes 20 ms.
double peak_multiply_adds() {
  constexpr int kRounds = 50000;
  volatile float start = 0.5f;  // not known to the compiler, or it could do the work beforehand
  const float first = start;
  Lanes chain[kChains];
  for (int k = 0; k < kChains; ++k) chain[k] = set(first + static_cast<float>(k));
  const Lanes factor = set(0.999f), term = set(0.001f);  // towards 1: neither infinite nor denormal
  const double begin = seconds_now();
  double last = begin, best = 1e9;
  while (last - begin < 0.02) {
    for (int round = 0; round < kRounds; ++round)
      for (int k = 0; k < kChains; ++k) chain[k] = mul_add(chain[k], factor, term);
    const double now = seconds_now();
    if (now - last < best) best = now - last;
    last = now;
  }
  Lanes total = chain[0];
  for (int k = 1; k < kChains; ++k) total = total + chain[k];
  // Always positive, which the compiler does not know: the work must be done.
  return sum(total) > 0.0f ? kRounds * static_cast<double>(kChains) / best : 0.0;
}

}  // namespace
