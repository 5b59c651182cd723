/* What the driver and the kernels agree on. The kernels see blocks of points and of queries; they know nothing of
   threads, and the driver knows nothing of instruction sets. */
#ifndef FF_INTERNAL_H
#define FF_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "ff.h"

struct ff_target;

/* A data set. centre is a value of the storage type in the middle of the data: mu' = mu - centre is what the
   kernels sum, so that a common shift of the data costs no digits. */
struct ff_points {
    ff_data data;
    double equal_log_mass;     /* log(1/count), used where there are no masses */
    double *centre;
    float *narrow_centre;      /* the same, exactly, where the storage type is float32 */
    double *square;            /* |mu'_j|^2 */
    double largest_square, mean_square;
    double *widest;            /* largest variance in each column */
    double narrowest;          /* smallest variance of all */
    int64_t count, size;
    ff_dtype dtype;
    const struct ff_target *target;
};

/* Which row of the data a point is. */
static inline int64_t ff_place(const ff_points *points, int64_t point) {
    return points->data.index ? points->data.index[point] : point;
}

/* Per-query state: the merged partial sums of the chunks so far, relative to the largest logit.
   sum is laid out in panels of `lanes` queries, element (query, k) at [(query / lanes * size + k) * lanes +
   query % lanes]. */
typedef struct {
    double *largest, *total, *first, *second; /* m, sum p, sum p (l - m), sum p^2 */
    double *base;                             /* what the logits leave out, and log_total adds */
    double *sum;                              /* sum p mu', or what else the kernel keeps */
} ff_state;

/* One evaluation as the kernels see it. `packed` is what a kernel's pack() made of the queries. */
typedef struct {
    const ff_points *points;
    const ff_queries *queries;
    const ff_moments *result;
    void *packed;
    ff_state state;
    int want_mean, want_spread, pointwise;
} ff_job;

/* What the kernels of the first order sum for each query: p mu', and where points have variances of their own p gamma mu'
   and, in the last row, p gamma. */
static inline int64_t ff_rows(const ff_job *job) {
    return job->want_mean ? (job->pointwise ? 2 * job->points->size + 1 : job->points->size) : 0;
}

/* A kernel: one way to compute the moments of a block of queries over a chunk of points.
     pack     once for each block of queries, before any chunk (NULL: nothing to do)
     begin    once for each chunk and worker: make the tile of points in scratch (NULL: nothing to do)
     compute  the partial sums of a block of queries over that chunk, in scratch
     merge    add them to the job's state; called in the order of the chunks for each query
     write    from the state of a block of queries to results (NULL: what the driver does)
   Chunks depend on the points alone, and a query's result does not depend on the queries beside it. */
typedef struct {
    int lanes;       /* queries in a panel of the state */
    int block;       /* queries handled together, a multiple of lanes */
    int64_t (*chunk)(const ff_points *points);
    size_t (*state_values)(const ff_job *job); /* values of `sum` for each query */
    size_t (*packed_bytes)(const ff_job *job);
    size_t (*scratch_bytes)(const ff_points *points, const ff_job *job);
    void (*pack)(const ff_job *job, int64_t query, int64_t count, void *scratch);
    void (*begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch);
    void (*compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch);
    void (*merge)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch);
    void (*write)(const ff_job *job, int64_t query, int64_t count, void *scratch);
} ff_kernel;

typedef void ff_logits(const ff_points *points, const ff_queries *queries, int64_t query, int64_t start, int64_t stop,
                       double *logits, double *scratch);

/* One instruction set: its kernels by use and element types. Storage and compute types are indices of ff_dtype. */
typedef struct ff_target {
    const char *name;
    ff_kernel low[2];      /* [storage]: few dimensions, float64 arithmetic */
    ff_kernel low_few[2];  /* the same for few queries */
    /* [storage][compute]; float64 points are never computed in float32, and that entry is empty */
    ff_kernel few[2][2];   /* few queries */
    ff_kernel batch[2][2]; /* many queries */
    ff_kernel general[2];  /* [storage]: variances that differ, and moments of the second order */
    /* logits of one query against the points start..stop-1, short of a constant of the query; scratch holds 3 `size`
       values; where the points share one variance, and where they do not */
    ff_logits *logits[2], *general_logits[2];
    /* |mu'|^2 of the points start..stop-1 */
    void (*squares[2])(const ff_points *points, int64_t start, int64_t stop, double *squares);
} ff_target;

#define FF_TARGET(isa) extern const ff_target ff_target_##isa;
#include "ff_targets.def"
#undef FF_TARGET

/* Cache-line aligned, so that no vector load of a tile straddles two lines. */
#define FF_ALIGN 64
static inline size_t ff_aligned(size_t bytes) { return (bytes + FF_ALIGN - 1) / FF_ALIGN * FF_ALIGN; }
static inline int64_t ff_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ff_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ff_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ff_cpu.c */
int ff_cpu_runs(const char *isa);

/* ff_threads.c: run body(context, worker) on up to num_threads threads at once, the caller among them, and return
   when all have finished. Workers are numbered from 0; fewer may run than asked for, so the body shares out its work
   by itself. */
void ff_parallel(int num_threads, void (*body)(void *context, int worker), void *context);

#endif
