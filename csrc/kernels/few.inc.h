/* Few queries: bound by the memory bandwidth. A chunk is cut in strips that stay in the second-level cache between the
   pass for the logits and the pass for the sums, and so each point is read from memory once. Vectors run along the
   dimensions. Included once for each pair of storage type FF_S and compute type FF_T; float64 arithmetic is by residuals
   throughout, float32 arithmetic as treatment.inc.h tells. */

#ifndef FF_FEW
#define FF_FEW
enum { FEW_CHUNK = 256 };
/* Bytes of one strip: a quarter of the second-level cache of the smallest current cores (512 KB). */
enum { FEW_STRIP = 128 * 1024 };

/* What a query keeps during a chunk: e, then the sums in float64, then q and the sums in the compute type. */
typedef struct {
    treatment how;
    partial part;
    int64_t without; /* the point that it leaves out, or -1 */
    double *e, *sum;
    void *q, *narrow_sum;
} few_query;

typedef struct {
    few_query query[FEW_QUERIES];
    double logit[FEW_CHUNK], weight[FEW_CHUNK];
    int64_t index[FEW_CHUNK];
    double rows[]; /* 5 of `size` and one value more for each query */
} few_scratch;

static int64_t few_chunk(const ff_points *points) {
    (void)points;
    return FEW_CHUNK;
}
static size_t few_packed_bytes(const ff_job *job) {
    (void)job;
    return 0;
}
static size_t few_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)job;
    return sizeof(few_scratch) + FEW_QUERIES * (5 * (size_t)points->size + 1) * sizeof(double);
}

static void few_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    (void)stop;
    few_scratch *s = scratch;
    for (int64_t q = 0; q < count; q++)
        merge_row(job, start == 0, query + q, &s->query[q].part, s->query[q].sum);
}

/* Raise the reference logit of the partial sums to `largest`; returns the factor for the sums. */
static double few_raise(partial *p, double largest) {
    const double shift = p->largest - largest, keep = p->total > 0.0 ? exp(shift) : 0.0;
    p->first = keep == 0.0 ? 0.0 : keep * (p->first + p->total * shift);
    p->second *= keep * keep;
    p->total *= keep;
    p->largest = largest;
    return keep;
}

/* From logits to weights, added to the partial sums; returns how many points have any, listed in index and weight. */
static int64_t few_weigh(few_scratch *s, int64_t start, int64_t count, partial *p) {
    for (int64_t i = 0; i < count; i += F64_LANES) /* the chunk is a multiple of the lanes */
        f64_store(s->weight + i, f64_exp(f64_sub(f64_load(s->logit + i), f64_set1(p->largest))));
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        const double below = s->logit[i] - p->largest, weight = s->weight[i];
        if (weight == 0.0) continue;
        p->total += weight;
        p->first += weight * below;
        p->second += weight * weight;
        s->weight[kept] = weight;
        s->index[kept++] = start + i;
    }
    return kept;
}
#endif

/* One query over one strip of points, by residuals in float64. */
static void NAME_ST(few_exact_strip)(const ff_job *job, int64_t start, int64_t stop, few_query *query,
                                     few_scratch *s) {
    const ff_points *points = job->points;
    double largest = query->part.largest;
    memset(s->logit, 0, (size_t)(stop - start) * sizeof *s->logit);
    for (int64_t from = 0; from < points->size; from += FF_SEGMENT)
        for (int64_t j = start; j < stop; j++)
            s->logit[j - start] += NAME_S(distance_part)(points, query->e, &query->how.exact, j, from,
                                                         ff_min(from + FF_SEGMENT, points->size));
    for (int64_t j = start; j < stop; j++) {
        s->logit[j - start] = exact_logit(points, &query->how.exact, j, s->logit[j - start]);
        if (j == query->without) s->logit[j - start] = FF_LEFT_OUT;
        largest = fmax(largest, s->logit[j - start]);
    }
    if (largest > query->part.largest) {
        const double keep = few_raise(&query->part, largest);
        for (int64_t k = 0; k < ff_rows(job); k++) query->sum[k] *= keep;
    }
    const int64_t kept = few_weigh(s, start, stop - start, &query->part);
    if (!job->want_mean) return;
    NAME_S(accumulate)(points, kept, s->index, s->weight, query->sum);
    if (!job->pointwise) return;
    double *gain = query->sum + 2 * points->size;
    for (int64_t i = 0; i < kept; i++) *gain += s->weight[i] *= own_gain(points, &query->how.exact, s->index[i]);
    NAME_S(accumulate)(points, kept, s->index, s->weight, query->sum + points->size);
}

