/* What the kernels of one instruction set share. Everything is static: no code of a higher instruction set can be
   merged by the linker with that of a lower one. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../ff_internal.h"

#define FF_PASTE_(a, b) a##b
#define FF_PASTE(a, b) FF_PASTE_(a, b)
#define FF_PASTE3_(a, b, c) a##_##b##_##c
#define FF_PASTE3(a, b, c) FF_PASTE3_(a, b, c)
/* operation_storage_isa and operation_storage_compute_isa */
#define NAME_S(operation) FF_PASTE3(operation, FF_S, FF_ISA)
#define FF_ST FF_PASTE(FF_S, FF_PASTE(_, FF_T))
#define NAME_T(operation) FF_PASTE3(operation, FF_T, FF_ISA)
#define NAME_ST(operation) FF_PASTE3(operation, FF_ST, FF_ISA)

/* A function of a table of kernels */
#define OF(operation, types) FF_PASTE3(operation, types, FF_ISA)

/* The compute type, its vector type and its operations; the storage type's element */
#define FF_TT FF_PASTE(ff_, FF_T)
#define TV FF_PASTE(FF_T, v)
#define T(operation) FF_PASTE(FF_T, FF_PASTE(_, operation))
#define FF_STORED FF_PASTE(ff_, FF_S)
#define FF_LANES_T FF_PASTE(LANES_OF_, FF_T)

/* Tokens as conditions of the preprocessor */
#define FF_IS_f32 1
#define FF_IS_f64 0
#define FF_IS_BYTE_f32 0
#define FF_IS_BYTE_f64 0
#define FF_IS_BYTE_f16 0
#define FF_IS_BYTE_bf16 0
#define FF_IS_BYTE_u8 1
#define FF_IS_BYTE_i8 1

/* What bytes_load adds to a stored value */
#define BYTES_BIAS(s) FF_PASTE(BYTES_BIAS_, s)
#define BYTES_BIAS_u8 0
#define BYTES_BIAS_i8 128

#include "../simd/exp.h"

#define STRING_(a) #a
#define STRING(a) STRING_(a)

/* A value of the storage type in float32 or float64, exactly. */
#define VALUE(stored) FF_PASTE(ff_value_, FF_S)(stored)

enum { LANES_OF_f32 = F32_LANES, LANES_OF_f64 = F64_LANES };
static inline const float *centre_f32(const ff_points *points) { return points->narrow_centre; }
static inline const double *centre_f64(const ff_points *points) { return points->centre; }

/* Stands for the logit of a point without mass: below every other, and finite in the compute type. */
#define FF_DEAD_T FF_PASTE(FF_DEAD_, FF_T)
#define FF_DEAD_f32 (-1e37)
#define FF_DEAD_f64 (-1e306)
/* The same in float64: the logit of a point that a query leaves out. */
#define FF_LEFT_OUT (-1e300)

/* Dimensions handled at a time where several points meet one query: the query's, the centre's and the sum's share of
   them stay in the first-level cache (of 32 KB) while the points stream through. */
enum { FF_SEGMENT = 1024 };

/* For each vector of a panel that has queries: `halves` of its two, a constant. */
#define FOR_PAIR FF_UNROLL for (int h = 0; h < halves; h++)

/* One query's numbers: logit_j = log C_j - precision d_j + base, short of -(size/2) log variance, where
   d_j = sum_k (beta mu'_jk - near_k) (beta mu'_jk - far_k) for e the query's offset from the centre, and beta is that of
   the path times the scale of the data: mu' is in units of what is stored.
   Commonly near = far = e, d_j = |r_j|^2 and base = 0. For a query far outside the data, |r_j|^2 is nearly the same for
   all points and its rounding would show in the weights: there near = 0 and far = 2 e, so that d_j = |r_j|^2 - |e|^2
   and base = -precision |e|^2.
   Where points have variances of their own, D_j = variance + slope own_j, and precision is that of the widest; a logit
   then has -(size/2) log D_j in it, and for far queries `excess`, |e|^2 over the widest D, makes up for what their
   common |e|^2 leaves: |e|^2 (1/D_j - 1/D) (see exact_logit). */
