#include "ff_field.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* The bounds of fastflow/_arrays.py and path.py. */
static const double LARGEST_FACTOR = 1e10, LARGEST_SLOPE = 1e150;
static const double SINGULAR_VARIANCE = 1e-120;

/* Whether all are within: a loop without an exit, of many values at a time. */
static int all_within(double largest, const void *values, ff_dtype dtype, int64_t count) {
    int beyond = 0;
    if (dtype == FF_FLOAT32) {
        const float *from = values, most = largest < FLT_MAX ? (float)largest : FLT_MAX;
        for (int64_t i = 0; i < count; i++) beyond |= !(fabsf(from[i]) <= most);
    } else {
        const double *from = values;
        for (int64_t i = 0; i < count; i++) beyond |= !(fabs(from[i]) <= largest);
    }
    return !beyond;
}

int64_t ff_first_beyond(double largest, const void *values, ff_dtype dtype, int64_t count) {
    if (all_within(largest, values, dtype, count)) return -1;
    int64_t i = 0;
    while (i < count - 1 && fabs(ff_number_at(values, dtype, i)) <= largest) i++;
    return i;
}

static ff_time_fault fault_of(double t, const double c[FF_PROGRAM_OUTPUTS], double variance) {
    const double alpha = c[0], beta = c[1], d_alpha = c[2], d_beta = c[3], product = c[4];
    if (!(t >= 0.0 && t <= 1.0)) return FF_TIME_OUTSIDE;
    if (!(fabs(alpha) <= LARGEST_FACTOR && fabs(beta) <= LARGEST_FACTOR && d_alpha == d_alpha &&
          fabs(d_beta) <= LARGEST_SLOPE && fabs(product) <= LARGEST_SLOPE))
        return FF_TIME_SCHEDULE;
    if (!(variance >= FF_SMALLEST_COMPONENT) && (variance != 0.0 || beta * beta == 0.0)) return FF_TIME_NARROW;
    return FF_TIME_SERVED;
}

int ff_field_times(const ff_field *field, const void *t, ff_dtype dtype, int64_t count, double *memory, ff_times *result,
                   ff_bad_time *bad) {
    *result = (ff_times){count,      memory,     memory + count, memory + 2 * count, memory + 3 * count, memory + 4 * count,
                         memory + 5 * count, 0};
    for (int64_t k = 0; k < count; k++) {
        const double time = ff_number_at(t, dtype, k);
        double s[FF_PROGRAM_OUTPUTS];
        ff_program_run(&field->schedule, time, s);
        const double alpha = s[0], beta = s[1], d_beta = s[3];
        const double variance = alpha * alpha * field->source_variance + beta * beta * field->target_variance;
        const ff_time_fault fault = fault_of(time, s, variance);
        if (fault != FF_TIME_SERVED) {
            *bad = (ff_bad_time){fault, k, time, variance};
            return 0;
        }
        const int singular = !(variance > 0.0);
        const double drift = s[4] * field->source_variance + beta * d_beta * field->target_variance;
        result->alpha[k] = alpha;
        result->beta[k] = beta;
        result->variance[k] = singular ? SINGULAR_VARIANCE : variance;
        result->rate[k] = singular ? d_beta / beta : drift / variance;
        result->d_alpha[k] = s[2];
        result->d_beta[k] = d_beta;
        result->singular |= singular;
    }
    return 1;
}

static ff_queries queries_at(const ff_times *times, const void *x, ff_dtype dtype, int64_t count) {
    return (ff_queries){.x = x, .dtype = dtype, .count = count, .alpha = times->alpha, .beta = times->beta,
                        .variance = times->variance, .stride = times->count == 1 ? 0 : 1};
}

/* result += factor m_i, the product in double. */
static void add_source_mean(const ff_field *field, void *result, ff_dtype dtype, double factor, int64_t query) {
    for (int64_t k = 0; k < field->size; k++) {
        const double shift = factor * field->source_mean[k];
        if (dtype == FF_FLOAT32) ((float *)result)[query * field->size + k] += (float)shift;
        else ((double *)result)[query * field->size + k] += shift;
    }
}

/* Numbers of a call, which a small one holds on the stack. */
enum { FEW_NUMBERS = 64 };

int ff_field_velocity(const ff_field *field, const ff_times *times, const void *x, ff_dtype dtype, int64_t count,
                      void *result, int num_threads) {
    const ff_queries queries = queries_at(times, x, dtype, count);
    double few[FEW_NUMBERS], *log_total = count <= FEW_NUMBERS ? few : malloc((size_t)count * sizeof *log_total);
    if (!log_total) return FF_NO_MEMORY;
    /* A factor of zero at a time for all queries leaves the mean out, which may be infinite (VE, and where t is an end). */
    const int no_mean = times->count == 1 && times->d_beta[0] == 0.0;
    const ff_moments moments = {.log_total = log_total,
                                .combination = result,
                                .of_mean = no_mean ? NULL : times->d_beta,
                                .of_residual = times->rate};
    const int status = ff_points_moments(field->points, &queries, &moments, num_threads);
    if (log_total != few) free(log_total);
    for (int64_t k = 0; !status && field->source_mean && k < count; k++)
        add_source_mean(field, result, dtype, times->d_alpha[times->count == 1 ? 0 : k], k);
    return status;
}

/* result = result product_factor + u u_factor of one query, in the arithmetic of the dtype. */
static void add_scaled(const ff_field *field, void *result, const void *u, ff_dtype dtype, double product_factor,
                       double u_factor, int64_t query) {
    const int64_t start = query * field->size, stop = start + field->size;
    if (dtype == FF_FLOAT32)
        for (int64_t i = start; i < stop; i++)
            ((float *)result)[i] = ((const float *)result)[i] * (float)product_factor + ((const float *)u)[i] * (float)u_factor;
    else
        for (int64_t i = start; i < stop; i++)
            ((double *)result)[i] = ((const double *)result)[i] * product_factor + ((const double *)u)[i] * u_factor;
}

int ff_field_product(const ff_field *field, const ff_times *times, const void *x, const void *u, ff_dtype dtype,
                     int64_t count, void *result, int num_threads) {
    ff_queries queries = queries_at(times, x, dtype, count);
    const size_t bytes = (size_t)count * (size_t)field->size * (dtype == FF_FLOAT32 ? sizeof(float) : sizeof(double));
    double *numbers = malloc(4 * (size_t)count * sizeof *numbers);
    char *vectors = malloc(2 * bytes);
    int status = FF_NO_MEMORY;
    if (numbers && vectors) {
        double *factors = numbers + 2 * count;
        for (int64_t k = 0; k < count; k++) {
            factors[k] = -(1.0 / times->variance[times->count == 1 ? 0 : k]);
            factors[count + k] = 0.0;
        }
        queries.direction = u;
        queries.residual_factor = factors;
        queries.gained_factor = queries.mean_factor = factors + count;
        const ff_moments moments = {.log_total = numbers,
                                    .tilt = numbers + count,
                                    .mean = vectors,
                                    .residual = vectors + bytes,
                                    .mean_product = result};
        status = ff_points_moments(field->points, &queries, &moments, num_threads);
        for (int64_t k = 0; !status && k < count; k++) {
            const int64_t at = times->count == 1 ? 0 : k;
            add_scaled(field, result, u, dtype, times->d_beta[at] - times->rate[at] * times->beta[at], times->rate[at], k);
        }
    }
    free(numbers);
    free(vectors);
    return status;
}
