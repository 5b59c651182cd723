/* Few queries: bound by the memory bandwidth. A chunk is cut in strips, and one loop takes the dot products of a strip and
   the sums of the strip before, which is still in cache: each point is read from memory once, and memory is read all the
   time. Vectors run along the dimensions. Included once for each pair of storage type FF_S and compute type FF_T;
   float64 arithmetic is by residuals throughout, float32 arithmetic as treatment.inc.h tells, but for rows that are not
   short: where dot products are not exact enough they screen, and where sums are not they are in float64, of few points by
   then. The dot products and sums of bytes are those of few_bytes.inc.h, where rows are not shorter than a vector. */

#ifndef FF_FEW
#define FF_FEW
enum {
    FEW_QUERIES = 6, /* at most: see few_queries in ff_driver.c */
    FEW_CHUNK = 256, /* points, of a chunk and at most of a strip: longer sums in the compute type would round too much */
    /* Whole numbers do not, and the longer a chunk of bytes, the fewer of its weights have two digits: FEW_LONG_CHUNK points,
       if that leaves FEW_CHUNKS chunks to share out. */
    FEW_LONG_CHUNK = 1024,
    FEW_CHUNKS = 64,
    FEW_STRIP = 16 * 1024, /* bytes of a strip: it stays in the first-level cache beside what is fetched meanwhile */
    FEW_LONG_STRIP = 32 * 1024, /* where nothing is fetched meanwhile, or to the second-level cache */
    /* Bytes from what is read to what is fetched meanwhile. Over 1 KB, with 8 KB to the second-level cache beside it, 2 threads
       of Zen 5 read 1.1 (AVX2) and 1.3 to 1.4 times as fast (AVX-512) in 784 and 1,024 dimensions, and 1.05 to 1.1 times in
       3,072; 4 KB is 0.9 to 1 times as fast, and 8 and 10 KB 0.9 to 1.05 times. On a Xeon, 2 to 16 threads could not tell
       4 KB from what was before. Not measured since on Zen 3, where with an earlier loop 2 KB was slower than 1 KB. */
    FEW_AHEAD = 6 * 1024,
    /* From so many dimensions on, dot products that are not exact enough are still faster, as a screen, than residuals in
       float64: 0.7 to 0.9 times as fast in 20, 1 to 1.2 in 32, 1.1 to 1.4 in 64, 1.6 to 2.1 in 784 and 3,072 (t from 0.2 to
       0.999, two Xeon cores, AVX2). */
    FEW_SCREENED = 32,
    FEW_UNSUSPECTED = 100,     /* nats below the largest from which no weight is suspect, whatever its terms are */
    FEW_BYTES = 4 * F32_LANES, /* of a vector */
    FEW_TOGETHER = 8,          /* points of bytes that are summed together: registers hold the weights of no more */
    FEW_LISTED = FEW_CHUNK + 2 * FEW_TOGETHER /* those of a strip, and what is left of two lists of the strip before */
};

/* What the kernel makes of a query, once: its treatment, e, and q in the compute type, or of bytes its digits; the centre,
   in the order of the sums, is one row for all of them. */
typedef struct {
    treatment how;
    double *e;
    void *q, *centre;
    int narrow;         /* whether sums are in the compute type */
    double least;       /* the smallest weight that is added to the sums */
    double window;      /* unless zero, logits only screen, and those less than this below the largest are computed exactly */
    double unit, begin; /* bytes: a dot product is unit (begin + that of the digits of q and what is stored) */
} few_packed;

/* What a query keeps during a chunk: the points that have weight and are not yet in the sums, the sums in float64, and in
   the compute type. */
typedef struct {
    partial part;
    int64_t without; /* the point that it leaves out, or -1 */
    int64_t pending; /* how many are listed */
    int64_t index[FEW_LISTED];
    double weight[FEW_LISTED];
    double *sum;
    void *narrow_sum;
    double rest; /* bytes: what the weights so far were more than their digits */
} few_query;

/* Points of bytes with one digit of their weights */
typedef struct {
    int64_t count, index[FEW_LISTED];
    int16_t weight[FEW_LISTED];
} few_list;

typedef struct {
    few_query query[FEW_QUERIES];
    double logit[FEW_CHUNK];
    few_list digit[2]; /* low digits, high digits */
} few_scratch;
/* Rows of scratch of each query behind that: two of sums in float64 and one more value, and one in the compute type. */
enum { FEW_ROWS = 4 };
/* |q| |mu'| of dot products that float32 holds, and their terms */
static const double LARGEST_DOT = 1e30;

