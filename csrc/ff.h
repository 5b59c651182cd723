/* The C API of fastflow: posterior moments of a finite data set under a Gaussian path.

   For a query x with coefficients alpha, beta, variance D, and points mu_j of mass C_j:
       r_j     = x - alpha m_i - beta mu_j
       logit_j = log C_j - (size/2) log D - |r_j|^2 / (2 D)
   Where the points have variances of their own, D_j = D + slope variance_j takes the place of D, and
   gamma_j = (gain_constant + gain_slope variance_j) / D_j. Where those differ by direction too, all of this holds for
   each column of the rotation Q_j of a point, and gamma_j is a matrix.
   The library knows no time, and of schedules only the linear one (ff_linear_path). Handles are opaque, every function
   returns a status (0 is success), nothing is printed and nothing aborts. A points handle is read-only after its
   creation: any number of threads may use it at once. */
#ifndef FF_H
#define FF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The number grows whenever a program compiled against an older header would misread this library: a struct or an
   enumerator changes, or what a function takes, or a function goes. New functions and new statuses leave it. A program
   compares it with ff_abi_version() before anything else. */
#define FF_ABI_VERSION 5

/* What the shared library shows; all else in it is hidden. */
#if defined(__GNUC__)
#define FF_API __attribute__((visibility("default")))
#else
#define FF_API
#endif

typedef enum {
    FF_OK = 0,
#define FF_ERROR(name, exception, text) FF_##name,
#include "ff_errors.def"
#undef FF_ERROR
} ff_status;

/* Types of stored values. Queries and results are of one of the first two. */
typedef enum { FF_FLOAT32, FF_FLOAT64, FF_FLOAT16, FF_BFLOAT16, FF_UINT8, FF_INT8 } ff_dtype;

typedef struct ff_points ff_points;

/* A data set: data is (rows, size), row-major, and the points are scale times its rows index[0..count-1] (all of them,
   in order, where index is NULL) plus offset. */
typedef struct {
    const void *data;
    ff_dtype dtype;
    double scale, offset;       /* scale is not zero; 1 and 0 leave the values as they are */
    int64_t count, size;
    const int64_t *index;
    const double *log_mass;     /* (count), or NULL for equal masses */
    const double *source_mean;  /* (size), or NULL for zero */
    /* (variance_rows, variance_columns): one row for each point or one for all, one column for each direction or one
       for all; or NULL where all points share one variance, which then comes with the queries. */
    const double *variance;
    int64_t variance_rows, variance_columns;
    const double *rotation;     /* (count, size, size) orthogonal matrices, a direction in each column; or NULL */
} ff_data;

/* Queries: x is (count, size), row-major. Coefficient arrays hold one value per query (stride 1) or one for all
   (stride 0); the last three are read only where the points have variances of their own. */
typedef struct {
    const void *x;
    ff_dtype dtype;
    int64_t count;
    const double *alpha, *beta, *variance, *slope, *gain_constant, *gain_slope;
    int64_t stride;
    const int64_t *exclude; /* (count): the point that a query leaves out, negative for none; or NULL */
    /* A direction u, (count, size) in the dtype of x, and for each query the factors in
       psi_j = u . (residual_factor r_j + gained_factor gamma_j r_j + mean_factor mu_j); or NULL. */
    const void *direction;
    const double *residual_factor, *gained_factor, *mean_factor;
} ff_queries;

/* Where results go. Vectors are (count, size) in the dtype of the queries, the rest (count). What stands on one line
   comes together, and may be NULL; what speaks of gamma_j comes only where the points have variances of their own, and
   then it must. From gain to gain_product everything needs the second line. Cov is the covariance over points under the
   posterior weights. */
