"""The C API for `cimport`: `from fastflow.ff cimport ff_points_evaluate`. What everything means is said in ff.h.

Compile against `fastflow.get_include()` and link `fastflow.get_library()` (docs/native.md).
"""

from libc.stdint cimport int64_t


cdef extern from "ff.h" nogil:
    ctypedef enum ff_status:
        FF_OK
        FF_NO_MEMORY
        FF_BAD_ARGUMENT
        FF_UNSUPPORTED_ISA
    ctypedef enum ff_dtype:
        FF_FLOAT32
        FF_FLOAT64
        FF_FLOAT16
        FF_BFLOAT16
        FF_UINT8
        FF_INT8
    ctypedef struct ff_points:
        pass  # opaque
    ctypedef struct ff_data:
        const void *data
        ff_dtype dtype
        double scale
        double offset
        int64_t count
        int64_t size
        const int64_t *index
        const double *log_mass
        const double *source_mean
        const double *variance
        int64_t variance_rows
        int64_t variance_columns
        const double *rotation
    ctypedef struct ff_queries:
        const void *x
        ff_dtype dtype
        int64_t count
        const double *alpha
        const double *beta
        const double *variance
        const double *slope
        const double *gain_constant
        const double *gain_slope
        int64_t stride
        const int64_t *exclude
        const void *direction
        const double *residual_factor
        const double *gained_factor
        const double *mean_factor
    ctypedef struct ff_moments:
        double *log_total
        void *mean
        void *residual
        double *entropy
        double *collision
        double *gain
        void *gained
        double *trace
        double *cross
        double *gained_trace
        double *tilt
        void *mean_product
        void *gained_product
        void *gain_product
        void *combination
        const double *of_mean
        const double *of_residual
    const int FF_ABI_VERSION
    int ff_abi_version()
    const char *ff_status_text(int status)
    const char *ff_isa_name(int isa)
    int ff_isa_runs(int isa)
    int ff_points_create(ff_points **points, const ff_data *data, int isa, int num_threads)
    void ff_points_destroy(ff_points *points)
    int64_t ff_points_small_batch(const ff_points *points)
    int ff_points_moments(const ff_points *points, const ff_queries *queries, const ff_moments *result,
                          int num_threads)
    int ff_points_logits(const ff_points *points, const ff_queries *queries, int64_t start, int64_t stop,
                         double *logits, int num_threads)

    int ff_best_isa()
    ctypedef struct ff_path:
        double alpha
        double beta
        double d_alpha
        double d_beta
        double alpha_d_alpha
        double source_variance
        double target_variance
    int ff_linear_path(ff_path *path, double t, double source_variance, double target_variance)
    ctypedef enum ff_quantity:
        FF_VELOCITY
        FF_TARGET_MEAN
        FF_SOURCE_MEAN
        FF_SCORE
        FF_LOG_DENSITY
        FF_DENSITY
    int ff_points_evaluate(const ff_points *points, const ff_path *paths, int64_t stride, const void *x,
                           ff_dtype dtype, int64_t count, ff_quantity quantity, void *result, int num_threads)
    ctypedef struct ff_integrand:
        const ff_points *points
        ff_path path
        ff_quantity quantity
        int64_t component
    double ff_integrand_value(int n, double *x, void *integrand)
