/* AVX-512 (foundation, BW, DQ and VL): vectors of 64 bytes. */
#ifndef FF_SIMD_AVX512_H
#define FF_SIMD_AVX512_H

#ifdef FF_INTRINSICS /* the tests' own, for machines that lack the instructions */
#include FF_INTRINSICS
#else
#include <immintrin.h>
#endif

enum { F32_LANES = 16, F64_LANES = 8, VECTOR_REGISTERS = 32 };
typedef __m512 f32v;
typedef __m512d f64v;

#define FF_AVX512_OPS(f, s, scalar, vector)                                                                        \
    static inline vector f##_load(const scalar *p) { return _mm512_loadu_##s(p); }                                 \
    static inline void f##_store(scalar *p, vector v) { _mm512_storeu_##s(p, v); }                                 \
    static inline vector f##_set1(scalar a) { return _mm512_set1_##s(a); }                                         \
    static inline vector f##_add(vector a, vector b) { return _mm512_add_##s(a, b); }                              \
    static inline vector f##_sub(vector a, vector b) { return _mm512_sub_##s(a, b); }                              \
    static inline vector f##_mul(vector a, vector b) { return _mm512_mul_##s(a, b); }                              \
    static inline vector f##_fma(vector a, vector b, vector c) { return _mm512_fmadd_##s(a, b, c); }               \
    static inline vector f##_fnma(vector a, vector b, vector c) { return _mm512_fnmadd_##s(a, b, c); }             \
    static inline vector f##_div(vector a, vector b) { return _mm512_div_##s(a, b); }                              \
    static inline vector f##_max(vector a, vector b) { return _mm512_max_##s(a, b); }                              \
    static inline unsigned f##_above(vector a, vector b) { return _mm512_cmp_##s##_mask(a, b, _CMP_GT_OQ); }          \
    /* a where x > bound, else zero */                                                                             \
    static inline vector f##_where_above(vector a, vector x, vector bound) {                                       \
        return _mm512_maskz_mov_##s(_mm512_cmp_##s##_mask(x, bound, _CMP_GT_OQ), a);                               \
    }

FF_AVX512_OPS(f32, ps, float, __m512)
FF_AVX512_OPS(f64, pd, double, __m512d)
static inline f32v f32_sqrt(f32v v) { return _mm512_sqrt_ps(v); }
#undef FF_AVX512_OPS

/* e 2^n for e > 0: n is in the low bits of `sum`, where adding a large constant to it has left it, and is added to the
   exponent of e */
static inline f32v f32_times_power(f32v e, f32v sum) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(sum), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(e), n));
}
static inline f64v f64_times_power(f64v e, f64v sum) {
    const __m512i n = _mm512_slli_epi64(_mm512_castpd_si512(sum), 52);
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(e), n));
}
/* x > 0 as m 2^n with m from 0.75 to 1.5: bits of x less bits of 0.75 hold n in their exponent field */
static inline f64v f64_mantissa(f64v x, f64v *exponent) {
    const __m512i bits = _mm512_castpd_si512(x), low = _mm512_castpd_si512(f64_set1(0.75));
    const __m512i n = _mm512_srli_epi64(_mm512_add_epi64(_mm512_sub_epi64(bits, low), _mm512_set1_epi64(1023LL << 52)), 52);
    const __m512i large = _mm512_castpd_si512(f64_set1(0x1p52)); /* adding n to its bits adds n to it */
    *exponent = f64_sub(_mm512_castsi512_pd(_mm512_or_si512(n, large)), f64_set1(0x1p52 + 1023.0));
    return _mm512_castsi512_pd(_mm512_sub_epi64(bits, _mm512_slli_epi64(_mm512_sub_epi64(n, _mm512_set1_epi64(1023)), 52)));
}
static inline f32v f32_mantissa(f32v x, f32v *exponent) {
    const __m512i bits = _mm512_castps_si512(x), low = _mm512_castps_si512(f32_set1(0.75f));
    const __m512i n = _mm512_srai_epi32(_mm512_sub_epi32(bits, low), 23);
    *exponent = _mm512_cvtepi32_ps(n);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(n, 23)));
}
static inline double f64_sum(f64v v) { return _mm512_reduce_add_pd(v); }

static inline f32v f32_from_f64(f64v low, f64v high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
static inline f64v f64_from_low(f32v v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
static inline f64v f64_from_high(f32v v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
#define f64_load_f64 f64_load
#define f32_load_f32 f32_load
static inline f64v f64_load_f32(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }

/* Narrow storage types: whole vectors of float32, and halves of them that become float64. */
static inline f32v f32_load_f16(const ff_f16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline f64v f64_load_f16(const ff_f16 *p) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
}
static inline f32v f32_load_bf16(const ff_bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline f64v f64_load_bf16(const ff_bf16 *p) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
    return _mm512_cvtps_pd(_mm256_castsi256_ps(bits));
}
static inline f32v f32_load_u8(const ff_u8 *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline f32v f32_load_i8(const ff_i8 *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline f64v f64_load_u8(const ff_u8 *p) {
    return _mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline f64v f64_load_i8(const ff_i8 *p) {
    return _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* Whole numbers: bytes as vectors of 16 bits, of those at even places and at odd ones, in sums of 32 bits. */
#define WHOLE_NUMBERS
typedef __m512i i32v;
static inline i32v i32_zero(void) { return _mm512_setzero_si512(); }
static inline i32v i32_set1(int32_t a) { return _mm512_set1_epi32(a); }
static inline i32v i16_load(const int16_t *p) { return _mm512_loadu_si512(p); }
/* sum + the products of two neighbours each */
static inline i32v i32_dot(i32v sum, i32v a, i32v b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
static inline i32v i16_pairs_low(i32v a, i32v b) { return _mm512_unpacklo_epi16(a, b); }
static inline i32v i16_pairs_high(i32v a, i32v b) { return _mm512_unpackhi_epi16(a, b); }
static inline i32v bytes_even(i32v bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi16(255)); }
static inline i32v bytes_odd(i32v bytes) { return _mm512_srli_epi16(bytes, 8); }
static inline i32v bytes_load_u8(const ff_u8 *p) {
    i32v bytes = _mm512_loadu_si512(p);
    __asm__("" : "+v"(bytes)); /* once: each of two uses would load it, and rows rarely begin with a cache line */
    return bytes;
}
static inline i32v bytes_load_i8(const ff_i8 *p) { /* with BYTES_BIAS */
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
}
static inline f32v f32_of_i32(i32v v) { return _mm512_cvtepi32_ps(v); }
static inline f64v f64_of_low_i32(i32v v) { return _mm512_cvtepi32_pd(_mm512_castsi512_si256(v)); }
static inline f64v f64_of_high_i32(i32v v) { return _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(v, 1)); }

#endif
