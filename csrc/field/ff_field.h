/* A field as callers without Python evaluate it, and plain calls of Python's own: its points, which share one variance and
   have no covariance, its numbers, and its schedule as a program.

   The formulas are those of fastflow/path.py and quantities.py, in the same order: results are those of the Python
   calls, bit for bit. */
#ifndef FF_FIELD_H
#define FF_FIELD_H

#include "ff.h"
#include "ff_program.h"

typedef struct {
    const ff_points *points;
    int64_t size;
    double source_variance, target_variance; /* s_i and s_f */
    const double *source_mean;               /* (size), or NULL for zero */
    ff_program schedule;
} ff_field;

/* The largest value of a query or a direction, and the smallest variance of a component that is not zero (LARGEST and
   SMALLEST_COMPONENT of fastflow/_arrays.py). */
static const double FF_LARGEST_VALUE = 1e70, FF_SMALLEST_COMPONENT = 1e-115;

/* A number of an array of FF_FLOAT32 or FF_FLOAT64. */
static inline double ff_number_at(const void *values, ff_dtype dtype, int64_t i) {
    return dtype == FF_FLOAT32 ? (double)((const float *)values)[i] : ((const double *)values)[i];
}

/* The first of some values that is not at most `largest` in magnitude, or is NaN; -1 where there is none. */
int64_t ff_first_beyond(double largest, const void *values, ff_dtype dtype, int64_t count);

/* What times become, one column for each: the rows that the library takes, and the factors of the moments. */
typedef struct {
    int64_t count;                   /* one for all queries, or one for each */
    double *alpha, *beta, *variance; /* D, the library's */
    double *rate, *d_alpha, *d_beta; /* of the velocity (Fan 46), see Path in fastflow/path.py */
    int singular;                    /* whether some D is zero */
} ff_times;

/* Numbers for each time in the memory that ff_field_times fills. */
enum { FF_TIME_NUMBERS = 6 };

typedef enum { FF_TIME_SERVED, FF_TIME_OUTSIDE, FF_TIME_SCHEDULE, FF_TIME_NARROW } ff_time_fault;

/* A time that is outside [0, 1], where the schedule is out of range, or where it leaves too small a variance. */
typedef struct {
    ff_time_fault fault;
    int64_t index;
    double t, variance;
} ff_bad_time;

/* Fills `result`, whose numbers are put in `memory`. Returns 0, and the first bad time, where there is one. */
int ff_field_times(const ff_field *field, const void *t, ff_dtype dtype, int64_t count, double *memory, ff_times *result,
                   ff_bad_time *bad);

/* v = rate E[r_j] + beta' E[mu_j] + alpha' m_i (Fan 14, 46) at queries x, (count, size) of a dtype. */
int ff_field_velocity(const ff_field *field, const ff_times *times, const void *x, ff_dtype dtype, int64_t count,
                      void *result, int num_threads);

/* (dv/dx) u = rate u + (beta' - rate beta) Cov(mu_j, -u . r_j / D), at times that are not singular. */
int ff_field_product(const ff_field *field, const ff_times *times, const void *x, const void *u, ff_dtype dtype,
                     int64_t count, void *result, int num_threads);

#endif
