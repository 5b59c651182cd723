/* Vectors of 16 bytes in the compiler's own notation: no instruction beyond the floor of the target. On x86-64 that
   is SSE2, which has no fused multiply-add. */
#ifndef FF_SIMD_PLAIN_H
#define FF_SIMD_PLAIN_H

#include <stdint.h>
#include <string.h>

enum { F32_LANES = 4, F64_LANES = 2, VECTOR_REGISTERS = 16 };
typedef float f32v __attribute__((vector_size(16)));
typedef double f64v __attribute__((vector_size(16)));
typedef int32_t i32v __attribute__((vector_size(16)));
typedef int64_t i64v __attribute__((vector_size(16)));

#define FF_PLAIN_OPS(f, scalar, vector, integers, shift)                                                    \
    static inline vector f##_load(const scalar *p) { vector v; memcpy(&v, p, sizeof v); return v; }         \
    static inline void f##_store(scalar *p, vector v) { memcpy(p, &v, sizeof v); }                          \
    static inline vector f##_set1(scalar a) { return a - (vector){0}; }                                     \
    static inline vector f##_add(vector a, vector b) { return a + b; }                                      \
    static inline vector f##_sub(vector a, vector b) { return a - b; }                                      \
    static inline vector f##_mul(vector a, vector b) { return a * b; }                                      \
    static inline vector f##_div(vector a, vector b) { return a / b; }                                      \
    static inline vector f##_fma(vector a, vector b, vector c) { return a * b + c; }                        \
    static inline vector f##_fnma(vector a, vector b, vector c) { return c - a * b; }                       \
    static inline vector f##_select(integers mask, vector a, vector b) {                                    \
        return (vector)((mask & (integers)a) | (~mask & (integers)b));                                      \
    }                                                                                                       \
    static inline vector f##_max(vector a, vector b) { return f##_select(a > b, a, b); }                    \
    static inline unsigned f##_above(vector a, vector b) {                                                  \
        unsigned mask = 0;                                                                                  \
        for (unsigned i = 0; i < sizeof a / sizeof a[0]; i++) mask |= (unsigned)(a[i] > b[i]) << i;         \
        return mask;                                                                                        \
    }                                                                                                       \
    /* a where x > bound, else zero */                                                                      \
    static inline vector f##_where_above(vector a, vector x, vector bound) {                                \
        return (vector)((integers)a & (x > bound));                                                         \
    }                                                                                                       \
    /* e 2^n for e > 0: n is in the low bits of `sum`, where adding a large constant to it has left it */   \
    static inline vector f##_times_power(vector e, vector sum) {                                            \
        return (vector)((integers)e + ((integers)sum << shift));                                            \
    }

FF_PLAIN_OPS(f32, float, f32v, i32v, 23)
FF_PLAIN_OPS(f64, double, f64v, i64v, 52)
#undef FF_PLAIN_OPS

static inline f32v f32_sqrt(f32v v) {
    return (f32v){__builtin_sqrtf(v[0]), __builtin_sqrtf(v[1]), __builtin_sqrtf(v[2]), __builtin_sqrtf(v[3])};
}
static inline f32v f32_from_f64(f64v low, f64v high) {
    return (f32v){(float)low[0], (float)low[1], (float)high[0], (float)high[1]};
}
static inline f64v f64_from_low(f32v v) { return (f64v){v[0], v[1]}; }
static inline f64v f64_from_high(f32v v) { return (f64v){v[2], v[3]}; }
/* x > 0 as m 2^n with m from 0.75 to 1.5: bits of x less bits of 0.75 hold n in their exponent field */
static inline f64v f64_mantissa(f64v x, f64v *exponent) {
    const i64v bits = (i64v)x, n = ((bits - (i64v)f64_set1(0.75)) >> 52) + 1023;
    const i64v large = (i64v)f64_set1(0x1p52); /* adding n to its bits adds n to it */
    *exponent = (f64v)(n | large) - f64_set1(0x1p52 + 1023.0);
    return (f64v)(bits - ((n - 1023) << 52));
}
static inline f32v f32_mantissa(f32v x, f32v *exponent) {
    const i32v bits = (i32v)x, n = (bits - (i32v)f32_set1(0.75f)) >> 23;
    *exponent = __builtin_convertvector(n, f32v);
    return (f32v)(bits - (n << 23));
}
static inline double f64_sum(f64v v) { return v[0] + v[1]; }
#define f64_load_f64 f64_load
#define f32_load_f32 f32_load
static inline f64v f64_load_f32(const float *p) { return (f64v){p[0], p[1]}; }
#define FF_PLAIN_LOADS(s)                                                                                   \
    static inline f32v f32_load_##s(const ff_##s *p) {                                                      \
        return (f32v){ff_value_##s(p[0]), ff_value_##s(p[1]), ff_value_##s(p[2]), ff_value_##s(p[3])};      \
    }                                                                                                       \
    static inline f64v f64_load_##s(const ff_##s *p) { return (f64v){ff_value_##s(p[0]), ff_value_##s(p[1])}; }
FF_PLAIN_LOADS(f16)
FF_PLAIN_LOADS(bf16)
FF_PLAIN_LOADS(u8)
FF_PLAIN_LOADS(i8)
#undef FF_PLAIN_LOADS

#endif