static inline int few_is_whole(int64_t size) { return size >= FEW_BYTES; }

static int64_t few_chunk(const ff_points *points) {
    int is_whole = 0;
#ifdef WHOLE_NUMBERS
    is_whole = ff_is_byte(points->dtype) && few_is_whole(points->size);
#endif
    const int64_t shared_out = points->count / FEW_CHUNKS / FEW_CHUNK * FEW_CHUNK;
    return is_whole ? ff_max(FEW_CHUNK, ff_min(FEW_LONG_CHUNK, shared_out)) : FEW_CHUNK;
}
/* Values of a row of scratch, and of what is packed: rows begin with cache lines. */
static int64_t few_stride(const ff_points *points) {
    return (int64_t)(ff_aligned((size_t)points->size * sizeof(double)) / sizeof(double));
}
static size_t few_packed_bytes(const ff_job *job) {
    const size_t count = (size_t)job->queries->count;
    return ff_aligned(count * sizeof(few_packed)) + (1 + 2 * count) * (size_t)few_stride(job->points) * sizeof(double);
}
static size_t few_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)job;
    return ff_aligned(sizeof(few_scratch)) + FEW_QUERIES * FEW_ROWS * (size_t)few_stride(points) * sizeof(double);
}

static void few_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    (void)stop;
    few_scratch *s = scratch;
    for (int64_t q = 0; q < count; q++)
        merge_row(job, start == 0, query + q, &s->query[q].part, s->query[q].sum);
}

/* Raise the reference logit of a query, its sums in float64, `rows` of them, and its listed points to `largest`; returns the
   factor for other sums. */
static double few_raise(few_query *query, double largest, int64_t rows) {
    partial *p = &query->part;
    const double shift = p->largest - largest, keep = p->total > 0.0 ? merge_factor(shift) : 0.0;
    p->first = keep == 0.0 ? 0.0 : keep * (p->first + p->total * shift);
    p->second *= keep * keep;
    p->total *= keep;
    p->largest = largest;
    for (int64_t k = 0; k < rows; k++) query->sum[k] *= keep;
    for (int64_t i = 0; i < query->pending; i++) query->weight[i] *= keep;
    query->rest *= keep;
    return keep;
}

/* From logits to weights, added to the partial sums of a query, which lists the points that have `least` or more. The
   others stay in the total, as all of them together are less than what a mean rounds by. */
static void few_weigh(const double *logit, int64_t start, int64_t count, double least, few_query *query) {
    partial *p = &query->part;
    int64_t kept = query->pending;
    double *weights = query->weight + kept;
    for (int64_t i = 0; i < count; i += F64_LANES) /* there is room for a whole vector: see FEW_LISTED */
        f64_store(weights + i, f64_exp(f64_sub(f64_load(logit + i), f64_set1(p->largest))));
    for (int64_t i = 0; i < count; i++) {
        const double below = logit[i] - p->largest, weight = weights[i];
        if (weight == 0.0) continue;
        p->total += weight;
        p->first += weight * below;
        p->second += weight * weight;
        if (weight < least) continue;
        query->weight[kept] = weight;
        query->index[kept++] = start + i;
    }
    query->pending = kept;
}
#endif

/* Add the listed points of a query to its sums in float64. */
static void NAME_ST(few_wide_sums)(const ff_job *job, const few_packed *packed, few_query *query) {
    const ff_points *points = job->points;
    const int64_t kept = query->pending;
    query->pending = 0;
    if (!job->want_mean) return;
    NAME_S(accumulate)(points, kept, query->index, query->weight, query->sum);
    if (!job->pointwise) return;
    double *gain = query->sum + 2 * points->size;
    for (int64_t i = 0; i < kept; i++) *gain += query->weight[i] *= own_gain(points, &packed->how.exact, query->index[i]);
    NAME_S(accumulate)(points, kept, query->index, query->weight, query->sum + points->size);
}

