/* What the kernels of one instruction set share. Everything is static: no code of a higher instruction set can be
   merged by the linker with that of a lower one. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../ff_internal.h"
#include "../simd/exp.h"

#define FF_PASTE_(a, b) a##b
#define FF_PASTE(a, b) FF_PASTE_(a, b)
#define FF_PASTE3_(a, b, c) a##_##b##_##c
#define FF_PASTE3(a, b, c) FF_PASTE3_(a, b, c)
/* operation_storage_isa and operation_storage_compute_isa */
#define NAME_S(operation) FF_PASTE3(operation, FF_S, FF_ISA)
#define FF_ST FF_PASTE(FF_S, FF_PASTE(_, FF_T))
#define NAME_ST(operation) FF_PASTE3(operation, FF_ST, FF_ISA)

/* The compute type, its vector type and its operations; the storage type's element */
#define FF_TT FF_PASTE(FF_T, _t)
#define TV FF_PASTE(FF_T, v)
#define T(operation) FF_PASTE(FF_T, FF_PASTE(_, operation))
#define FF_STORED FF_PASTE(FF_S, _t)

#define FF_UNROLL _Pragma("GCC unroll 16")

typedef float f32_t;
typedef double f64_t;
enum { LANES_OF_f32 = F32_LANES, LANES_OF_f64 = F64_LANES };
static inline const float *centre_f32(const ff_points *points) { return points->narrow_centre; }
static inline const double *centre_f64(const ff_points *points) { return points->centre; }

/* Stands for the logit of a point without mass: below every other, and finite in float32. */
#define FF_DEAD (-1e37)

/* Dimensions handled at a time where several points meet one query: the query's, the centre's and the sum's share of
   them stay in the first-level cache (of 32 KB) while the points stream through. */
enum { FF_SEGMENT = 1024 };

/* More queries than these are faster as lanes of a panel that is not full. */
enum { FEW_QUERIES = 4 };

/* One query's numbers: logit_j = log C_j - precision d_j + base, short of -(size/2) log variance, where
   d_j = sum_k (beta mu'_jk - near_k) (beta mu'_jk - far_k) for e the query's offset from the centre.
   Commonly near = far = e, d_j = |r_j|^2 and base = 0. For a query far outside the data, |r_j|^2 is nearly the same for
   all points and its rounding would show in the weights: there near = 0 and far = 2 e, so that d_j = |r_j|^2 - |e|^2
   and base = -precision |e|^2. */
typedef struct {
    double alpha, beta, precision, base, norm;
    int is_far;
} coefficients;

static inline double log_mass(const ff_points *points, int64_t j) {
    return points->log_mass ? points->log_mass[j] : points->equal_log_mass;
}

/* a - b c with one rounding of the result, with or without a fused multiply-add in hardware. */
static inline double minus_product(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fma(-b, c, a);
#else
    /* Dekker's two-product on Veltkamp's split: 2^27 + 1 cuts a double into halves whose products are exact. */
    const double split = 134217729.0;
    double bs = split * b, cs = split * c;
    double bh = bs - (bs - b), ch = cs - (cs - c);
    double bl = b - bh, cl = c - ch, product = b * c;
    double error = ((bh * ch - product) + bh * cl + bl * ch) + bl * cl;
    return (a - product) - error;
#endif
}

/* Offset e = x - alpha m_i - beta centre of a query, so that r_j = e - beta mu'_j, and its numbers. */
static coefficients centred_query(const ff_points *points, const ff_queries *queries, int64_t query, double *e) {
    const int64_t size = points->size, i = query * queries->stride;
    coefficients c = {.alpha = queries->alpha[i], .beta = queries->beta[i], .precision = 0.5 / queries->variance[i]};
    double square = 0.0;
    for (int64_t k = 0; k < size; k++) {
        double x = queries->dtype == FF_FLOAT32 ? (double)((const float *)queries->x)[query * size + k]
                                                : ((const double *)queries->x)[query * size + k];
        if (points->source_mean) x = minus_product(x, c.alpha, points->source_mean[k]);
        e[k] = minus_product(x, c.beta, points->centre[k]);
        square += e[k] * e[k];
    }
    c.norm = sqrt(square);
    /* Beyond twice the data's reach every |r| is at least half of |e|, so nothing cancels in |r|^2 - |e|^2; and where
       |r|^2/(2D) is many times the size/2 that is typical, its rounding would show in the weights. */
    c.is_far = c.norm > 2.0 * c.beta * sqrt(points->largest_square) && c.precision * square > 10.0 * (double)size;
    c.base = c.is_far ? -c.precision * square : 0.0;
    return c;
}

/* Fill a list of weighted points up to a multiple of four with zero weights; returns its new length. */
static inline int64_t fill_up_to_four(int64_t count, int64_t *index, double *weight) {
    for (; count % 4 != 0; count++) {
        index[count] = index[count - 1];
        weight[count] = 0.0;
    }
    return count;
}

/* Partial sums of one query over one chunk, relative to the logit `largest`. */
typedef struct {
    double largest, total, first, second, base;
} partial;

/* Merge a partial into the state of a query by the log-sum-exp rule. Returns the factors by which the sums of the
   state and of the partial enter the merged sum. */
static inline void merge_scalars(const ff_state *state, int64_t query, const partial *p, int is_first, double *keep,
                                 double *add) {
    if (is_first) {
        state->largest[query] = p->largest;
        state->total[query] = p->total;
        state->first[query] = p->first;
        state->second[query] = p->second;
        state->base[query] = p->base;
        *keep = 0.0;
        *add = 1.0;
        return;
    }
    const double largest = fmax(state->largest[query], p->largest);
    const double shift = state->largest[query] - largest, part_shift = p->largest - largest;
    *keep = exp(shift);
    *add = exp(part_shift);
    /* x e^x is zero in the limit, but 0 times -1e300 must stay finite: the factors below are never infinite. */
    state->first[query] = *keep * (state->first[query] + state->total[query] * shift) +
                          *add * (p->first + p->total * part_shift);
    state->second[query] = *keep * *keep * state->second[query] + *add * *add * p->second;
    state->total[query] = *keep * state->total[query] + *add * p->total;
    state->largest[query] = largest;
}

/* Merge a partial and its sums of one query, `size` values in a row, into the state of a kernel whose panels hold one
   query. */
static inline void merge_row(const ff_job *job, int is_first, int64_t query, const partial *p, const double *from) {
    const int64_t size = job->points->size;
    double keep, add, *to = job->state.sum + query * size;
    merge_scalars(&job->state, query, p, is_first, &keep, &add);
    if (!job->want_mean) return;
    if (is_first) memcpy(to, from, (size_t)size * sizeof(double));
    else
        for (int64_t k = 0; k < size; k++) to[k] = keep * to[k] + add * from[k];
}
