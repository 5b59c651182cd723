/* The C API of fastflow: posterior moments of a finite data set under a Gaussian path.

   For a query x with coefficients alpha, beta, variance D, and points mu_j of mass C_j:
       r_j     = x - alpha m_i - beta mu_j
       logit_j = log C_j - (size/2) log D - |r_j|^2 / (2 D)
   Where the points have variances of their own, D_j = D + slope variance_j takes the place of D, and
   gamma_j = (gain_constant + gain_slope variance_j) / D_j. Where those differ by direction too, all of this holds for
   each column of the rotation Q_j of a point, and gamma_j is a matrix.
   The library knows no schedule and no time. Handles are opaque, every function returns a status (0 is success),
   nothing is printed and nothing aborts. A points handle is read-only after its creation: any number of threads may
   use it at once. */
#ifndef FF_H
#define FF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FF_ABI_VERSION 3

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
   then it must. Everything below the second line needs the second. Cov is the covariance over points under the
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
} ff_moments;

int ff_abi_version(void);
const char *ff_status_text(int status);

/* The instruction sets built in, the most capable last; ff_isa_name is NULL beyond the last. */
const char *ff_isa_name(int isa);
int ff_isa_runs(int isa);

/* Batches of up to this many queries are served by a kernel of their own. */
int ff_small_batch(void);

/* Everything that `data` points to must outlive the handle; the struct itself need not. */
int ff_points_create(ff_points **points, const ff_data *data, int isa, int num_threads);
void ff_points_destroy(ff_points *points);

int ff_points_moments(const ff_points *points, const ff_queries *queries, const ff_moments *result, int num_threads);

/* Logits of the points start..stop-1, each query's short of a constant, (queries->count, stop - start) row-major. */
int ff_points_logits(const ff_points *points, const ff_queries *queries, int64_t start, int64_t stop, double *logits,
                     int num_threads);

#ifdef __cplusplus
}
#endif
#endif