typedef struct {
    double *log_total;
    void *mean, *residual;
    double *entropy, *collision;
    double *gain;                         /* with mean: the trace of E[gamma_j] over size */
    void *gained;                         /* with mean: E[gamma_j r_j] */
    double *trace;                        /* tr Cov(mu_j, mu_j) */
    double *cross, *gained_trace;         /* with trace: tr Cov(mu_j, gamma_j r_j), tr Cov(gamma_j r_j, gamma_j r_j) */
    double *tilt;                         /* with direction: E[psi_j] */
    void *mean_product;                   /* with direction: Cov(mu_j, psi_j) */
    void *gained_product, *gain_product;  /* with direction: Cov(gamma_j r_j, psi_j), E[gamma_j] u */
    /* of_residual E[r_j] + of_mean E[mu_j] of the two as they would be stored, in the arithmetic of the dtype; with them, or
       alone. Factors are given as coefficients are, of_mean or NULL for none. Only where all points share one variance,
       without direction and trace. */
    void *combination;
    const double *of_mean, *of_residual;
} ff_moments;

FF_API int ff_abi_version(void);
FF_API const char *ff_status_text(int status);

/* The instruction sets built in, the most capable last; ff_isa_name is NULL beyond the last. */
FF_API const char *ff_isa_name(int isa);
FF_API int ff_isa_runs(int isa);

/* Everything that `data` points to must outlive the handle; the struct itself need not. */
FF_API int ff_points_create(ff_points **points, const ff_data *data, int isa, int num_threads);
FF_API void ff_points_destroy(ff_points *points);

/* Batches of up to this many queries may be served by another kernel than others, and differ from them by rounding; 0 of
   NULL. */
FF_API int64_t ff_points_small_batch(const ff_points *points);

FF_API int ff_points_moments(const ff_points *points, const ff_queries *queries, const ff_moments *result,
                             int num_threads);

/* Logits of the points start..stop-1, each query's short of a constant, (queries->count, stop - start) row-major. */
FF_API int ff_points_logits(const ff_points *points, const ff_queries *queries, int64_t start, int64_t stop,
                            double *logits, int num_threads);

/* For callers that have no Python to turn moments into quantities ------------------------------------------------- */

/* The most capable instruction set that this machine runs. */
FF_API int ff_best_isa(void);

/* The path x_t = alpha x_i + beta x_f at one time, eight-byte numbers without padding: the schedule, its derivatives in
   time, the product alpha alpha' (given apart, because alpha' may be infinite where alpha is zero), and the variances
   of source and target. The last is not read where the points have variances of their own. */
typedef struct {
    double alpha, beta, d_alpha, d_beta, alpha_d_alpha;
    double source_variance, target_variance;
} ff_path;

/* The linear schedule, alpha = 1 - t and beta = t, at t in [0, 1]. */
FF_API int ff_linear_path(ff_path *path, double t, double source_variance, double target_variance);

/* What the moments of the first order make: the velocity E[alpha' x_i + beta' x_f | x], the posterior means of x_f and
   x_i, the gradient of the log density: vectors. The log density (in nats), and its exponential: numbers. */
typedef enum { FF_VELOCITY, FF_TARGET_MEAN, FF_SOURCE_MEAN, FF_SCORE, FF_LOG_DENSITY, FF_DENSITY } ff_quantity;

/* A quantity at `count` queries x, (count, size) of FF_FLOAT32 or FF_FLOAT64, row-major. paths holds one path for each
   query (stride 1) or one for all (stride 0). Vectors are (count, size) in the dtype of x, numbers (count) double.
   result must not overlap x. Refused as FF_BAD_ARGUMENT where a component has no variance left (alpha = 0 without
   target variance): limits at that end of time are left to the caller. */
FF_API int ff_points_evaluate(const ff_points *points, const ff_path *paths, int64_t stride, const void *x,
                              ff_dtype dtype, int64_t count, ff_quantity quantity, void *result, int num_threads);

/* A number at a point as a function that integrators take: component `component` of a vector quantity, or a number, for
   which it is not read. */
typedef struct {
    const ff_points *points;
    ff_path path;
    ff_quantity quantity;
    int64_t component;
} ff_integrand;

/* Its value at x, of n = size numbers, on the calling thread; NaN where ff_points_evaluate would return an error. */
FF_API double ff_integrand_value(int n, double *x, void *integrand);

#ifdef __cplusplus
}
#endif
#endif
