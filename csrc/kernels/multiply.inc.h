/* The register-blocked product of all kernels whose lanes hold queries: two vectors of queries against FF_TALL points or
   dimensions, or one vector against FF_LONE. Included once for each compute type FF_T. */

#ifndef FF_MULTIPLY
#define FF_MULTIPLY
/* 6 x 2 vectors of sums leave 4 of 16 registers, and 12 x 2 8 of 32, where 6 x 2 reached two thirds of the speed of 12 x 2
   (Xeon with AVX-512). Numbers of rows are multiples of FF_ROWS. Of one vector alone, FF_LONE rows keep all multipliers
   busy: two a cycle, of which each takes four or five cycles. */
enum { FF_ROWS = 6, FF_TALL = VECTOR_REGISTERS / 32 * 6 + 6, FF_LONE = 12 };

/* Where row, or step, i of a factor lies: at i % FF_TALL * each + i / FF_TALL * group. */
typedef struct {
    int64_t each, group;
} ff_stride;
static inline ff_stride ff_evenly(int64_t each) { return (ff_stride){each, FF_TALL * each}; }

/* Memory that will be read some time later: each block of rows of a product fetches some lines of it. */
typedef struct {
    const char *at, *end;
    int64_t lines;
} ff_ahead;
static inline void ff_fetch(ff_ahead *ahead) {
    for (int64_t line = 0; ahead && line < ahead->lines && ahead->at < ahead->end; line++, ahead->at += FF_LINE)
        __builtin_prefetch(ahead->at, 0, 1); /* not into the first-level cache */
}
#endif

enum { NAME_T(LANES) = 2 * FF_LANES_T };
#define LANES NAME_T(LANES)

/* sum[i] += y[i] q of one step: `rows` elements of y times `vectors` of queries. */
static inline __attribute__((always_inline)) void NAME_T(multiply_step)(const FF_TT *y, ff_stride of_rows, const FF_TT *q,
                                                                          TV sum[][2], int rows, int vectors) {
    const TV q0 = T(load)(q), q1 = vectors == 2 ? T(load)(q + LANES / 2) : q0;
    FF_UNROLL
    for (int i = 0; i < rows; i++) {
        const TV yi = T(set1)(y[i % FF_TALL * of_rows.each + i / FF_TALL * of_rows.group]);
        sum[i][0] = T(fma)(yi, q0, sum[i][0]);
        if (vectors == 2) sum[i][1] = T(fma)(yi, q1, sum[i][1]);
    }
}

/* Some rows of the product below, their number and that of the vectors known when this is compiled. */
static inline __attribute__((always_inline)) void NAME_T(multiply_rows)(const FF_TT *y, ff_stride of_rows,
                                                                          ff_stride of_steps, const FF_TT *q, int64_t steps,
                                                                          FF_TT *out, int add, int rows, int vectors) {
    TV sum[FF_LONE][2];
    FF_UNROLL
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = T(set1)(0);
    for (; steps >= FF_TALL; steps -= FF_TALL, y += of_steps.group, q += FF_TALL * LANES)
        FF_UNROLL_STEPS
        for (int step = 0; step < FF_TALL; step++)
            NAME_T(multiply_step)(y + step * of_steps.each, of_rows, q + step * LANES, sum, rows, vectors);
    for (int64_t step = 0; step < steps; step++)
        NAME_T(multiply_step)(y + step * of_steps.each, of_rows, q + step * LANES, sum, rows, vectors);
    FF_UNROLL
    for (int i = 0; i < rows; i++)
        FF_UNROLL
        for (int v = 0; v < 2; v++) {
            FF_TT *to = out + i * LANES + v * (LANES / 2);
            if (!add) T(store)(to, sum[i][v]);
            else if (v < vectors) T(store)(to, T(add)(T(load)(to), sum[i][v]));
        }
}

/* All rows of the product below, as many at a time as registers hold the sums of. */
static inline __attribute__((always_inline)) void NAME_T(multiply_vectors)(const FF_TT *y, ff_stride of_rows,
                                                                             ff_stride of_steps, const FF_TT *q,
                                                                             int64_t steps, FF_TT *out, int add,
                                                                             int64_t count, int vectors, ff_ahead *ahead) {
    const int64_t rows = ff_ceil_div(count, FF_ROWS) * FF_ROWS;
    int64_t i = 0;
    if (vectors == 1 && FF_TALL < FF_LONE)
        for (; i + FF_LONE <= rows; i += FF_LONE, y += FF_LONE / FF_TALL * of_rows.group) {
            NAME_T(multiply_rows)(y, of_rows, of_steps, q, steps, out + i * LANES, add, FF_LONE, vectors);
            for (int tall = 0; tall < FF_LONE / FF_TALL; tall++) ff_fetch(ahead);
        }
    for (; i + FF_TALL <= rows; i += FF_TALL, y += of_rows.group) {
        NAME_T(multiply_rows)(y, of_rows, of_steps, q, steps, out + i * LANES, add, FF_TALL, vectors);
        ff_fetch(ahead);
    }
    for (; i < rows; i += FF_ROWS, y += FF_ROWS * of_rows.each)
        NAME_T(multiply_rows)(y, of_rows, of_steps, q, steps, out + i * LANES, add, FF_ROWS, vectors);
}

/* out[i][lane] = sum over steps of y[row i, step] q[step][lane], or that added to out, for `count` rows i, or up to
   FF_ROWS - 1 more. If there are queries in the first half of the lanes alone, the others get zero, or are left as they are.
   Unless `ahead` is NULL, some of it is fetched meanwhile. */
static inline __attribute__((always_inline)) void NAME_T(multiply)(const FF_TT *y, ff_stride of_rows, ff_stride of_steps,
                                                                     const FF_TT *q, int64_t steps, FF_TT *out, int add,
                                                                     int64_t count, int64_t halves, ff_ahead *ahead) {
    if (halves == 1) NAME_T(multiply_vectors)(y, of_rows, of_steps, q, steps, out, add, count, 1, ahead);
    else NAME_T(multiply_vectors)(y, of_rows, of_steps, q, steps, out, add, count, 2, ahead);
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
