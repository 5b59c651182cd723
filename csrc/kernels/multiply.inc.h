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

/* Rows of lanes times a factor of each lane. Weights that would become denormal numbers, with which processors are slow,
   become zero; so do all of a lane where the factor is nothing beside one. */
static inline void NAME_T(scale_lanes)(FF_TT *rows, int64_t count, const double *factors, int are_weights) {
    enum { L = LANES / 2 };
    const double nothing = sizeof(FF_TT) == 4 ? 0x1p-50 : 0x1p-110, smallest = sizeof(FF_TT) == 4 ? 1e-36 : 1e-300;
    FF_TT factor[LANES], bound[LANES];
    int any = 0;
    for (int lane = 0; lane < LANES; lane++) {
        any |= factors[lane] != 1.0;
        factor[lane] = (FF_TT)(factors[lane] < nothing ? 0.0 : factors[lane]);
        bound[lane] = (FF_TT)(factors[lane] < nothing ? 1.0 : smallest / factors[lane]);
    }
    if (!any) return;
    const TV f0 = T(load)(factor), f1 = T(load)(factor + L), b0 = T(load)(bound), b1 = T(load)(bound + L);
    for (int64_t i = 0; i < count; i++, rows += LANES) {
        TV v0 = T(load)(rows), v1 = T(load)(rows + L);
        if (are_weights) {
            v0 = T(where_above)(v0, v0, b0);
            v1 = T(where_above)(v1, v1, b1);
        }
        T(store)(rows, T(mul)(v0, f0));
        T(store)(rows + L, T(mul)(v1, f1));
    }
}

#undef LANES
