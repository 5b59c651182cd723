/* NEON of arm64, which every such processor has: vectors of 16 bytes, with fused multiply-add. */
#ifndef FF_SIMD_NEON_H
#define FF_SIMD_NEON_H

#include <arm_neon.h>

enum { F32_LANES = 4, F64_LANES = 2, VECTOR_REGISTERS = 32 };
typedef float32x4_t f32v;
typedef float64x2_t f64v;

#define FF_NEON_OPS(f, s, u, scalar, vector)                                                                \
    static inline vector f##_load(const scalar *p) { return vld1q_##s(p); }                                 \
    static inline void f##_store(scalar *p, vector v) { vst1q_##s(p, v); }                                  \
    static inline vector f##_set1(scalar a) { return vdupq_n_##s(a); }                                      \
    static inline vector f##_add(vector a, vector b) { return vaddq_##s(a, b); }                            \
    static inline vector f##_sub(vector a, vector b) { return vsubq_##s(a, b); }                            \
    static inline vector f##_mul(vector a, vector b) { return vmulq_##s(a, b); }                            \
    static inline vector f##_div(vector a, vector b) { return vdivq_##s(a, b); }                            \
    static inline vector f##_fma(vector a, vector b, vector c) { return vfmaq_##s(c, a, b); }               \
    static inline vector f##_fnma(vector a, vector b, vector c) { return vfmsq_##s(c, a, b); }              \
    /* where a is no number b, as on x86 */                                                                 \
    static inline vector f##_max(vector a, vector b) { return vbslq_##s(vcgtq_##s(a, b), a, b); }           \
    /* a where x > bound, else zero */                                                                      \
    static inline vector f##_where_above(vector a, vector x, vector bound) {                                \
        return vreinterpretq_##s##_##u(vandq_##u(vreinterpretq_##u##_##s(a), vcgtq_##s(x, bound)));         \
    }

FF_NEON_OPS(f32, f32, u32, float, float32x4_t)
FF_NEON_OPS(f64, f64, u64, double, float64x2_t)
#undef FF_NEON_OPS

static inline unsigned f32_above(f32v a, f32v b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(a, b), bits));
}
static inline unsigned f64_above(f64v a, f64v b) {
    const uint64x2_t bits = {1, 2};
    return (unsigned)vaddvq_u64(vandq_u64(vcgtq_f64(a, b), bits));
}
static inline f32v f32_sqrt(f32v v) { return vsqrtq_f32(v); }

/* e 2^n for e > 0: n is in the low bits of `sum`, where adding a large constant to it has left it, and is added to the
   exponent of e */
static inline f32v f32_times_power(f32v e, f32v sum) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(e), vshlq_n_s32(vreinterpretq_s32_f32(sum), 23)));
}
static inline f64v f64_times_power(f64v e, f64v sum) {
    return vreinterpretq_f64_s64(vaddq_s64(vreinterpretq_s64_f64(e), vshlq_n_s64(vreinterpretq_s64_f64(sum), 52)));
}
/* x > 0 as m 2^n with m from 0.75 to 1.5: bits of x less bits of 0.75 hold n in their exponent field */
static inline f32v f32_mantissa(f32v x, f32v *exponent) {
    const int32x4_t bits = vreinterpretq_s32_f32(x), low = vreinterpretq_s32_f32(f32_set1(0.75f));
    const int32x4_t n = vshrq_n_s32(vsubq_s32(bits, low), 23);
    *exponent = vcvtq_f32_s32(n);
    return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(n, 23)));
}
static inline f64v f64_mantissa(f64v x, f64v *exponent) {
    const int64x2_t bits = vreinterpretq_s64_f64(x), low = vreinterpretq_s64_f64(f64_set1(0.75));
    const int64x2_t n = vshrq_n_s64(vsubq_s64(bits, low), 52);
    *exponent = vcvtq_f64_s64(n);
    return vreinterpretq_f64_s64(vsubq_s64(bits, vshlq_n_s64(n, 52)));
}
static inline double f64_sum(f64v v) { return vgetq_lane_f64(v, 0) + vgetq_lane_f64(v, 1); }

static inline f32v f32_from_f64(f64v low, f64v high) { return vcombine_f32(vcvt_f32_f64(low), vcvt_f32_f64(high)); }
static inline f64v f64_from_low(f32v v) { return vcvt_f64_f32(vget_low_f32(v)); }
static inline f64v f64_from_high(f32v v) { return vcvt_high_f64_f32(v); }
#define f64_load_f64 f64_load
#define f32_load_f32 f32_load
static inline f64v f64_load_f32(const float *p) { return vcvt_f64_f32(vld1_f32(p)); }

/* Narrow storage types: whole vectors of float32, and halves of them that become float64. */
static inline f32v f32_load_f16(const ff_f16 *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline f32v f32_load_bf16(const ff_bf16 *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline f32v f32_load_u8(const ff_u8 *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
}
static inline f32v f32_load_i8(const ff_i8 *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}
#define FF_NEON_PAIR(s) \
    static inline f64v f64_load_##s(const ff_##s *p) { return (f64v){ff_value_##s(p[0]), ff_value_##s(p[1])}; }
FF_NEON_PAIR(f16)
FF_NEON_PAIR(bf16)
FF_NEON_PAIR(u8)
FF_NEON_PAIR(i8)
#undef FF_NEON_PAIR

#endif
