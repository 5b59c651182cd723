/* exp(x) for x <= 0 (a little above is fine), exactly zero below -64 (float32) and -640 (float64): what such weights add to
   others of about one is far below rounding, and a weight times something smaller stays a normal number. With others each
   operation takes Intel's processors some hundred cycles.

   x = n ln 2 + r with |r| <= ln(2)/2; exp(r) = 1 + r + r^2 q(r). The coefficients of q are the Chebyshev
   interpolants of (exp(r) - 1 - r) / r^2 on that interval, computed with 40 digits; the largest relative error of
   exp(r) that they leave is 1.0e-8 (float32, degree 4) and 1.7e-17 (float64, degree 9), below rounding. Adding
   1.5 * 2^(bits of the significand) rounds x / ln 2 to an integer in the low bits of the sum, which are then added to the
   exponent of exp(r). */
#ifndef FF_SIMD_EXP_H
#define FF_SIMD_EXP_H

static inline f32v f32_exp(f32v x) {
    const f32v lowest = f32_set1(-64.0f);
    const f32v shifter = f32_set1(12582912.0f);
    f32v clamped = f32_max(x, lowest);
    f32v sum = f32_fma(clamped, f32_set1(1.44269504f), shifter);
    f32v n = f32_sub(sum, shifter);
    f32v r = f32_fnma(n, f32_set1(0.693359375f), clamped); /* ln 2 in two parts, the first exact times n */
    r = f32_fnma(n, f32_set1(-2.12194440e-4f), r);
    f32v q = f32_set1(0.0013926213466f);
    q = f32_fma(q, r, f32_set1(0.0083632029716f));
    q = f32_fma(q, r, f32_set1(0.0416665544377f));
    q = f32_fma(q, r, f32_set1(0.1666657684600f));
    q = f32_fma(q, r, f32_set1(0.5f));
    f32v e = f32_fma(f32_mul(r, r), q, f32_add(r, f32_set1(1.0f)));
    return f32_where_above(f32_times_power(e, sum), x, lowest);
}

/* 2^x for |x| <= 80: 1 + f q(f) with |f| <= 1/2, q as above; the largest relative error is 5.1e-9. */
static inline f32v f32_exp2_within(f32v x) {
    const f32v shifter = f32_set1(12582912.0f), sum = f32_add(x, shifter);
    const f32v f = f32_sub(x, f32_sub(sum, shifter));
    f32v q = f32_set1(0.000154531629451f);
    q = f32_fma(q, f, f32_set1(0.00133908633647f));
    q = f32_fma(q, f, f32_set1(0.00961808255728f));
    q = f32_fma(q, f, f32_set1(0.0555035711422f));
    q = f32_fma(q, f, f32_set1(0.240226507606f));
    q = f32_fma(q, f, f32_set1(0.693147188026f));
    return f32_times_power(f32_fma(q, f, f32_set1(1.0f)), sum);
}

/* The same for x <= 0 (a little above is fine), held at 2^-80 below. */
static inline f32v f32_exp2(f32v x) { return f32_exp2_within(f32_max(x, f32_set1(-80.0f))); }

static inline f64v f64_exp(f64v x) {
    const f64v lowest = f64_set1(-640.0);
    const f64v shifter = f64_set1(6755399441055744.0);
    f64v clamped = f64_max(x, lowest);
    f64v sum = f64_fma(clamped, f64_set1(1.4426950408889634), shifter);
    f64v n = f64_sub(sum, shifter);
    f64v r = f64_fnma(n, f64_set1(0.693147180369123816490), clamped); /* the low 21 bits of this part are zero */
    r = f64_fnma(n, f64_set1(1.90821492927058770002e-10), r);
    f64v q = f64_set1(2.5100424157005066788e-8);
    q = f64_fma(q, r, f64_set1(2.7620138719733995569e-7));
    q = f64_fma(q, r, f64_set1(2.7557268378684192873e-6));
    q = f64_fma(q, r, f64_set1(2.4801521190217727651e-5));
    q = f64_fma(q, r, f64_set1(1.9841269863105968748e-4));
    q = f64_fma(q, r, f64_set1(1.3888888917281793308e-3));
    q = f64_fma(q, r, f64_set1(8.3333333333300513464e-3));
    q = f64_fma(q, r, f64_set1(4.1666666666623991516e-2));
    q = f64_fma(q, r, f64_set1(1.6666666666666667456e-1));
    q = f64_fma(q, r, f64_set1(0.5));
    f64v e = f64_fma(f64_mul(r, r), q, f64_add(r, f64_set1(1.0)));
    return f64_where_above(f64_times_power(e, sum), x, lowest);
}

/* log(x) and 1/x for normal x > 0, by one division: with x = m 2^n and s = (m - 1) / (m + 1), |s| <= 1/5, the logarithm is
   n ln 2 + 2 artanh(s), whose series ends with s^last / last: what is cut off is less than 2e-17 for 21 and 5e-12 for 13. */
static inline f64v f64_log_inverse(f64v x, int last, f64v *inverse) {
    f64v n;
    const f64v m = f64_mantissa(x, &n), one = f64_set1(1.0), next = f64_add(m, one);
    const f64v both = f64_div(one, f64_mul(next, x));
    *inverse = f64_mul(both, next);
    const f64v s = f64_mul(f64_sub(m, one), f64_mul(both, x)), square = f64_mul(s, s);
    f64v q = f64_set1(1.0 / last);
    FF_UNROLL
    for (int odd = last - 2; odd >= 3; odd -= 2) q = f64_fma(q, square, f64_set1(1.0 / odd));
    const f64v twice = f64_add(s, s);
    const f64v tail = f64_fma(n, f64_set1(1.90821492927058770002e-10), f64_mul(f64_mul(twice, square), q));
    return f64_fma(n, f64_set1(0.693147180369123816490), f64_add(twice, tail));
}
/* log(x) for normal x > 0 in float32: x = (1 + f) 2^n, log(1 + f) = f + f^2 q(f) for f from -1/4 to 1/2, q as above; what
   the interpolation leaves is 4.2e-9. */
static inline f32v f32_log(f32v x) {
    f32v n;
    const f32v f = f32_sub(f32_mantissa(x, &n), f32_set1(1.0f));
    f32v q = f32_set1(-0.047382424844f);
    q = f32_fma(q, f, f32_set1(0.10625629206f));
    q = f32_fma(q, f, f32_set1(-0.13122876906f));
    q = f32_fma(q, f, f32_set1(0.1443845675f));
    q = f32_fma(q, f, f32_set1(-0.16647644092f));
    q = f32_fma(q, f, f32_set1(0.19993592508f));
    q = f32_fma(q, f, f32_set1(-0.25000153882f));
    q = f32_fma(q, f, f32_set1(0.33333395449f));
    q = f32_fma(q, f, f32_set1(-0.49999999796f));
    return f32_fma(n, f32_set1(0.69314718f), f32_fma(f32_mul(f, f), q, f));
}
static inline f64v f64_log(f64v x) {
    f64v inverse;
    return f64_log_inverse(x, 21, &inverse);
}

#endif
