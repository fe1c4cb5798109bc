// Sixteen float lanes = one 4x4 pixel block, in whatever registers the instruction set has.
// Everything is in an anonymous namespace: this header is compiled for several instruction sets into one library,
// and a function merged by the linker across them could run instructions the processor lacks.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own avx512fintrin.h
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) && !defined(SPLATAD_PORTABLE)

struct Lanes {
  __m512 v;
};
using LaneMask = __mmask16;
inline Lanes set(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_load_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_store_ps(p, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline LaneMask greater(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline LaneMask greater_equal(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline LaneMask both(LaneMask a, LaneMask b) { return static_cast<LaneMask>(a & b); }
inline LaneMask but_not(LaneMask a, LaneMask b) { return static_cast<LaneMask>(a & ~b); }
inline bool any(LaneMask m) { return m != 0; }
inline Lanes pick(LaneMask m, Lanes yes, Lanes no) { return {_mm512_mask_blend_ps(m, no.v, yes.v)}; }
inline Lanes keep(LaneMask m, Lanes a) { return {_mm512_maskz_mov_ps(m, a.v)}; }
inline Lanes magnitude(Lanes a) { return {_mm512_abs_ps(a.v)}; }
inline Lanes reciprocal(Lanes a) {
  __m512 r = _mm512_rcp14_ps(a.v);
  return {_mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)))};
}
inline float sum(Lanes a) { return _mm512_reduce_add_ps(a.v); }
inline Lanes exp2_lanes(Lanes a) {  // 2^a for a in [-126, 126]; relative error 1e-7
  __m512 whole = _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(a.v, whole);
  __m512 p = _mm512_set1_ps(1.32764978e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.67554162e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55071320e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40221197e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93146967e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return {_mm512_scalef_ps(p, whole)};
}
// Lane l of a block is pixel column l % 4, row l / 4.
inline Lanes lane_columns() { return {_mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)}; }
inline Lanes lane_rows() { return {_mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)}; }

#else  // native vectors of 8 (AVX2), 4 (SSE2, NEON) or plain arrays, through the compiler's vector extension

#if defined(__AVX2__) && !defined(SPLATAD_PORTABLE)
constexpr int kNative = 8;
#else
constexpr int kNative = 4;
#endif
constexpr int kParts = 16 / kNative;
typedef float NativeFloat __attribute__((vector_size(kNative * 4)));
typedef int32_t NativeInt __attribute__((vector_size(kNative * 4)));

struct Lanes {
  NativeFloat v[kParts];
};
struct LaneMask {
  NativeInt v[kParts];
};
#define SPLATAD_EACH for (int part = 0; part < kParts; ++part)
inline Lanes set(float x) {
  Lanes r;
  SPLATAD_EACH r.v[part] = NativeFloat{} + x;
  return r;
}
inline Lanes load(const float* p) {
  Lanes r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
inline void store(float* p, Lanes a) { std::memcpy(p, &a, sizeof(a)); }
inline Lanes operator+(Lanes a, Lanes b) {
  SPLATAD_EACH a.v[part] = a.v[part] + b.v[part];
  return a;
}
inline Lanes operator-(Lanes a, Lanes b) {
  SPLATAD_EACH a.v[part] = a.v[part] - b.v[part];
  return a;
}
inline Lanes operator*(Lanes a, Lanes b) {
  SPLATAD_EACH a.v[part] = a.v[part] * b.v[part];
  return a;
}
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) {
  SPLATAD_EACH c.v[part] = a.v[part] * b.v[part] + c.v[part];
  return c;
}
inline Lanes minimum(Lanes a, Lanes b) {
  SPLATAD_EACH a.v[part] = a.v[part] < b.v[part] ? a.v[part] : b.v[part];
  return a;
}
inline LaneMask greater(Lanes a, Lanes b) {
  LaneMask m;
  SPLATAD_EACH m.v[part] = a.v[part] > b.v[part];
  return m;
}
inline LaneMask greater_equal(Lanes a, Lanes b) {
  LaneMask m;
  SPLATAD_EACH m.v[part] = a.v[part] >= b.v[part];
  return m;
}
inline LaneMask both(LaneMask a, LaneMask b) {
  SPLATAD_EACH a.v[part] = a.v[part] & b.v[part];
  return a;
}
inline LaneMask but_not(LaneMask a, LaneMask b) {
  SPLATAD_EACH a.v[part] = a.v[part] & ~b.v[part];
  return a;
}
inline bool any(LaneMask m) {
  NativeInt all = m.v[0];
  for (int part = 1; part < kParts; ++part) all |= m.v[part];
#if defined(__AVX2__) && !defined(SPLATAD_PORTABLE)
  __m256i bits;
  std::memcpy(&bits, &all, sizeof(bits));
  return _mm256_movemask_ps(_mm256_castsi256_ps(bits)) != 0;
#elif defined(__SSE2__) && !defined(SPLATAD_PORTABLE)
  __m128i bits;
  std::memcpy(&bits, &all, sizeof(bits));
  return _mm_movemask_epi8(bits) != 0;
#else
  int32_t some = 0;
  for (int lane = 0; lane < kNative; ++lane) some |= all[lane];
  return some != 0;
#endif
}
inline Lanes pick(LaneMask m, Lanes yes, Lanes no) {
  SPLATAD_EACH no.v[part] = m.v[part] ? yes.v[part] : no.v[part];
  return no;
}
inline Lanes keep(LaneMask m, Lanes a) { return pick(m, a, set(0.0f)); }
inline Lanes magnitude(Lanes a) {
  const Lanes zero = set(0.0f);
  return pick(greater(zero, a), zero - a, a);
}
inline Lanes reciprocal(Lanes a) {
  SPLATAD_EACH a.v[part] = 1.0f / a.v[part];
  return a;
}
inline float sum(Lanes a) {
  NativeFloat total = a.v[0];
  for (int part = 1; part < kParts; ++part) total += a.v[part];
  float result = 0.0f;
  for (int lane = 0; lane < kNative; ++lane) result += total[lane];
  return result;
}
inline Lanes exp2_lanes(Lanes a) {
  SPLATAD_EACH {
    const NativeFloat magic = NativeFloat{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    NativeFloat shifted = a.v[part] + magic;
    NativeFloat f = a.v[part] - (shifted - magic);
    NativeFloat p = f * 1.32764978e-3f + 9.67554162e-3f;
    p = p * f + 5.55071320e-2f;
    p = p * f + 2.40221197e-1f;
    p = p * f + 6.93146967e-1f;
    p = p * f + 1.0f;
    NativeInt exponent, bits;
    std::memcpy(&exponent, &shifted, sizeof(exponent));
    std::memcpy(&bits, &p, sizeof(bits));
    bits += exponent << 23;
    std::memcpy(&a.v[part], &bits, sizeof(bits));
  }
  return a;
}
inline Lanes lane_columns() {
  alignas(64) const float c[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
  return load(c);
}
inline Lanes lane_rows() {
  alignas(64) const float c[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  return load(c);
}
#undef SPLATAD_EACH
#endif

}  // namespace