/* One query over one strip of points, by residuals in float64. */
static void NAME_ST(few_exact_strip)(const ff_job *job, int64_t start, int64_t stop, const few_packed *packed,
                                     few_query *query, few_scratch *s) {
    const ff_points *points = job->points;
    const coefficients *exact = &packed->how.exact;
    double largest = query->part.largest;
    memset(s->logit, 0, (size_t)(stop - start) * sizeof *s->logit);
    for (int64_t from = 0; from < points->size; from += FF_SEGMENT)
        for (int64_t j = start; j < stop; j++)
            s->logit[j - start] += NAME_S(distance_part)(points, packed->e, exact, j, from,
                                                         ff_min(from + FF_SEGMENT, points->size));
    for (int64_t j = start; j < stop; j++) {
        s->logit[j - start] = exact_logit(points, exact, j, s->logit[j - start]);
        if (j == query->without) s->logit[j - start] = FF_LEFT_OUT;
        largest = fmax(largest, s->logit[j - start]);
    }
    if (largest > query->part.largest) few_raise(query, largest, ff_rows(job));
    few_weigh(s->logit, start, stop - start, packed->least, query);
    NAME_ST(few_wide_sums)(job, packed, query);
}

#define FEW_STEP (4 * FF_LANES_T)
#define INLINE static inline __attribute__((always_inline))

/* Rows of the points from j on, the last one again beyond it. */
INLINE void NAME_ST(few_rows)(const ff_points *points, int64_t j, int64_t last, int count, const void **rows) {
    for (int i = 0; i < count; i++) rows[i] = NAME_S(row)(points, ff_min(j + i, last));
}

/* mu' of one vector. */
INLINE TV NAME_ST(few_offset)(TV stored, const FF_TT *centre, int64_t k, int at_zero) {
    return at_zero ? stored : T(sub)(stored, T(load)(centre + k));
}

/* part + q.mu' of one point, for one vector. */
INLINE TV NAME_ST(few_dot_part)(const FF_STORED *row, const FF_TT *q, const FF_TT *centre, int64_t k, int at_zero, TV part) {
    return T(fma)(NAME_ST(few_offset)(FF_LOAD_T(row + k), centre, k, at_zero), T(load)(q + k), part);
}

/* sum[k] += weight[i] mu'_k(row[i]) of four points, for one vector of k. */
INLINE void NAME_ST(few_sum_part)(const FF_STORED *const *row, const TV *weight, const FF_TT *centre, int64_t k,
                                  int at_zero, FF_TT *sum) {
    TV total = T(load)(sum + k);
    FF_UNROLL
    for (int i = 0; i < 4; i++)
        total = T(fma)(weight[i], NAME_ST(few_offset)(FF_LOAD_T(row[i] + k), centre, k, at_zero), total);
    T(store)(sum + k, total);
}

/* The rest of a dot product, of the dimensions beyond the last step; `part` has the others. */
INLINE double NAME_ST(few_dot_end)(const FF_STORED *row, const FF_TT *q, const FF_TT *centre, int64_t size, TV part) {
    enum { L = FF_LANES_T };
    int64_t k = size / FEW_STEP * FEW_STEP;
    for (; k + L <= size; k += L) part = T(fma)(T(sub)(FF_LOAD_T(row + k), T(load)(centre + k)), T(load)(q + k), part);
    double dot = T(sum)(part);
    for (; k < size; k++) dot += (double)(((FF_TT)VALUE(row[k]) - centre[k]) * q[k]);
    return dot;
}

/* The rest of the sums, likewise. */
static void NAME_ST(few_sum_end)(const FF_STORED *const *row, const TV *weight, const FF_TT *centre, int64_t size,
                                 FF_TT *sum) {
    enum { L = FF_LANES_T };
    int64_t k = size / FEW_STEP * FEW_STEP;
    for (; k + L <= size; k += L) {
        TV total = T(load)(sum + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++)
            total = T(fma)(weight[i], T(sub)(FF_LOAD_T(row[i] + k), T(load)(centre + k)), total);
        T(store)(sum + k, total);
    }
    for (int i = 0; k < size && i < 4; i++) {
        FF_TT lanes[L];
        T(store)(lanes, weight[i]);
        for (int64_t l = k; l < size; l++) sum[l] += lanes[0] * ((FF_TT)VALUE(row[i][l]) - centre[l]);
    }
}

/* q.mu' of one point, and beside it, unless `pending` is NULL, the sums of four points for a quarter of the dimensions,
   that of number `quarter`. The point streams from memory while the four, met a strip before, lie in cache: memory is
   never idle. One point at a time, as a single stream of consecutive lines runs at up to twice the bandwidth of four.
   Meanwhile what lies FEW_AHEAD bytes further on is fetched: ahead[0] from its byte `rest` on, and then ahead[1]. */