typedef struct {
    double beta, precision, base, norm;
    double variance, slope, gain_constant, gain_slope, excess;
    int is_far;
} coefficients;

static inline double log_mass(const ff_points *points, int64_t j) {
    return points->data.log_mass ? points->data.log_mass[j] : points->equal_log_mass;
}

/* The point that a query leaves out, if it is one of start..stop-1, else -1. */
static inline int64_t left_out(const ff_job *job, int64_t query, int64_t start, int64_t stop) {
    if (!job->queries->exclude) return -1;
    const int64_t point = job->queries->exclude[query];
    return point >= start && point < stop ? point : -1;
}

/* Values of the state of a query. */
static inline size_t sum_values(const ff_job *job) { return (size_t)ff_rows(job); }

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

/* An element of an array in the dtype of the queries. */
static inline double query_value(const ff_queries *queries, const void *values, int64_t at) {
    return queries->dtype == FF_FLOAT32 ? (double)((const float *)values)[at] : ((const double *)values)[at];
}
static inline void store_result(const ff_queries *queries, void *to, int64_t at, double value) {
    if (queries->dtype == FF_FLOAT32) ((float *)to)[at] = (float)value;
    else ((double *)to)[at] = value;
}

/* Offset e = x - alpha m_i - beta origin of a query, so that r_j = e - beta scale mu'_j. */
static void query_offset(const ff_points *points, const ff_queries *queries, int64_t query, double *restrict e) {
    const int64_t size = points->size, i = query * queries->stride;
    const double alpha = queries->alpha[i], beta = queries->beta[i];
    const double *restrict origin = points->origin, *restrict mean = points->data.source_mean;
    if (mean)
        for (int64_t k = 0; k < size; k++)
            e[k] = minus_product(minus_product(query_value(queries, queries->x, query * size + k), alpha, mean[k]), beta, origin[k]);
    else
        for (int64_t k = 0; k < size; k++) e[k] = minus_product(query_value(queries, queries->x, query * size + k), beta, origin[k]);
}

/* The numbers of a query that do not depend on where it is. */
static coefficients query_numbers(const ff_points *points, const ff_queries *queries, int64_t query) {
    const int64_t i = query * queries->stride;
    coefficients c = {.beta = queries->beta[i] * points->data.scale, .variance = queries->variance[i]};
    if (queries->slope) {
        c.slope = queries->slope[i];
        c.gain_constant = queries->gain_constant[i];
        c.gain_slope = queries->gain_slope[i];
    }
    return c;
}

/* Its offset, and all its numbers. */
static coefficients centred_query(const ff_points *points, const ff_queries *queries, int64_t query, double *e) {
    const int64_t size = points->size;
    coefficients c = query_numbers(points, queries, query);
    c.precision = 0.5 / (c.variance + c.slope * points->widest[0]);
    query_offset(points, queries, query, e);
    double square = 0.0;
    for (int64_t k = 0; k < size; k++) square += e[k] * e[k];
    c.norm = sqrt(square);
    /* Beyond twice the data's reach every |r| is at least half of |e|, so nothing cancels in |r|^2 - |e|^2; and where
       |r|^2/(2D) is many times the size/2 that is typical, its rounding would show in the weights. */
    c.is_far = c.norm > 2.0 * fabs(c.beta) * sqrt(points->largest_square) && c.precision * square > 10.0 * (double)size;
    c.base = c.is_far ? -c.precision * square : 0.0;
    c.excess = c.is_far ? 2.0 * c.precision * square : 0.0;
    return c;
}

/* D_j of a point with a variance of its own, and gamma_j. */
static inline double own_variance(const ff_points *points, const coefficients *c, int64_t j) {
    return c->variance + c->slope * points->data.variance[j];
}
static inline double own_gain(const ff_points *points, const coefficients *c, int64_t j) {
    return (c->gain_constant + c->gain_slope * points->data.variance[j]) / own_variance(points, c, j);
}