/* q.mu'(j). One point at a time: a single stream of consecutive lines runs at twice the bandwidth of four. */
static inline double NAME_ST(few_dot)(const ff_points *points, const FF_TT *q, int64_t j) {
    enum { L = FF_LANES_T };
    const FF_STORED *row = NAME_S(row)(points, j);
    const FF_TT *centre = FF_CENTRE_T(points);
    TV sum[4] = {T(set1)(0), T(set1)(0), T(set1)(0), T(set1)(0)};
    const int64_t size = points->size;
    int64_t k = 0;
    for (; k + 4 * L <= size; k += 4 * L) {
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            const TV offset = T(sub)(FF_LOAD_T(row + k + i * L), T(load)(centre + k + i * L));
            sum[i] = T(fma)(offset, T(load)(q + k + i * L), sum[i]);
        }
    }
    for (; k + L <= size; k += L)
        sum[0] = T(fma)(T(sub)(FF_LOAD_T(row + k), T(load)(centre + k)), T(load)(q + k), sum[0]);
    FF_TT lanes[L];
    T(store)(lanes, T(add)(T(add)(sum[0], sum[1]), T(add)(sum[2], sum[3])));
    double dot = 0.0;
    for (int l = 0; l < L; l++) dot += (double)lanes[l];
    for (; k < size; k++) dot += (double)(((FF_TT)VALUE(row[k]) - centre[k]) * q[k]);
    return dot;
}

/* q.mu' of `count` <= 4 points from j on. For long rows, where the query's and the centre's share of the first-level
   cache is large, they are loaded once for all four. */
static inline void NAME_ST(few_dots4)(const ff_points *points, const FF_TT *q, int64_t j, int64_t count,
                                      double *dots) {
    enum { L = FF_LANES_T };
    const FF_STORED *row[4];
    for (int i = 0; i < 4; i++) row[i] = NAME_S(row)(points, j + ff_min(i, count - 1));
    const FF_TT *centre = FF_CENTRE_T(points);
    const int64_t size = points->size;
    TV sum[4][2];
    FF_UNROLL
    for (int i = 0; i < 4; i++) sum[i][0] = sum[i][1] = T(set1)(0);
    int64_t k = 0;
    for (; k + 2 * L <= size; k += 2 * L) {
        const TV q0 = T(load)(q + k), q1 = T(load)(q + k + L);
        const TV c0 = T(load)(centre + k), c1 = T(load)(centre + k + L);
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            sum[i][0] = T(fma)(T(sub)(FF_LOAD_T(row[i] + k), c0), q0, sum[i][0]);
            sum[i][1] = T(fma)(T(sub)(FF_LOAD_T(row[i] + k + L), c1), q1, sum[i][1]);
        }
    }
    for (int i = 0; i < count; i++) {
        FF_TT lanes[L];
        T(store)(lanes, T(add)(sum[i][0], sum[i][1]));
        dots[i] = 0.0;
        for (int l = 0; l < L; l++) dots[i] += (double)lanes[l];
        for (int64_t l = k; l < size; l++) dots[i] += (double)(((FF_TT)VALUE(row[i][l]) - centre[l]) * q[l]);
    }
}

/* sum[k] += weight[i] mu'_k(j[i]) for four points and k = from..to-1. Meanwhile, unless `ahead` is
   zero, what lies that many elements further is fetched: the strip that comes next. */
static inline __attribute__((always_inline)) void NAME_ST(few_accumulate4)(const ff_points *points, const int64_t *j, const double *weight,
                                            FF_TT *sum, int64_t from, int64_t to, int64_t ahead) {
    enum { L = FF_LANES_T };
    const FF_STORED *row[4];
    TV w[4];
    FF_UNROLL
    for (int i = 0; i < 4; i++) {
        row[i] = NAME_S(row)(points, j[i]);
        w[i] = T(set1)((FF_TT)weight[i]);
    }
    const FF_TT *centre = FF_CENTRE_T(points);
    int64_t k = from;
    for (; k + 2 * L <= to; k += 2 * L) {
        const TV c0 = T(load)(centre + k), c1 = T(load)(centre + k + L);
        TV total0 = T(load)(sum + k), total1 = T(load)(sum + k + L);
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            if (ahead) __builtin_prefetch(row[i] + k + ahead, 0, 2);
            total0 = T(fma)(w[i], T(sub)(FF_LOAD_T(row[i] + k), c0), total0);
            total1 = T(fma)(w[i], T(sub)(FF_LOAD_T(row[i] + k + L), c1), total1);
        }
        T(store)(sum + k, total0);
        T(store)(sum + k + L, total1);
    }
    for (; k < to; k++)
        for (int i = 0; i < 4; i++) sum[k] += (FF_TT)weight[i] * ((FF_TT)VALUE(row[i][k]) - centre[k]);
}