INLINE double NAME_ST(few_dot)(const FF_STORED *row, const void *const ahead[2], int64_t rest, const FF_TT *q,
                               const FF_TT *centre, int64_t size, int at_zero, const FF_STORED *const *pending,
                               const TV *weight, int64_t quarter, FF_TT *sum) {
    TV part[4] = {T(set1)(0), T(set1)(0), T(set1)(0), T(set1)(0)};
    const int64_t steps = size / FEW_STEP, left = size - rest / (int64_t)sizeof *row; /* of ahead[0] */
    int64_t step = 0;
    for (int which = 0; which < 2; which++) {
        const int64_t end = which ? size : left, shift = which ? left : left - size;
        /* Of value k. An address, as it may lie outside the data; it is only fetched. */
        const uintptr_t fetched = (uintptr_t)ahead[which] - (uintptr_t)(shift * (int64_t)sizeof *row);
        for (; step < end / FEW_STEP; step++) {
            const int64_t k = step * FEW_STEP;
            FF_UNROLL
            for (size_t line = 0; line < FEW_STEP * sizeof *row; line += FF_LINE)
                __builtin_prefetch((const void *)(fetched + (size_t)k * sizeof *row + line), 0, 3);
            FF_UNROLL
            for (int i = 0; i < 4; i++)
                part[i] = NAME_ST(few_dot_part)(row, q, centre, k + i * FF_LANES_T, at_zero, part[i]);
            if (pending)
                NAME_ST(few_sum_part)(pending, weight, centre, (quarter * steps + step) * FF_LANES_T, at_zero, sum);
        }
        /* What is left of ahead[0], and of the row: less than a step. */
        for (int64_t k = ff_max(step * FEW_STEP, which ? left : 0); k < end; k += FF_LINE / (int64_t)sizeof *row)
            __builtin_prefetch((const void *)(fetched + (size_t)k * sizeof *row), 0, 3);
    }
    return NAME_ST(few_dot_end)(row, q, centre, size, T(add)(T(add)(part[0], part[1]), T(add)(part[2], part[3])));
}

/* Bytes are left to whole numbers where the instruction set has them: WHOLE(size, this) that. */
#if FF_PASTE(FF_IS_BYTE_, FF_S) && FF_PASTE(FF_IS_, FF_T) && defined(WHOLE_NUMBERS)
#include "few_bytes.inc.h"
#define WHOLE(size, statement) if (few_is_whole(size)) statement; else
#else
#define WHOLE(size, statement)
#endif

/* How exact the dot products with q, a multiple of e, are, and the sums. */
INLINE roundoff NAME_ST(few_roundoff)(const coefficients *c, const double *e, int64_t size) {
    (void)c;
    (void)e;
    const roundoff u = NAME_ST(roundoff)(size);
    WHOLE(size, return few_whole_roundoff(u, c, e, size))
    return u;
}

/* Bytes of a strip. */
INLINE int64_t NAME_ST(few_room)(const ff_job *job) {
    WHOLE(job->points->size, return FEW_LONG_STRIP)
    return sizeof(FF_TT) == 8 || job->pointwise ? FEW_LONG_STRIP : FEW_STRIP;
}

/* Values of a row of sums in the compute type. */
INLINE int64_t NAME_ST(few_row)(int64_t size) {
    WHOLE(size, return few_vectors(size) * FEW_BYTES)
    return size;
}

