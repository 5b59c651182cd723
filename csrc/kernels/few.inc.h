/* Few queries: bound by the memory bandwidth. A chunk is cut in strips, and one loop takes the dot products of a strip and
   the sums of the strip before, which is still in cache: each point is read from memory once, and memory is read all the
   time. Vectors run along the dimensions. Included once for each pair of storage type FF_S and compute type FF_T; float64 arithmetic is by residuals
   throughout, float32 arithmetic as treatment.inc.h tells. */

#ifndef FF_FEW
#define FF_FEW
enum {
    FEW_CHUNK = 256,       /* points: longer sums in the compute type would round too much */
    FEW_STRIP = 32 * 1024, /* bytes of a strip: it stays in the first-level cache */
    FEW_AHEAD = 1024,      /* bytes from what is read to what is fetched meanwhile: a quarter of a page */
    FF_LINE = 64           /* bytes of a cache line */
};

/* What the kernel makes of a query, once: its treatment, e, and q in the compute type. */
typedef struct {
    treatment how;
    double *e;
    void *q;
} few_packed;

/* What a query keeps during a chunk: the points of the last strip that have weight, the sums in float64, and in the
   compute type. */
typedef struct {
    partial part;
    int64_t without; /* the point that it leaves out, or -1 */
    int64_t pending; /* how many are listed and not yet in the sums: a multiple of four */
    int64_t index[FEW_CHUNK];
    double weight[FEW_CHUNK];
    double *sum;
    void *narrow_sum;
} few_query;

typedef struct {
    few_query query[FEW_QUERIES];
    double logit[FEW_CHUNK];
    double rows[]; /* 3 of `size` and one value more for each query */
} few_scratch;

static int64_t few_chunk(const ff_points *points) {
    (void)points;
    return FEW_CHUNK;
}
static size_t few_packed_bytes(const ff_job *job) {
    return ff_aligned((size_t)job->queries->count * (sizeof(few_packed) + 2 * (size_t)job->points->size * sizeof(double)));
}
static size_t few_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)job;
    return sizeof(few_scratch) + FEW_QUERIES * (3 * (size_t)points->size + 1) * sizeof(double);
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

/* From logits to weights, added to the partial sums of a query; returns how many points have any, which it lists. */
static int64_t few_weigh(const double *logit, int64_t start, int64_t count, few_query *query) {
    partial *p = &query->part;
    for (int64_t i = 0; i < count; i += F64_LANES) /* the chunk is a multiple of the lanes */
        f64_store(query->weight + i, f64_exp(f64_sub(f64_load(logit + i), f64_set1(p->largest))));
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        const double below = logit[i] - p->largest, weight = query->weight[i];
        if (weight == 0.0) continue;
        p->total += weight;
        p->first += weight * below;
        p->second += weight * weight;
        query->weight[kept] = weight;
        query->index[kept++] = start + i;
    }
    return kept;
}
#endif

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
    if (largest > query->part.largest) {
        const double keep = few_raise(&query->part, largest);
        for (int64_t k = 0; k < ff_rows(job); k++) query->sum[k] *= keep;
    }
    const int64_t kept = few_weigh(s->logit, start, stop - start, query);
    if (!job->want_mean) return;
    NAME_S(accumulate)(points, kept, query->index, query->weight, query->sum);
    if (!job->pointwise) return;
    double *gain = query->sum + 2 * points->size;
    for (int64_t i = 0; i < kept; i++) *gain += query->weight[i] *= own_gain(points, exact, query->index[i]);
    NAME_S(accumulate)(points, kept, query->index, query->weight, query->sum + points->size);
}

/* q.mu' of one point, and beside it, unless `pending` is NULL, sum[k] += weight[i] mu'_k(pending[i]) of four points for
   a quarter of the dimensions, that of number `quarter`. The point streams from memory while the four, met a strip
   before, lie in cache: memory is never idle. One point at a time, as a single stream of consecutive lines runs at twice
   the bandwidth of four; fetching it FEW_AHEAD bytes in advance starts the processor's own prefetching of the next
   page. Returns the dot product; the sums lack the dimensions from few_fused() on. */
