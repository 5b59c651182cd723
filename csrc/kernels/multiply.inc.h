/* The register-blocked product of all kernels whose lanes hold queries: two vectors of queries against FF_ROWS points, or
   dimensions. Included once for each compute type FF_T. */

#ifndef FF_MULTIPLY
#define FF_MULTIPLY
/* 6 x 2 vectors of sums leave 4 of 16 registers. */
enum { FF_ROWS = 6 };
#endif

enum { NAME_T(LANES) = 2 * FF_LANES_T };
#define LANES NAME_T(LANES)

/* out[i][lane] = sum over steps of y[i row_stride + step step_stride] q[step][lane], or that added to out. */
static inline __attribute__((always_inline)) void NAME_T(multiply)(const FF_TT *y, int64_t row_stride,
                                                                     int64_t step_stride, const FF_TT *q,
                                                                     int64_t steps, FF_TT *out, int add) {
    enum { L = LANES / 2 };
    TV sum[FF_ROWS][2];
    FF_UNROLL
    for (int i = 0; i < FF_ROWS; i++) sum[i][0] = sum[i][1] = T(set1)(0);
    for (int64_t step = 0; step < steps; step++) {
        const TV q0 = T(load)(q + step * LANES), q1 = T(load)(q + step * LANES + L);
        FF_UNROLL
        for (int i = 0; i < FF_ROWS; i++) {
            const TV yi = T(set1)(y[i * row_stride + step * step_stride]);
            sum[i][0] = T(fma)(yi, q0, sum[i][0]);
            sum[i][1] = T(fma)(yi, q1, sum[i][1]);
        }
    }
    FF_UNROLL
    for (int i = 0; i < FF_ROWS; i++) {
        FF_TT *to = out + i * LANES;
        T(store)(to, add ? T(add)(T(load)(to), sum[i][0]) : sum[i][0]);
        T(store)(to + L, add ? T(add)(T(load)(to + L), sum[i][1]) : sum[i][1]);
    }
}

#undef LANES