/* One smooth query over one strip of points, in the compute type. */
static void NAME_ST(few_smooth_strip)(const ff_job *job, int64_t start, int64_t stop, few_query *query,
                                      few_scratch *s) {
    const ff_points *points = job->points;
    const treatment *how = &query->how;
    FF_TT *sum = query->narrow_sum;
    double largest = query->part.largest;
    if (points->size <= FF_SEGMENT)
        for (int64_t j = start; j < stop; j++) s->logit[j - start] = NAME_ST(few_dot)(points, query->q, j);
    else
        for (int64_t j = start; j < stop; j += 4)
            NAME_ST(few_dots4)(points, query->q, j, ff_min(4, stop - j), s->logit + (j - start));
    for (int64_t j = start; j < stop; j++) {
        s->logit[j - start] += log_mass(points, j) - how->square * points->square[j] + how->base;
        if (j == query->without) s->logit[j - start] = FF_LEFT_OUT;
        largest = fmax(largest, s->logit[j - start]);
    }
    if (largest > query->part.largest) {
        const FF_TT keep = (FF_TT)few_raise(&query->part, largest);
        for (int64_t k = 0; k < points->size; k++) sum[k] *= keep;
    }
    if (may_be_suspect(points, how, largest - how->base))
        for (int64_t j = start; j < stop; j++) {
            double *logit = s->logit + (j - start);
            const double terms = suspect_terms(how, *logit - how->base) + 2.0 * how->square * points->square[j];
            if (exp(*logit - largest) * terms > how->suspect && j != query->without)
                *logit = log_mass(points, j) - how->exact.precision * NAME_S(distance)(points, query->e, &how->exact, j);
        }
    const int64_t kept = few_weigh(s, start, stop - start, &query->part);
    if (!job->want_mean) return;
    const int64_t filled = fill_up_to_four(kept, s->index, s->weight);
    if (points->size <= FF_SEGMENT) {
        for (int64_t i = 0; i < filled; i += 4)
            NAME_ST(few_accumulate4)(points, s->index + i, s->weight + i, sum, 0, points->size, 0);
        return;
    }
    /* Rows too long for the processor's own prefetching to run from one strip into the next. */
    for (int64_t from = 0; from < points->size; from += FF_SEGMENT)
        for (int64_t i = 0; i < filled; i += 4)
            NAME_ST(few_accumulate4)(points, s->index + i, s->weight + i, sum, from,
                                     ff_min(from + FF_SEGMENT, points->size), (stop - start) * points->size);
}

static void NAME_ST(few_compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                 void *scratch) {
    few_scratch *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size;
    for (int64_t i = 0; i < count; i++) {
        few_query *q = s->query + i;
        q->e = s->rows + (5 * size + 1) * i;
        q->sum = q->e + size;
        q->q = q->sum + 2 * size + 1;
        q->narrow_sum = (double *)q->q + size;
        const coefficients c = centred_query(points, job->queries, query + i, q->e);
        q->without = left_out(job, query + i, start, stop);
        q->part = (partial){-1.7e308, 0.0, 0.0, 0.0, c.base};
        memset(q->sum, 0, (size_t)(2 * size + 1) * sizeof(double));
        q->how = NAME_ST(settle)(job, &c);
        q->how.sharp |= sizeof(FF_TT) == 8 || q->how.heavy < INFINITY || job->pointwise; /* float64 costs little here */
        if (q->how.sharp) continue;
        for (int64_t k = 0; k < size; k++) {
            ((FF_TT *)q->q)[k] = (FF_TT)(2.0 * c.precision * c.beta * q->e[k]);
            ((FF_TT *)q->narrow_sum)[k] = 0;
        }
    }
    const int64_t strip = ff_min(FEW_CHUNK, ff_max(4, FEW_STRIP / (size * (int64_t)sizeof(FF_STORED)) / 4 * 4));
    for (int64_t j = start; j < stop; j += strip)
        for (int64_t i = 0; i < count; i++)
            (s->query[i].how.sharp ? NAME_ST(few_exact_strip) : NAME_ST(few_smooth_strip))(
                job, j, ff_min(j + strip, stop), s->query + i, s);
    for (int64_t i = 0; i < count; i++)
        if (!s->query[i].how.sharp)
            for (int64_t k = 0; k < size; k++) s->query[i].sum[k] = (double)((FF_TT *)s->query[i].narrow_sum)[k];
}