/* Whether logarithms of D_j over that of the narrowest may be taken in float32: it holds every such ratio, at any time. */
static inline int quick_log(const ff_job *job) {
    const ff_points *points = job->points;
    return job->pointwise && points->widest[0] <= 1e30 * points->narrowest;
}

/* The logit of a point from its d_j, short of the base. */
static inline double exact_logit(const ff_points *points, const coefficients *c, int64_t j, double distance) {
    if (!points->data.variance) return log_mass(points, j) - c->precision * distance;
    const double variance = own_variance(points, c, j);
    distance += c->excess * c->slope * (points->widest[0] - points->data.variance[j]);
    return log_mass(points, j) - 0.5 * (distance / variance + (double)points->size * log(variance));
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

/* e^shift for shift <= 0, or zero where it is nothing beside one and products with it might be subnormal: arithmetic with
   such numbers takes a hundred times as long. */
static inline double merge_factor(double shift) { return shift < -600.0 ? 0.0 : exp(shift); }

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
    *keep = merge_factor(shift);
    *add = merge_factor(part_shift);
    /* x e^x is zero in the limit, but 0 times -1e300 must stay finite: the factors below are never infinite. */
    state->first[query] = *keep * (state->first[query] + state->total[query] * shift) +
                          *add * (p->first + p->total * part_shift);
    state->second[query] = *keep * *keep * state->second[query] + *add * *add * p->second;
    state->total[query] = *keep * state->total[query] + *add * p->total;
    state->largest[query] = largest;
}

/* Merge a partial and its sums of one query, values in a row, into the state of a kernel whose panels hold one
   query. */
static inline void merge_row(const ff_job *job, int is_first, int64_t query, const partial *p, const double *from) {
    const int64_t rows = ff_rows(job);
    double keep, add, *to = job->state.sum + query * rows;
    merge_scalars(&job->state, query, p, is_first, &keep, &add);
    if (is_first) memcpy(to, from, (size_t)rows * sizeof(double));
    else
        for (int64_t k = 0; k < rows; k++) to[k] = keep * to[k] + add * from[k];
}

/* Of all lanes, in float64, as f64_sum. */
static inline double f32_sum(f32v v) { return f64_sum(f64_add(f64_from_low(v), f64_from_high(v))); }

/* wide - largest for one vector of lanes of either compute type: the difference is taken before it is rounded, and bounded,
   so that a weight of zero times it is zero. */
static inline f64v f64_below(const double *wide, const double *largest) {
    return f64_max(f64_sub(f64_load(wide), f64_load(largest)), f64_set1(-1e4));
}
static inline f32v f32_below(const double *wide, const double *largest) {
    return f32_from_f64(f64_below(wide, largest), f64_below(wide + F64_LANES, largest + F64_LANES));
}

/* Dimensions written at a time: those of all queries of a panel are then in the first-level cache. */
enum { WRITTEN = 64 };

/* values, `count` of them, to results from `at` on. */
static inline void store_results(const ff_queries *queries, void *to, int64_t at, const double *restrict values, int64_t count) {
    if (queries->dtype == FF_FLOAT32)
        for (int64_t k = 0; k < count; k++) ((float *)to)[at + k] = (float)values[k];
    else
        for (int64_t k = 0; k < count; k++) ((double *)to)[at + k] = values[k];
}

/* factor value in float32, of a factor that it may not hold. */
static inline float narrow_product(double factor, float value) {
    return fabs(factor) > FLT_MAX && fabs(factor) < INFINITY ? (float)(factor * (double)value) : (float)factor * value;
}