/* The dot products of points start..stop-1 into `dots`, meanwhile the sums of the pending points of the query. */
INLINE void NAME_ST(few_pass)(const ff_points *points, const FF_TT *q, const FF_TT *centre, int at_zero, int64_t start,
                              int64_t stop, few_query *query, double *dots) {
    const int64_t size = points->size, last = points->count - 1, bytes = size * (int64_t)sizeof(FF_STORED);
    const int64_t far = FEW_AHEAD / bytes, rest = FEW_AHEAD % bytes; /* from one point to what is fetched meanwhile */
    const void *ahead[5];
    FF_TT *sum = query->narrow_sum;
    int64_t j = start;
    for (int64_t done = 0; j + 4 <= stop || done < query->pending; j += 4) {
        const FF_STORED *pending[4];
        TV weight[4];
        const int has_next = j + 4 <= stop, has_sums = done < query->pending;
        for (int i = 0; i < 4 && has_sums; i++) {
            pending[i] = NAME_S(row)(points, query->index[done + i]);
            weight[i] = T(set1)((FF_TT)query->weight[done + i]);
        }
        done += 4;
        NAME_ST(few_rows)(points, j + far, last, 5, ahead);
        if (has_next && has_sums)
            for (int i = 0; i < 4; i++)
                dots[j - start + i] = NAME_ST(few_dot)(NAME_S(row)(points, j + i), ahead + i, rest, q, centre, size, at_zero,
                                                       pending, weight, i, sum);
        else if (has_next)
            for (int i = 0; i < 4; i++)
                dots[j - start + i] = NAME_ST(few_dot)(NAME_S(row)(points, j + i), ahead + i, rest, q, centre, size, at_zero,
                                                       NULL, NULL, 0, NULL);
        else
            for (int64_t k = 0; k < size / FEW_STEP * FEW_STEP; k += FF_LANES_T)
                NAME_ST(few_sum_part)(pending, weight, centre, k, at_zero, sum);
        if (has_sums) NAME_ST(few_sum_end)(pending, weight, centre, size, sum);
    }
    for (j = start + (stop - start) / 4 * 4; j < stop; j++) {
        NAME_ST(few_rows)(points, j + far, last, 2, ahead);
        dots[j - start] = NAME_ST(few_dot)(NAME_S(row)(points, j), ahead, rest, q, centre, size, at_zero, NULL, NULL, 0, NULL);
    }
    query->pending = 0;
}
static void NAME_ST(few_stream)(const ff_points *points, const few_packed *packed, int64_t start, int64_t stop,
                                few_query *query, double *dots) {
    WHOLE(points->size, NAME_ST(few_whole_stream)(points, packed, start, stop, dots))
    if (points->centre_is_zero)
        NAME_ST(few_pass)(points, packed->q, packed->centre, 1, start, stop, query, dots);
    else NAME_ST(few_pass)(points, packed->q, packed->centre, 0, start, stop, query, dots);
}

static double NAME_ST(few_logit)(const ff_points *points, const few_packed *packed, int64_t j) {
    const coefficients *exact = &packed->how.exact;
    return exact_logit(points, exact, j, NAME_S(distance)(points, packed->e, exact, j));
}

/* Compute those of the logits of a strip exactly that may carry weight; returns the largest of all so far. */
static double NAME_ST(few_screen)(const ff_points *points, int64_t start, int64_t stop, const few_packed *packed,
                                  const few_query *query, double *logits, double largest) {
    double exact = query->part.largest;
    for (int64_t j = start; j < stop; j++) {
        double *logit = logits + (j - start);
        if (*logit >= largest - packed->window && j != query->without) *logit = NAME_ST(few_logit)(points, packed, j);
        if (*logit > exact) exact = *logit; /* fmax would be a call */
    }
    return exact;
}

/* One query over one strip of points, by dot products in the compute type. */
static void NAME_ST(few_dots_strip)(const ff_job *job, int64_t start, int64_t stop, const few_packed *packed,
                                    few_query *query, few_scratch *s) {
    const ff_points *points = job->points;
    const treatment *how = &packed->how;
    double largest = query->part.largest;
    NAME_ST(few_stream)(points, packed, start, stop, query, s->logit);
    for (int64_t j = start; j < stop; j++) {
        double *logit = s->logit + (j - start);
        *logit += log_mass(points, j) - how->square * points->square[j] + how->base;
        if (j == query->without) *logit = FF_LEFT_OUT;
        if (*logit > largest) largest = *logit;
    }
    if (packed->window > 0.0) largest = NAME_ST(few_screen)(points, start, stop, packed, query, s->logit, largest);
    if (largest > query->part.largest) {
        const double keep = few_raise(query, largest, packed->narrow ? 0 : ff_rows(job));
        const int64_t values = packed->narrow ? NAME_ST(few_row)(points->size) : 0;
        FF_TT *sum = query->narrow_sum;
        for (int64_t k = 0; k < values; k++) sum[k] *= (FF_TT)keep;
    }
    if (packed->window == 0.0 && may_be_suspect(points, how, largest - how->base))
        for (int64_t j = start; j < stop; j++) {
            double *logit = s->logit + (j - start);
            if (*logit < largest - FEW_UNSUSPECTED || j == query->without) continue;
            const double terms = suspect_terms(how, *logit - how->base) + 2.0 * how->square * points->square[j];
            if (exp(*logit - largest) * terms > how->suspect) *logit = NAME_ST(few_logit)(points, packed, j);
        }
    few_weigh(s->logit, start, stop - start, packed->least, query);
    if (!job->want_mean) query->pending = 0;
    if (!packed->narrow) {
        NAME_ST(few_wide_sums)(job, packed, query);
        return;
    }
    WHOLE(points->size, NAME_ST(few_whole_sums)(points, packed, query, s->digit, stop, 0))
    query->pending = fill_up_to_four(query->pending, query->index, query->weight);
}