static inline __attribute__((always_inline)) double NAME_ST(few_dot)(const ff_points *points, const FF_TT *q, int64_t j,
                                                                       const FF_STORED *const *pending,
                                                                       const TV *weight, int64_t quarter, FF_TT *sum) {
    enum { L = FF_LANES_T };
    const FF_STORED *row = NAME_S(row)(points, j);
    const FF_TT *centre = FF_CENTRE_T(points);
    TV part[4] = {T(set1)(0), T(set1)(0), T(set1)(0), T(set1)(0)};
    const int64_t size = points->size;
    int64_t k = 0, at = size / (4 * L) * L * quarter;
    for (; k + 4 * L <= size; k += 4 * L, at += L) {
        FF_UNROLL
        for (size_t line = 0; line < 4 * L * sizeof *row; line += FF_LINE)
            __builtin_prefetch((const char *)(row + k) + FEW_AHEAD + line, 0, 3);
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            const TV offset = T(sub)(FF_LOAD_T(row + k + i * L), T(load)(centre + k + i * L));
            part[i] = T(fma)(offset, T(load)(q + k + i * L), part[i]);
        }
        if (!pending) continue;
        const TV c = T(load)(centre + at);
        TV total = T(load)(sum + at);
        FF_UNROLL
        for (int i = 0; i < 4; i++) total = T(fma)(weight[i], T(sub)(FF_LOAD_T(pending[i] + at), c), total);
        T(store)(sum + at, total);
    }
    for (; k + L <= size; k += L)
        part[0] = T(fma)(T(sub)(FF_LOAD_T(row + k), T(load)(centre + k)), T(load)(q + k), part[0]);
    FF_TT lanes[L];
    T(store)(lanes, T(add)(T(add)(part[0], part[1]), T(add)(part[2], part[3])));
    double dot = 0.0;
    for (int l = 0; l < L; l++) dot += (double)lanes[l];
    for (; k < size; k++) dot += (double)(((FF_TT)VALUE(row[k]) - centre[k]) * q[k]);
    return dot;
}

/* The same for four points from j on, side by side: where rows are long, the query, the centre and the sums leave the first-level
   cache, and are loaded once for all of them. */
static inline __attribute__((always_inline)) void NAME_ST(few_dots4)(const ff_points *points, const FF_TT *q, int64_t j,
                                                                       const FF_STORED *const *pending,
                                                                       const TV *weight, FF_TT *sum, double *dots) {
    enum { L = FF_LANES_T };
    const FF_STORED *row[4];
    for (int i = 0; i < 4; i++) row[i] = NAME_S(row)(points, j + i);
    const char *ahead = (const char *)row[0] + FEW_AHEAD;
    const FF_TT *centre = FF_CENTRE_T(points);
    const int64_t size = points->size;
    TV part[4] = {T(set1)(0), T(set1)(0), T(set1)(0), T(set1)(0)};
    int64_t k = 0;
    for (; k + L <= size; k += L) {
        FF_UNROLL
        for (size_t line = 0; line < 4 * L * sizeof **row; line += FF_LINE)
            __builtin_prefetch(ahead + line, 0, 3);
        ahead += 4 * L * sizeof **row;
        const TV c = T(load)(centre + k), qk = T(load)(q + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++) part[i] = T(fma)(T(sub)(FF_LOAD_T(row[i] + k), c), qk, part[i]);
        if (!pending) continue;
        TV total = T(load)(sum + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++) total = T(fma)(weight[i], T(sub)(FF_LOAD_T(pending[i] + k), c), total);
        T(store)(sum + k, total);
    }
    for (int i = 0; i < 4; i++) {
        FF_TT lanes[L];
        T(store)(lanes, part[i]);
        dots[i] = 0.0;
        for (int l = 0; l < L; l++) dots[i] += (double)lanes[l];
        for (int64_t l = k; l < size; l++) dots[i] += (double)(((FF_TT)VALUE(row[i][l]) - centre[l]) * q[l]);
    }
}

/* sum[k] += weight[i] mu'_k(row[i]) of four points for k = from..size-1. */
static void NAME_ST(few_accumulate4)(const ff_points *points, const FF_STORED *const *row, const TV *weight, int64_t from,
                                     FF_TT *sum) {
    enum { L = FF_LANES_T };
    const FF_TT *centre = FF_CENTRE_T(points);
    const int64_t size = points->size;
    int64_t k = from;
    for (; k + L <= size; k += L) {
        const TV c = T(load)(centre + k);
        TV total = T(load)(sum + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++) total = T(fma)(weight[i], T(sub)(FF_LOAD_T(row[i] + k), c), total);
        T(store)(sum + k, total);
    }
    for (int i = 0; k < size && i < 4; i++) {
        FF_TT lanes[L];
        T(store)(lanes, weight[i]);
        for (int64_t l = k; l < size; l++) sum[l] += lanes[0] * ((FF_TT)VALUE(row[i][l]) - centre[l]);
    }
}

