/* What the driver and the kernels agree on. The kernels see blocks of points and of queries; they know nothing of
   threads, and the driver knows nothing of instruction sets. */
#ifndef FF_INTERNAL_H
#define FF_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ff.h"

struct ff_target;
typedef struct ff_kernel ff_kernel;

/* The storage types beside float and double: their elements, and their values in float32, exactly. */
typedef float ff_f32;
typedef double ff_f64;
typedef uint16_t ff_f16, ff_bf16;
typedef uint8_t ff_u8;
typedef int8_t ff_i8;
static inline float ff_value_f32(ff_f32 stored) { return stored; }
static inline double ff_value_f64(ff_f64 stored) { return stored; }
static inline float ff_value_u8(ff_u8 stored) { return (float)stored; }
static inline float ff_value_i8(ff_i8 stored) { return (float)stored; }
static inline float ff_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline float ff_value_bf16(ff_bf16 stored) { return ff_float_of_bits((uint32_t)stored << 16); }
/* Exponent and significand in the places of float32, 112 less in exponent bias; subnormal numbers come out right too. */
static inline float ff_value_f16(ff_f16 stored) {
    return ff_float_of_bits((uint32_t)(stored & 0x8000) << 16 | (uint32_t)(stored & 0x7fff) << 13) * 0x1p112f;
}

/* A data set. centre is a value of the storage type in the middle of the data: mu' = stored - centre is what the
   kernels sum, so that a common shift of the data costs no digits. */
struct ff_points {
    ff_data data;
    double equal_log_mass;     /* log(1/count), used where there are no masses */
    double *centre;
    double *origin;            /* the point that the centre stands for: scale centre + offset */
    float *narrow_centre;      /* the centre, exactly, where the storage type is not float64 */
    int centre_is_zero;        /* then mu' is what is stored */
    double *square;            /* |mu'_j|^2 */
    double largest_square, mean_square;
    double *widest;            /* largest variance in each column */
    double narrowest;          /* smallest variance of all */
    int64_t count, size;
    ff_dtype dtype;
    const struct ff_target *target; /* the one chosen, or where that only adds matrices the one it adds to */
    const ff_kernel *matrix;        /* what it adds, by storage type; or NULL */
};

static inline int ff_is_byte(ff_dtype dtype) { return dtype == FF_UINT8 || dtype == FF_INT8; }

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
    int64_t block; /* queries in a block: the kernel's, or fewer where that would be too few tasks */
    int want_mean, want_spread, pointwise;
} ff_job;

/* What the kernels of the first order sum for each query: p mu', and where points have variances of their own p gamma mu'
   and, in the last row, p gamma. */
static inline int64_t ff_rows(const ff_job *job) {
    return job->want_mean ? (job->pointwise ? 2 * job->points->size + 1 : job->points->size) : 0;
}

/* A kernel: one way to compute the moments of a block of queries over a chunk of points.
     pack     once for each unit of queries, before any chunk (NULL: nothing to do)
     begin    once for each chunk and scratch: make the tile of points (NULL: nothing to do)
     compute  the partial sums of a block of queries over that chunk, in scratch
     merge    add those of a part of the block to the job's state; called in the order of the chunks for each query
     write    from the state of a part of a block to results (NULL: what the target's write does)
   Chunks depend on the points alone, and a query's result does not depend on the queries beside it. */
struct ff_kernel {
    int lanes;       /* queries in a panel of the state */
    int block;       /* queries handled together at most: a panel, or some power of two times that */
    int panel;       /* queries handled together at least, a multiple of lanes */
    int unit;        /* queries packed together: divides the block */
    int part;        /* queries merged together, and written together: a multiple of lanes; the block, or divides the unit */
    int64_t (*chunk)(const ff_points *points);
    size_t (*state_values)(const ff_job *job); /* values of `sum` for each query */
    size_t (*packed_bytes)(const ff_job *job);
    size_t (*scratch_bytes)(const ff_points *points, const ff_job *job);
    void (*pack)(const ff_job *job, int64_t query, int64_t count, void *scratch);
    void (*begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch);
    void (*compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch);
    void (*merge)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch);
    void (*write)(const ff_job *job, int64_t query, int64_t count, void *scratch);
};

enum { FF_STORAGES = FF_INT8 + 1 };

typedef void ff_logits(const ff_points *points, const ff_queries *queries, int64_t query, int64_t start, int64_t stop,
                       double *logits, double *scratch);

/* One instruction set: its kernels by use and element types. Storage and compute types are indices of ff_dtype. */
typedef struct ff_target {
    const char *name;
    /* Where this set is another one and matrices beside it, that one and the batch kernels that use them, [storage], with
       float32 arithmetic; empty where matrices do not hold the type exactly. Then there is nothing else. */
    const struct ff_target *base;
    ff_kernel matrix[FF_STORAGES];
    ff_kernel low[FF_STORAGES];      /* [storage]: few dimensions, float64 arithmetic */
    ff_kernel low_few[FF_STORAGES];  /* the same for few queries */
    /* [storage][compute]; float64 points are never computed in float32, and that entry is empty */
    ff_kernel few[FF_STORAGES][2];   /* few queries */
    ff_kernel batch[FF_STORAGES][2]; /* many queries */
    ff_kernel general[FF_STORAGES];  /* [storage]: variances that differ, and moments of the second order */
    /* logits of one query against the points start..stop-1, short of a constant of the query; scratch holds 3 `size`
       values; where the points share one variance, and where they do not */
    ff_logits *logits[FF_STORAGES], *general_logits[FF_STORAGES];
    /* From the state of some queries, in panels of `lanes`, to their moments */
    void (*write)(const ff_job *job, int64_t lanes, int64_t query, int64_t count);
    /* |mu'|^2 of the points start..stop-1 */
    void (*squares[FF_STORAGES])(const ff_points *points, int64_t start, int64_t stop, double *squares);
} ff_target;

#ifndef FF_TARGETS /* the tests' emulated machines have fewer */
#define FF_TARGETS "ff_targets.def"
#endif
#define FF_TARGET(isa) extern const ff_target ff_target_##isa;
#include FF_TARGETS
#undef FF_TARGET

enum { FF_LINE = 64 /* bytes of a cache line */ };
/* Aligned to lines, so that no vector load of a tile straddles two. */
#define FF_ALIGN FF_LINE
static inline size_t ff_aligned(size_t bytes) { return (bytes + FF_ALIGN - 1) / FF_ALIGN * FF_ALIGN; }
static inline int64_t ff_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ff_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ff_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#define FF_UNROLL _Pragma("GCC unroll 16")
/* Where the body is some ten instructions already, and is unrolled itself */
#define FF_UNROLL_STEPS _Pragma("GCC unroll 6")

/* ff_cpu.c */
int ff_cpu_runs(const char *isa);

/* ff_threads.c: run body(context, worker) on up to num_threads threads at once, the caller among them, and return
   when all have finished. Workers are numbered from 0; fewer may run than asked for, so the body shares out its work
   by itself. */
void ff_parallel(int num_threads, void (*body)(void *context, int worker), void *context);

#endif