static void NAME_ST(few_pack)(const ff_job *job, int64_t query, int64_t count, void *scratch) {
    (void)scratch;
    const int64_t size = job->points->size;
    few_packed *packed = job->packed;
    const int64_t stride = few_stride(job->points);
    double *rows = (double *)((char *)packed + ff_aligned((size_t)job->queries->count * sizeof *packed));
    FF_TT *centre = (FF_TT *)rows;
    WHOLE(size, NAME_ST(few_whole_centre)(job->points, (float *)centre))
    for (int64_t k = 0; k < size; k++) centre[k] = (FF_TT)job->points->centre[k];
    for (int64_t i = query; i < query + count; i++) {
        few_packed *p = packed + i;
        p->e = rows + (1 + 2 * i) * stride;
        p->q = p->e + stride;
        p->centre = centre;
        const coefficients c = centred_query(job->points, job->queries, i, p->e);
        roundoff u = NAME_ST(few_roundoff)(&c, p->e, size);
        const double trusted = u.limit;
        if (size >= FEW_SCREENED) { /* dot products may be off by any amount, and sums be in float64 */
            u.limit = LARGEST_DOT * u.dot;
            u.ratio = INFINITY;
        }
        p->how = NAME_ST(settle)(job, &c, u);
        p->how.sharp |= sizeof(FF_TT) == 8 || job->pointwise || (size < FEW_SCREENED && p->how.heavy < INFINITY);
        p->window = p->how.dot_error > trusted ? 2.0 * p->how.dot_error + NAME_ST(negligible)(job->points) : 0.0;
        p->least = exp(-NAME_ST(negligible)(job->points));
        p->narrow = !p->how.sharp && p->how.heavy == INFINITY && p->window == 0.0;
        if (p->how.sharp) continue;
        const double factor = 2.0 * c.precision * c.beta;
        WHOLE(size, NAME_ST(few_whole_put)(job->points, p, factor))
        for (int64_t k = 0; k < size; k++) ((FF_TT *)p->q)[k] = (FF_TT)(factor * p->e[k]);
    }
}

/* The last points of a query, and its sums in float64. */
static void NAME_ST(few_end)(const ff_points *points, const few_packed *packed, int64_t stop, few_query *query, few_scratch *s) {
    WHOLE(points->size, NAME_ST(few_whole_end)(points, packed, query, s->digit)) {
        NAME_ST(few_stream)(points, packed, stop, stop, query, s->logit);
        for (int64_t k = 0; k < points->size; k++) query->sum[k] = (double)((FF_TT *)query->narrow_sum)[k];
    }
}

static void NAME_ST(few_compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                 void *scratch) {
    few_scratch *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size;
    const few_packed *packed = (const few_packed *)job->packed + query;
    double *rows = (double *)((char *)scratch + ff_aligned(sizeof *s));
    const int64_t stride = few_stride(points);
    for (int64_t i = 0; i < count; i++) {
        few_query *q = s->query + i;
        q->narrow_sum = rows + FEW_ROWS * stride * i;
        q->sum = rows + FEW_ROWS * stride * i + stride;
        if (packed[i].narrow) memset(q->narrow_sum, 0, (size_t)NAME_ST(few_row)(size) * sizeof(FF_TT));
        else memset(q->sum, 0, (size_t)ff_rows(job) * sizeof *q->sum);
        q->without = left_out(job, query + i, start, stop);
        q->part = (partial){-1.7e308, 0.0, 0.0, 0.0, packed[i].how.exact.base};
        q->pending = 0;
        q->rest = 0.0;
    }
    const int64_t room = NAME_ST(few_room)(job) / (size * (int64_t)sizeof(FF_STORED));
    const int64_t strip = ff_min(FEW_CHUNK, ff_max(4, room / 4 * 4));
    for (int64_t j = start; j < stop; j += strip)
        for (int64_t i = 0; i < count; i++)
            (packed[i].how.sharp ? NAME_ST(few_exact_strip) : NAME_ST(few_dots_strip))(
                job, j, ff_min(j + strip, stop), packed + i, s->query + i, s);
    for (int64_t i = 0; i < count; i++)
        if (packed[i].narrow) NAME_ST(few_end)(points, packed + i, stop, s->query + i, s);
}
#undef WHOLE
#undef FEW_STEP
#undef INLINE
