/* The C API of fastflow: posterior moments of a finite data set under a Gaussian path.

   For a query x with coefficients alpha, beta, variance D, and points mu_j of mass C_j:
       r_j     = x - alpha m_i - beta mu_j
       logit_j = log C_j - (size/2) log D - |r_j|^2 / (2 D)
   The library knows no schedule and no time. Handles are opaque, every function returns a status (0 is success),
   nothing is printed and nothing aborts. A points handle is read-only after its creation: any number of threads may
   use it at once. */
#ifndef FF_H
#define FF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FF_ABI_VERSION 1

typedef enum {
    FF_OK = 0,
#define FF_ERROR(name, exception, text) FF_##name,
#include "ff_errors.def"
#undef FF_ERROR
} ff_status;

typedef enum { FF_FLOAT32 = 0, FF_FLOAT64 = 1 } ff_dtype;

typedef struct ff_points ff_points;

/* Queries: x is (count, size), row-major. Coefficient arrays hold one value per query (stride 1) or one for all
   (stride 0). */
typedef struct {
    const void *x;
    ff_dtype dtype;
    int64_t count;
    const double *alpha, *beta, *variance;
    int64_t stride;
} ff_queries;

/* Where results go. mean and residual are (count, size) in the dtype of the queries and come together; entropy and
   collision come together; a pair may be NULL. */
typedef struct {
    double *log_total;
    void *mean, *residual;
    double *entropy, *collision;
} ff_moments;

int ff_abi_version(void);
const char *ff_status_text(int status);

/* The instruction sets built in, the most capable last; ff_isa_name is NULL beyond the last. */
const char *ff_isa_name(int isa);
int ff_isa_runs(int isa);

/* Batches of up to this many queries are served by a kernel of their own. */
int ff_small_batch(void);

/* data is (count, size), row-major, and must outlive the handle, as must log_mass (count values, or NULL for equal
   masses) and source_mean (size values, or NULL for zero). */
int ff_points_create(ff_points **points, const void *data, ff_dtype dtype, int64_t count, int64_t size,
                     const double *log_mass, const double *source_mean, int isa, int num_threads);
void ff_points_destroy(ff_points *points);

int ff_points_moments(const ff_points *points, const ff_queries *queries, const ff_moments *result, int num_threads);

/* Logits of the points start..stop-1, each query's short of a constant, (queries->count, stop - start) row-major. */
int ff_points_logits(const ff_points *points, const ff_queries *queries, int64_t start, int64_t stop, double *logits,
                     int num_threads);

#ifdef __cplusplus
}
#endif
#endif