/* The combination that is asked for, of means and residuals as they would be stored, in the arithmetic of their dtype. */
static inline void store_combination(const ff_job *job, int64_t query, int64_t at, const double *restrict mean,
                                     const double *restrict residual, int64_t count) {
    const ff_moments *result = job->result;
    const int64_t i = query * job->queries->stride;
    const double of_residual = result->of_residual[i], of_mean = result->of_mean ? result->of_mean[i] : 0.0;
    if (job->queries->dtype == FF_FLOAT32) {
        float *to = (float *)result->combination + at;
        for (int64_t k = 0; k < count; k++) to[k] = narrow_product(of_residual, (float)residual[k]);
        for (int64_t k = 0; result->of_mean && k < count; k++) to[k] += narrow_product(of_mean, (float)mean[k]);
    } else {
        double *to = (double *)result->combination + at;
        for (int64_t k = 0; k < count; k++) to[k] = of_residual * residual[k];
        for (int64_t k = 0; result->of_mean && k < count; k++) to[k] += of_mean * mean[k];
    }
}

/* Of one query, whose sums lie `lanes` apart from `sum` on: the vectors of its moments, dimensions k..k+count-1. */
static inline void write_vectors(const ff_job *job, const double *sum, int64_t lanes, int64_t query, int64_t k, int64_t count) {
    const ff_points *points = job->points;
    const ff_queries *queries = job->queries;
    const ff_moments *result = job->result;
    const int64_t size = points->size, at = query * size + k, i = query * queries->stride;
    const double scale = points->data.scale, alpha = queries->alpha[i], beta = queries->beta[i], total = job->state.total[query];
    const double *restrict origin = points->origin + k, *restrict source = points->data.source_mean;
    double mean[WRITTEN], offset[WRITTEN], value[WRITTEN];
    sum += k * lanes;
    for (int64_t d = 0; d < count; d++) mean[d] = scale * (sum[d * lanes] / total);
    if (queries->dtype == FF_FLOAT32)
        for (int64_t d = 0; d < count; d++) offset[d] = (double)((const float *)queries->x)[at + d];
    else
        for (int64_t d = 0; d < count; d++) offset[d] = ((const double *)queries->x)[at + d];
    for (int64_t d = 0; source && d < count; d++) offset[d] = minus_product(offset[d], alpha, source[k + d]);
    for (int64_t d = 0; d < count; d++) offset[d] = minus_product(offset[d], beta, origin[d]);
    if (job->pointwise) {
        const double gain = result->gain[query];
        sum += size * lanes;
        for (int64_t d = 0; d < count; d++)
            value[d] = minus_product(-beta * scale * (sum[d * lanes] / total), -gain, offset[d]);
        store_results(queries, result->gained, at, value, count);
    }
    for (int64_t d = 0; d < count; d++) value[d] = minus_product(offset[d], beta, mean[d]);
    for (int64_t d = 0; d < count; d++) mean[d] += origin[d];
    if (result->combination) store_combination(job, query, at, mean, value, count);
    if (!result->mean) return;
    store_results(queries, result->mean, at, mean, count);
    store_results(queries, result->residual, at, value, count);
}

/* From the merged sums of some queries, in panels of `lanes`, to their moments: how most kernels end. */
static void write_moments(const ff_job *job, int64_t lanes, int64_t query, int64_t count) {
    const ff_queries *queries = job->queries;
    const ff_state *state = &job->state;
    const ff_moments *result = job->result;
    const int64_t size = job->points->size, rows = ff_rows(job);
    for (int64_t q = query; q < query + count; q++) {
        const double total = state->total[q];
        result->log_total[q] = state->base[q] + state->largest[q] + log(total);
        if (!job->pointwise) result->log_total[q] -= 0.5 * (double)size * log(queries->variance[q * queries->stride]);
        if (result->entropy) {
            result->entropy[q] = log(total) - state->first[q] / total;
            result->collision[q] = state->second[q] / (total * total);
        }
        if (job->want_mean && job->pointwise)
            result->gain[q] = state->sum[(q / lanes * rows + 2 * size) * lanes + q % lanes] / total;
    }
    for (int64_t panel = query; job->want_mean && panel < query + count; panel += lanes) {
        const double *sums = state->sum + panel * rows;
        for (int64_t k = 0; k < size; k += WRITTEN)
            for (int64_t q = panel; q < ff_min(panel + lanes, query + count); q++)
                write_vectors(job, sums + (q - panel), lanes, q, k, ff_min(WRITTEN, size - k));
    }
}
