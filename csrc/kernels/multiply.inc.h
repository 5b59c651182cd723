/* The register-blocked product of all kernels whose lanes hold queries: two vectors of queries against FF_TALL points, or
   dimensions. Included once for each compute type FF_T. */

#ifndef FF_MULTIPLY
#define FF_MULTIPLY
/* 6 x 2 vectors of sums leave 4 of 16 registers, and 12 x 2 8 of 32, where 6 x 2 reached two thirds of the speed of 12 x 2
   (Xeon with AVX-512). Numbers of rows are multiples of FF_ROWS. */
enum { FF_ROWS = 6, FF_TALL = VECTOR_REGISTERS / 32 * 6 + 6 };
#endif

enum { NAME_T(LANES) = 2 * FF_LANES_T };
#define LANES NAME_T(LANES)

/* `rows` <= FF_TALL of the product below, known when this is compiled. */
static inline __attribute__((always_inline)) void NAME_T(multiply_rows)(const FF_TT *y, int64_t row_stride,
                                                                          int64_t step_stride, const FF_TT *q,
                                                                          int64_t steps, FF_TT *out, int add, int rows) {
    enum { L = LANES / 2 };
    TV sum[FF_TALL][2];
    FF_UNROLL
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = T(set1)(0);
    for (int64_t step = 0; step < steps; step++) {
        const TV q0 = T(load)(q + step * LANES), q1 = T(load)(q + step * LANES + L);
        FF_UNROLL
        for (int i = 0; i < rows; i++) {
            const TV yi = T(set1)(y[i * row_stride + step * step_stride]);
            sum[i][0] = T(fma)(yi, q0, sum[i][0]);
            sum[i][1] = T(fma)(yi, q1, sum[i][1]);
        }
    }
    FF_UNROLL
    for (int i = 0; i < rows; i++) {
        FF_TT *to = out + i * LANES;
        T(store)(to, add ? T(add)(T(load)(to), sum[i][0]) : sum[i][0]);
        T(store)(to + L, add ? T(add)(T(load)(to + L), sum[i][1]) : sum[i][1]);
    }
}

/* out[i][lane] = sum over steps of y[i row_stride + step step_stride] q[step][lane], or that added to out, for `count`
   rows i, or up to FF_ROWS - 1 more. */
static inline __attribute__((always_inline)) void NAME_T(multiply)(const FF_TT *y, int64_t row_stride,
                                                                     int64_t step_stride, const FF_TT *q,
                                                                     int64_t steps, FF_TT *out, int add, int64_t count) {
    int64_t i = 0;
    for (; i + FF_TALL <= ff_ceil_div(count, FF_ROWS) * FF_ROWS; i += FF_TALL)
        NAME_T(multiply_rows)(y + i * row_stride, row_stride, step_stride, q, steps, out + i * LANES, add, FF_TALL);
    for (; i < count; i += FF_ROWS)
        NAME_T(multiply_rows)(y + i * row_stride, row_stride, step_stride, q, steps, out + i * LANES, add, FF_ROWS);
}

#undef LANES