/* The dot products of points start..stop-1 into the logits, meanwhile the sums of the pending points of the query. */
static void NAME_ST(few_stream)(const ff_points *points, const FF_TT *q, int64_t start, int64_t stop, few_query *query,
                                double *dots) {
    enum { L = FF_LANES_T };
    FF_TT *sum = query->narrow_sum;
    const int is_long = points->size > FF_SEGMENT;
    int64_t done = 0, j = start;
    for (; j + 4 <= stop || done < query->pending; j += 4) {
        double *to = dots + (j - start);
        const int has_next = j + 4 <= stop;
        if (done >= query->pending) {
            if (is_long) NAME_ST(few_dots4)(points, q, j, NULL, NULL, NULL, to);
            else
                for (int i = 0; i < 4; i++) to[i] = NAME_ST(few_dot)(points, q, j + i, NULL, NULL, 0, NULL);
            continue;
        }
        const FF_STORED *row[4];
        TV weight[4];
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            row[i] = NAME_S(row)(points, query->index[done + i]);
            weight[i] = T(set1)((FF_TT)query->weight[done + i]);
        }
        done += 4;
        int64_t rest = 0;
        if (has_next && is_long) {
            NAME_ST(few_dots4)(points, q, j, row, weight, sum, to);
            rest = points->size / L * L;
        } else if (has_next) {
            for (int i = 0; i < 4; i++) to[i] = NAME_ST(few_dot)(points, q, j + i, row, weight, i, sum);
            rest = points->size / (4 * L) * (4 * L);
        }
        NAME_ST(few_accumulate4)(points, row, weight, rest, sum);
    }
    for (j = start + (stop - start) / 4 * 4; j < stop; j++)
        dots[j - start] = NAME_ST(few_dot)(points, q, j, NULL, NULL, 0, NULL);
    query->pending = 0;
}

/* One smooth query over one strip of points, in the compute type. */
static void NAME_ST(few_smooth_strip)(const ff_job *job, int64_t start, int64_t stop, const few_packed *packed,
                                      few_query *query, few_scratch *s) {
    const ff_points *points = job->points;
    const treatment *how = &packed->how;
    double largest = query->part.largest;
    NAME_ST(few_stream)(points, packed->q, start, stop, query, s->logit);
    for (int64_t j = start; j < stop; j++) {
        double *logit = s->logit + (j - start);
        *logit += log_mass(points, j) - how->square * points->square[j] + how->base;
        if (j == query->without) *logit = FF_LEFT_OUT;
        if (*logit > largest) largest = *logit; /* fmax would be a call */
    }
    if (largest > query->part.largest) {
        const double keep = few_raise(&query->part, largest);
        FF_TT *sum = query->narrow_sum;
        for (int64_t k = 0; k < points->size; k++) sum[k] *= (FF_TT)keep;
    }
    if (may_be_suspect(points, how, largest - how->base))
        for (int64_t j = start; j < stop; j++) {
            double *logit = s->logit + (j - start);
            const double terms = suspect_terms(how, *logit - how->base) + 2.0 * how->square * points->square[j];
            if (exp(*logit - largest) * terms > how->suspect && j != query->without)
                *logit = log_mass(points, j) - how->exact.precision * NAME_S(distance)(points, packed->e, &how->exact, j);
        }
    const int64_t kept = few_weigh(s->logit, start, stop - start, query);
    if (job->want_mean) query->pending = fill_up_to_four(kept, query->index, query->weight);
}

static void NAME_ST(few_pack)(const ff_job *job, int64_t query, int64_t count, void *scratch) {
    (void)scratch;
    const int64_t size = job->points->size;
    few_packed *packed = job->packed;
    double *rows = (double *)(packed + job->queries->count);
    for (int64_t i = query; i < query + count; i++) {
        few_packed *p = packed + i;
        p->e = rows + 2 * size * i;
        p->q = p->e + size;
        const coefficients c = centred_query(job->points, job->queries, i, p->e);
        p->how = NAME_ST(settle)(job, &c);
        p->how.sharp |= sizeof(FF_TT) == 8 || p->how.heavy < INFINITY || job->pointwise; /* float64 costs little here */
        for (int64_t k = 0; k < size && !p->how.sharp; k++)
            ((FF_TT *)p->q)[k] = (FF_TT)(2.0 * c.precision * c.beta * p->e[k]);
    }
}

static void NAME_ST(few_compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                 void *scratch) {
    few_scratch *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size;
    const few_packed *packed = (const few_packed *)job->packed + query;
    for (int64_t i = 0; i < count; i++) {
        few_query *q = s->query + i;
        q->sum = s->rows + (3 * size + 1) * i;
        q->narrow_sum = q->sum + 2 * size + 1;
        memset(q->sum, 0, (size_t)(3 * size + 1) * sizeof(double));
        q->without = left_out(job, query + i, start, stop);
        q->part = (partial){-1.7e308, 0.0, 0.0, 0.0, packed[i].how.exact.base};
        q->pending = 0;
    }
    const int64_t strip = ff_min(FEW_CHUNK, ff_max(4, FEW_STRIP / (size * (int64_t)sizeof(FF_STORED)) / 4 * 4));
    for (int64_t j = start; j < stop; j += strip)
        for (int64_t i = 0; i < count; i++)
            (packed[i].how.sharp ? NAME_ST(few_exact_strip) : NAME_ST(few_smooth_strip))(
                job, j, ff_min(j + strip, stop), packed + i, s->query + i, s);
    for (int64_t i = 0; i < count; i++) {
        const few_query *q = s->query + i;
        if (packed[i].how.sharp) continue;
        NAME_ST(few_stream)(points, packed[i].q, stop, stop, s->query + i, s->logit);
        for (int64_t k = 0; k < size; k++) q->sum[k] = (double)((FF_TT *)q->narrow_sum)[k];
    }
}
