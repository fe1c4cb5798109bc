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

#elif defined(__AVX2__) && defined(__FMA__) && !defined(SPLATAD_PORTABLE)
// By hand: what GCC 12 makes of the vector extension below at 8 lanes is no faster than at 4
// (docs/decisions/0003-cpu-kernel.md).

struct Lanes {
  __m256 a, b;
};
struct LaneMask {
  __m256 a, b;
};
inline Lanes set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
inline void store(float* p, Lanes x) {
  _mm256_store_ps(p, x.a);
  _mm256_store_ps(p + 8, x.b);
}
inline Lanes operator+(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes operator-(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes operator*(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes mul_add(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes minimum(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline LaneMask greater(Lanes x, Lanes y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)};
}
inline LaneMask greater_equal(Lanes x, Lanes y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)};
}
inline LaneMask both(LaneMask x, LaneMask y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
inline LaneMask but_not(LaneMask x, LaneMask y) { return {_mm256_andnot_ps(y.a, x.a), _mm256_andnot_ps(y.b, x.b)}; }
inline bool any(LaneMask m) { return _mm256_movemask_ps(_mm256_or_ps(m.a, m.b)) != 0; }
inline Lanes pick(LaneMask m, Lanes yes, Lanes no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
inline Lanes keep(LaneMask m, Lanes x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }
inline Lanes magnitude(Lanes x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline __m256 reciprocal_half(__m256 x) {  // two Newton steps from 12 bits
  const __m256 two = _mm256_set1_ps(2.0f);
  __m256 r = _mm256_rcp_ps(x);
  r = _mm256_mul_ps(r, _mm256_fnmadd_ps(x, r, two));
  return _mm256_mul_ps(r, _mm256_fnmadd_ps(x, r, two));
}
inline Lanes reciprocal(Lanes x) { return {reciprocal_half(x.a), reciprocal_half(x.b)}; }
inline float sum(Lanes x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline __m256 exp2_half(__m256 x) {  // 2^x for x in [-126, 126]; relative error 1e-7
  const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(x, whole);
  __m256 p = _mm256_set1_ps(1.32764978e-3f);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.67554162e-3f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.55071320e-2f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.40221197e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.93146967e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
inline Lanes exp2_lanes(Lanes x) { return {exp2_half(x.a), exp2_half(x.b)}; }
inline Lanes lane_columns() {
  const __m256 two_rows = _mm256_setr_ps(0, 1, 2, 3, 0, 1, 2, 3);
  return {two_rows, two_rows};
}
inline Lanes lane_rows() {
  return {_mm256_setr_ps(0, 0, 0, 0, 1, 1, 1, 1), _mm256_setr_ps(2, 2, 2, 2, 3, 3, 3, 3)};
}

#else  // vectors of 4 (SSE2, NEON) or plain arrays, through the compiler's vector extension

constexpr int kNative = 4;
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
  SPLATAD_EACH std::memcpy(&r.v[part], p + part * kNative, sizeof(NativeFloat));
  return r;
}
inline void store(float* p, Lanes a) {
  SPLATAD_EACH std::memcpy(p + part * kNative, &a.v[part], sizeof(NativeFloat));
}
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
#if defined(__SSE2__) && !defined(SPLATAD_PORTABLE)
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
