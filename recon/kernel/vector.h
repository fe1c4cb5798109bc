// Sixteen float lanes = one 4x4 pixel block, in whatever registers the instruction set has.
// Everything is in an anonymous namespace: this header is compiled for several instruction sets into one library,
// and a function merged by the linker across them could run instructions the processor lacks.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns inside its own avx512fintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
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
inline Lanes load_unaligned(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store_unaligned(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is not a number
inline Lanes maximum(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }  // likewise
inline Lanes square_root(Lanes a) { return {_mm512_sqrt_ps(a.v)}; }
inline LaneMask greater(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline LaneMask greater_equal(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline LaneMask both(LaneMask a, LaneMask b) { return static_cast<LaneMask>(a & b); }
inline LaneMask but_not(LaneMask a, LaneMask b) { return static_cast<LaneMask>(a & ~b); }
inline bool any(LaneMask m) { return m != 0; }
inline uint32_t bits(LaneMask m) { return m; }  // lane l is bit l
inline Lanes pick(LaneMask m, Lanes yes, Lanes no) { return {_mm512_mask_blend_ps(m, no.v, yes.v)}; }
inline Lanes keep(LaneMask m, Lanes a) { return {_mm512_maskz_mov_ps(m, a.v)}; }
using StoredMask = uint16_t;
inline LaneMask load_mask(const StoredMask& m) { return m; }
inline void store_mask(StoredMask& to, LaneMask m) { to = m; }
inline Lanes reciprocal(Lanes a) {
  __m512 r = _mm512_rcp14_ps(a.v);
  return {_mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)))};
}
inline float sum(Lanes a) { return _mm512_reduce_add_ps(a.v); }
inline void sum_four(Lanes a, Lanes b, Lanes c, Lanes d, float* out) {  // out[0] to out[3]: the sums of the four
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
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
// x = significand * 2^exponent with the significand in [0.71, 1.42); x positive and normal.
inline void split_float(Lanes x, Lanes& significand, Lanes& exponent) {
  const __m512i all = _mm512_castps_si512(x.v);
  const __m512i e = _mm512_srai_epi32(_mm512_sub_epi32(all, _mm512_set1_epi32(0x3f3504f3)), 23);
  significand.v = _mm512_castsi512_ps(_mm512_sub_epi32(all, _mm512_slli_epi32(e, 23)));
  exponent.v = _mm512_cvtepi32_ps(e);
}
// Byte l of the 16 has the bits b with from[l] <= b <= to[l]; whole numbers, any size.
inline void row_masks(Lanes from, Lanes to, uint64_t out[2]) {
  const __m512i f = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(from.v, _mm512_setzero_ps()), _mm512_set1_ps(8.0f)));
  const __m512i t = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(to.v, _mm512_set1_ps(7.0f)), _mm512_set1_ps(-1.0f)));
  const __m512i less = _mm512_add_epi32(_mm512_sub_epi32(_mm512_set1_epi32(7), t), f);
  const __m512i rows = _mm512_sllv_epi32(_mm512_srlv_epi32(_mm512_set1_epi32(0xff), less), f);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(rows));
}
inline Lanes round_down(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
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
inline Lanes load_unaligned(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store_unaligned(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline Lanes operator+(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes operator-(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes operator*(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes mul_add(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes operator/(Lanes x, Lanes y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Lanes minimum(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Lanes maximum(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Lanes square_root(Lanes x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline LaneMask greater(Lanes x, Lanes y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)};
}
inline LaneMask greater_equal(Lanes x, Lanes y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)};
}
inline LaneMask both(LaneMask x, LaneMask y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
inline LaneMask but_not(LaneMask x, LaneMask y) { return {_mm256_andnot_ps(y.a, x.a), _mm256_andnot_ps(y.b, x.b)}; }
inline bool any(LaneMask m) { return _mm256_movemask_ps(_mm256_or_ps(m.a, m.b)) != 0; }
inline uint32_t bits(LaneMask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
}
inline Lanes pick(LaneMask m, Lanes yes, Lanes no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
inline Lanes keep(LaneMask m, Lanes x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }
using StoredMask = LaneMask;
inline LaneMask load_mask(const StoredMask& m) { return m; }
inline void store_mask(StoredMask& to, LaneMask m) { to = m; }
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
inline void sum_four(Lanes a, Lanes b, Lanes c, Lanes d, float* out) {
  const __m256 x = _mm256_add_ps(a.a, a.b), y = _mm256_add_ps(b.a, b.b);
  const __m256 z = _mm256_add_ps(c.a, c.b), w = _mm256_add_ps(d.a, d.b);
  const __m256 xy = _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
  const __m256 zw = _mm256_add_ps(_mm256_unpacklo_ps(z, w), _mm256_unpackhi_ps(z, w));
  const __m256d lo = _mm256_unpacklo_pd(_mm256_castps_pd(xy), _mm256_castps_pd(zw));
  const __m256d hi = _mm256_unpackhi_pd(_mm256_castps_pd(xy), _mm256_castps_pd(zw));
  const __m256 all = _mm256_add_ps(_mm256_castpd_ps(lo), _mm256_castpd_ps(hi));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
inline void split_half(__m256 x, __m256& significand, __m256& exponent) {
  const __m256i all = _mm256_castps_si256(x);
  const __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(all, _mm256_set1_epi32(0x3f3504f3)), 23);
  significand = _mm256_castsi256_ps(_mm256_sub_epi32(all, _mm256_slli_epi32(e, 23)));
  exponent = _mm256_cvtepi32_ps(e);
}
inline void split_float(Lanes x, Lanes& significand, Lanes& exponent) {
  split_half(x.a, significand.a, exponent.a);
  split_half(x.b, significand.b, exponent.b);
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
inline __m256i row_masks_half(__m256 from, __m256 to) {
  const __m256i f = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(from, _mm256_setzero_ps()), _mm256_set1_ps(8.0f)));
  const __m256i t = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(to, _mm256_set1_ps(7.0f)), _mm256_set1_ps(-1.0f)));
  const __m256i less = _mm256_add_epi32(_mm256_sub_epi32(_mm256_set1_epi32(7), t), f);
  return _mm256_sllv_epi32(_mm256_srlv_epi32(_mm256_set1_epi32(0xff), less), f);
}
inline void row_masks(Lanes from, Lanes to, uint64_t out[2]) {
  const __m256i a = row_masks_half(from.a, to.a), b = row_masks_half(from.b, to.b);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}
inline Lanes round_down(Lanes x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
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
inline Lanes load_unaligned(const float* p) { return load(p); }
inline void store_unaligned(float* p, Lanes a) { store(p, a); }
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
inline Lanes operator/(Lanes a, Lanes b) {
  SPLATAD_EACH a.v[part] = a.v[part] / b.v[part];
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
inline Lanes maximum(Lanes a, Lanes b) {
  SPLATAD_EACH a.v[part] = a.v[part] > b.v[part] ? a.v[part] : b.v[part];
  return a;
}
inline Lanes square_root(Lanes a) {
#if defined(__SSE2__) && !defined(SPLATAD_PORTABLE)
  SPLATAD_EACH {
    __m128 x;
    std::memcpy(&x, &a.v[part], sizeof(x));
    x = _mm_sqrt_ps(x);
    std::memcpy(&a.v[part], &x, sizeof(x));
  }
#else
  SPLATAD_EACH for (int lane = 0; lane < kNative; ++lane) a.v[part][lane] = __builtin_sqrtf(a.v[part][lane]);
#endif
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
inline uint32_t bits(LaneMask m) {
  uint32_t all = 0;
  SPLATAD_EACH {
#if defined(__SSE2__) && !defined(SPLATAD_PORTABLE)
    __m128 signs;
    std::memcpy(&signs, &m.v[part], sizeof(signs));
    all |= static_cast<uint32_t>(_mm_movemask_ps(signs)) << (part * kNative);
#else
    for (int lane = 0; lane < kNative; ++lane) all |= (m.v[part][lane] != 0 ? 1u : 0u) << (part * kNative + lane);
#endif
  }
  return all;
}
inline Lanes pick(LaneMask m, Lanes yes, Lanes no) {
  SPLATAD_EACH no.v[part] = m.v[part] ? yes.v[part] : no.v[part];
  return no;
}
inline Lanes keep(LaneMask m, Lanes a) { return pick(m, a, set(0.0f)); }
using StoredMask = LaneMask;
inline LaneMask load_mask(const StoredMask& m) { return m; }
inline void store_mask(StoredMask& to, LaneMask m) { to = m; }
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
inline void sum_four(Lanes a, Lanes b, Lanes c, Lanes d, float* out) {
  out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
}
inline void split_float(Lanes x, Lanes& significand, Lanes& exponent) {
  SPLATAD_EACH {
    NativeInt all;
    std::memcpy(&all, &x.v[part], sizeof(all));
    const NativeInt e = (all - 0x3f3504f3) >> 23;
    all -= e << 23;
    std::memcpy(&significand.v[part], &all, sizeof(all));
    exponent.v[part] = __builtin_convertvector(e, NativeFloat);
  }
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
inline void row_masks(Lanes from, Lanes to, uint64_t out[2]) {
  alignas(64) float low[16], high[16];
  store(low, from);
  store(high, to);
  out[0] = out[1] = 0;
  for (int row = 0; row < 16; ++row) {
    const int f = static_cast<int>(low[row] < 0.0f ? 0.0f : (low[row] > 8.0f ? 8.0f : low[row]));
    const int t = static_cast<int>(high[row] > 7.0f ? 7.0f : (high[row] < -1.0f ? -1.0f : high[row]));
    const uint64_t byte = static_cast<uint64_t>(0xffu >> (7 - t + f)) << f;
    out[row / 8] |= byte << (8 * (row % 8));
  }
}
inline Lanes round_down(Lanes a) {  // |a| < 2^23
  SPLATAD_EACH {
    const NativeFloat magic = NativeFloat{} + 12582912.0f;
    const NativeFloat nearest = (a.v[part] + magic) - magic;
    a.v[part] = nearest > a.v[part] ? nearest - 1.0f : nearest;
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

inline Lanes lane_numbers() {
  alignas(64) const float c[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(c);
}
inline Lanes exp_lanes(Lanes a) {  // e^a, at most 2^126 and at least 2^-126; relative error 2e-7
  const Lanes log2_e = set(1.4426950408889634f), limit = set(126.0f), one = set(1.0f);
  const Lanes product = a * log2_e;
  // What the product lost in rounding. Of infinities it is not a number; minimum and maximum turn that into a bound.
  const Lanes lost = minimum(maximum(mul_add(a, log2_e, set(0.0f) - product), set(-1.0f)), one);
  const Lanes power = maximum(minimum(product, limit), set(0.0f) - limit);
  const Lanes whole = exp2_lanes(power);
  return mul_add(whole, lost * set(0.6931471805599453f), whole);
}
inline Lanes log2_lanes(Lanes a) {  // of positive normal numbers; absolute error 2e-7
  Lanes significand, exponent;
  split_float(a, significand, exponent);
  // log2 m = 2 / ln 2 * atanh((m - 1) / (m + 1))
  const Lanes s = (significand - set(1.0f)) / (significand + set(1.0f)), ss = s * s;
  Lanes p = mul_add(ss, set(1.0f / 9.0f), set(1.0f / 7.0f));
  p = mul_add(p, ss, set(1.0f / 5.0f));
  p = mul_add(p, ss, set(1.0f / 3.0f));
  p = mul_add(p, ss, set(1.0f));
  return mul_add(p * s, set(2.8853900817779268f), exponent);
}

// One register of floats, for work along image rows. + - * / are the compiler's own, on every lane.
#if defined(__AVX512F__) && !defined(SPLATAD_PORTABLE)

using Wide = __m512;
constexpr int kWide = 16;
inline Wide wide(float x) { return _mm512_set1_ps(x); }
inline Wide load_wide(const float* p) { return _mm512_loadu_ps(p); }
inline void store_wide(float* p, Wide x) { _mm512_storeu_ps(p, x); }
inline Wide load_wide(const float* p, int count) {  // zero from lane `count` on, and no memory read there
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
}
inline void store_wide(float* p, Wide x, int count) {  // the first `count` lanes
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), x);
}
inline Wide magnitude(Wide x) { return _mm512_abs_ps(x); }
inline Wide sign(Wide x) {  // 1, 0 or -1
  const __m512 zero = _mm512_setzero_ps();
  const __m512 positive = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero, _CMP_GT_OQ), _mm512_set1_ps(1.0f));
  return _mm512_mask_mov_ps(positive, _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ), _mm512_set1_ps(-1.0f));
}
// What lies k floats further on, p aligned. Out of aligned loads: one across cache lines takes two cycles.
template <int k>
inline Wide load_ahead(const float* p) {
  const __m512i low = _mm512_load_si512(p), high = _mm512_load_si512(p + kWide);
  return _mm512_castsi512_ps(_mm512_alignr_epi32(high, low, k));
}

#elif defined(__AVX2__) && defined(__FMA__) && !defined(SPLATAD_PORTABLE)

using Wide = __m256;
constexpr int kWide = 8;
inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Wide wide(float x) { return _mm256_set1_ps(x); }
inline Wide load_wide(const float* p) { return _mm256_loadu_ps(p); }
inline void store_wide(float* p, Wide x) { _mm256_storeu_ps(p, x); }
inline Wide load_wide(const float* p, int count) { return _mm256_maskload_ps(p, first_lanes(count)); }
inline void store_wide(float* p, Wide x, int count) { _mm256_maskstore_ps(p, first_lanes(count), x); }
inline Wide magnitude(Wide x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Wide sign(Wide x) {
  const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
  return _mm256_sub_ps(_mm256_and_ps(_mm256_cmp_ps(x, zero, _CMP_GT_OQ), one),
                       _mm256_and_ps(_mm256_cmp_ps(x, zero, _CMP_LT_OQ), one));
}
template <int k>
inline Wide load_ahead(const float* p) {
  const Wide low = load_wide(p + k / 4 * 4);
  if constexpr (k % 4 == 0) return low;
  const __m256i high = _mm256_castps_si256(load_wide(p + k / 4 * 4 + 4));
  return _mm256_castsi256_ps(_mm256_alignr_epi8(high, _mm256_castps_si256(low), k % 4 * 4));
}

#else

typedef float Wide __attribute__((vector_size(16)));
constexpr int kWide = 4;
inline Wide wide(float x) { return Wide{x, x, x, x}; }
inline Wide load_wide(const float* p) {
  Wide x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline void store_wide(float* p, Wide x) { std::memcpy(p, &x, sizeof(x)); }
inline Wide load_wide(const float* p, int count) {
  Wide x{};
  for (int lane = 0; lane < count; ++lane) x[lane] = p[lane];
  return x;
}
inline void store_wide(float* p, Wide x, int count) {
  for (int lane = 0; lane < count; ++lane) p[lane] = x[lane];
}
inline Wide magnitude(Wide x) { return x < 0.0f ? -x : x; }
inline Wide sign(Wide x) {
  const Wide one = wide(1.0f), zero = wide(0.0f);
  return (x > zero ? one : zero) - (x < zero ? one : zero);
}
template <int k>
inline Wide load_ahead(const float* p) {
  return load_wide(p + k);
}

#endif

inline float sum(Wide x) {
  float total = 0.0f;
  for (int lane = 0; lane < kWide; ++lane) total += x[lane];
  return total;
}

}  // namespace
