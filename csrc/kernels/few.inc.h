/* Few queries: bound by the memory bandwidth. A chunk is cut in strips, and one loop takes the dot products of a strip and
   the sums of the strip before, which is still in cache: each point is read from memory once, and memory is read all the
   time. Vectors run along the dimensions. Included once for each pair of storage type FF_S and compute type FF_T;
   float64 arithmetic is by residuals throughout, float32 arithmetic as treatment.inc.h tells. */

#ifndef FF_FEW
#define FF_FEW
enum {
    FEW_CHUNK = 256,       /* points: longer sums in the compute type would round too much */
    FEW_STRIP = 32 * 1024, /* bytes of a strip: it stays in the first-level cache */
    /* Bytes from what is read to what is fetched meanwhile, a quarter of a page: it starts the processor's own fetching
       of the next page early. Twice as far was slower (Zen 3), half as far as fast. */
    FEW_AHEAD = 1024
};

/* What the kernel makes of a query, once: its treatment, e, and q in the compute type; the centre, likewise, is one row for
   all of them. */
typedef struct {
    treatment how;
    double *e;
    void *q, *centre;
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
} few_scratch;
/* Rows of scratch of each query behind that: two of sums in float64 and one more value, and one in the compute type. */
enum { FEW_ROWS = 4 };

static int64_t few_chunk(const ff_points *points) {
    (void)points;
    return FEW_CHUNK;
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

/* A block: FEW_WIDTH vectors of a point, in the order that its storage type is unpacked in, and FEW_BIAS above the values.
   Everything that runs along the dimensions is in that order, up to the last that fill FEW_STEP of them. */
#if FF_PASTE(FF_IS_BYTE_, FF_S) && FF_PASTE(FF_IS_, FF_T) && defined(F32_BYTE_BLOCK)
#define FEW_WIDTH 4
#define FEW_BIAS FF_PASTE(F32_BLOCK_BIAS_, FF_S)
#define FEW_BLOCK(p, v) FF_PASTE(f32_block_, FF_S)(p, v)
#define FEW_PLACE(k) f32_block_place(k)
#else
#define FEW_WIDTH 1
#define FEW_BIAS 0
#define FEW_BLOCK(p, v) (*(v) = FF_LOAD_T(p))
#define FEW_PLACE(k) (k)
#endif
#define FEW_STEP (4 * FEW_WIDTH * FF_LANES_T)
#define INLINE static inline __attribute__((always_inline))

/* Where dimension k of a point of `size` is in that order. */
INLINE int64_t NAME_ST(few_place)(int64_t k, int64_t size) {
    return k < size / FEW_STEP * FEW_STEP ? FEW_PLACE(k) : k;
}

/* mu' of one vector of a block. */
INLINE TV NAME_ST(few_offset)(TV stored, const FF_TT *centre, int64_t k, int at_zero) {
    return at_zero ? stored : T(sub)(stored, T(load)(centre + k));
}

/* The part of q.mu' of one point that one block has, added to some of `part`, `parts` in all. */
INLINE void NAME_ST(few_dot_block)(const FF_STORED *row, const FF_TT *q, const FF_TT *centre, int64_t k, int at_zero,
                                   TV *part, int parts) {
    TV v[FEW_WIDTH];
    FEW_BLOCK(row + k, v);
    FF_UNROLL
    for (int i = 0; i < FEW_WIDTH; i++) {
        const int64_t at = k + i * FF_LANES_T;
        part[i % parts] = T(fma)(NAME_ST(few_offset)(v[i], centre, at, at_zero), T(load)(q + at), part[i % parts]);
    }
}

/* sum[k] += weight[i] mu'_k(row[i]) of four points, for one block of k. */
INLINE void NAME_ST(few_sum_block)(const FF_STORED *const *row, const TV *weight, const FF_TT *centre, int64_t k,
                                   int at_zero, FF_TT *sum) {
    TV total[FEW_WIDTH];
    FF_UNROLL
    for (int i = 0; i < FEW_WIDTH; i++) total[i] = T(load)(sum + k + i * FF_LANES_T);
    FF_UNROLL
    for (int point = 0; point < 4; point++) {
        TV v[FEW_WIDTH];
        FEW_BLOCK(row[point] + k, v);
        FF_UNROLL
        for (int i = 0; i < FEW_WIDTH; i++)
            total[i] = T(fma)(weight[point], NAME_ST(few_offset)(v[i], centre, k + i * FF_LANES_T, at_zero), total[i]);
    }
    FF_UNROLL
    for (int i = 0; i < FEW_WIDTH; i++) T(store)(sum + k + i * FF_LANES_T, total[i]);
}

/* The rest of a dot product, of the dimensions beyond the last step; `part` has the others. */
INLINE double NAME_ST(few_dot_end)(const FF_STORED *row, const FF_TT *q, const FF_TT *centre, int64_t size, TV part) {
    enum { L = FF_LANES_T };
    int64_t k = size / FEW_STEP * FEW_STEP;
    for (; k + L <= size; k += L) part = T(fma)(T(sub)(FF_LOAD_T(row + k), T(load)(centre + k)), T(load)(q + k), part);
    FF_TT lanes[L];
    T(store)(lanes, part);
    double dot = 0.0;
    for (int l = 0; l < L; l++) dot += (double)lanes[l];
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
   never idle. One point at a time, as a single stream of consecutive lines runs at twice the bandwidth of four; it is
   fetched FEW_AHEAD bytes in advance. */
INLINE double NAME_ST(few_dot)(const FF_STORED *row, const FF_TT *q, const FF_TT *centre, int64_t size, int at_zero,
                               const FF_STORED *const *pending, const TV *weight, int64_t quarter, FF_TT *sum) {
    enum { BLOCK = FEW_WIDTH * FF_LANES_T };
    TV part[4] = {T(set1)(0), T(set1)(0), T(set1)(0), T(set1)(0)};
    const int64_t steps = size / FEW_STEP;
    for (int64_t step = 0; step < steps; step++) {
        const int64_t k = step * FEW_STEP;
        FF_UNROLL
        for (size_t line = 0; line < FEW_STEP * sizeof *row; line += FF_LINE)
            __builtin_prefetch((const char *)(row + k) + FEW_AHEAD + line, 0, 3);
        FF_UNROLL
        for (int i = 0; i < 4; i++)
            NAME_ST(few_dot_block)(row, q, centre, k + i * BLOCK, at_zero, part + i % (4 / FEW_WIDTH), FEW_WIDTH);
        if (pending) NAME_ST(few_sum_block)(pending, weight, centre, (quarter * steps + step) * BLOCK, at_zero, sum);
    }
    return NAME_ST(few_dot_end)(row, q, centre, size, T(add)(T(add)(part[0], part[1]), T(add)(part[2], part[3])));
}

/* The same for four points side by side: where rows are long, the query, the centre and the sums leave the first-level
   cache, and are loaded once for all of them. Here four streams, each on pages of its own, are as fast as one. */
INLINE void NAME_ST(few_dots4)(const FF_STORED *const *row, const FF_TT *q, const FF_TT *centre, int64_t size,
                               int at_zero, const FF_STORED *const *pending, const TV *weight, FF_TT *sum,
                               double *dots) {
    enum { BLOCK = FEW_WIDTH * FF_LANES_T };
    TV part[4] = {T(set1)(0), T(set1)(0), T(set1)(0), T(set1)(0)};
    for (int64_t k = 0; k + BLOCK <= size / FEW_STEP * FEW_STEP; k += BLOCK) {
        FF_UNROLL
        for (int i = 0; i < 4; i++) NAME_ST(few_dot_block)(row[i], q, centre, k, at_zero, part + i, 1);
        if (pending) NAME_ST(few_sum_block)(pending, weight, centre, k, at_zero, sum);
    }
    for (int i = 0; i < 4; i++) dots[i] = NAME_ST(few_dot_end)(row[i], q, centre, size, part[i]);
}

/* Whether four points go side by side. Bytes do not: their rows are shorter, and the vectors of a block leave no registers
   for four points (a fifth slower, Zen 3). */
INLINE int NAME_ST(few_side_by_side)(int64_t size) { return FEW_WIDTH == 1 && size > FF_SEGMENT; }

/* The dot products of points start..stop-1 into `dots`, meanwhile the sums of the pending points of the query. */
INLINE void NAME_ST(few_pass)(const ff_points *points, const FF_TT *q, const FF_TT *centre, int at_zero, int64_t start,
                              int64_t stop, few_query *query, double *dots) {
    enum { BLOCK = FEW_WIDTH * FF_LANES_T };
    const int64_t size = points->size;
    FF_TT *sum = query->narrow_sum;
    int64_t j = start;
    for (int64_t done = 0; j + 4 <= stop || done < query->pending; j += 4) {
        const FF_STORED *next[4], *row[4];
        TV weight[4];
        double *to = dots + (j - start);
        const int has_next = j + 4 <= stop, has_sums = done < query->pending;
        for (int i = 0; i < 4 && has_next; i++) next[i] = NAME_S(row)(points, j + i);
        for (int i = 0; i < 4 && has_sums; i++) {
            row[i] = NAME_S(row)(points, query->index[done + i]);
            weight[i] = T(set1)((FF_TT)query->weight[done + i]);
        }
        done += 4;
        if (has_next && has_sums && NAME_ST(few_side_by_side)(size))
            NAME_ST(few_dots4)(next, q, centre, size, at_zero, row, weight, sum, to);
        else if (has_next && has_sums)
            for (int i = 0; i < 4; i++)
                to[i] = NAME_ST(few_dot)(next[i], q, centre, size, at_zero, row, weight, i, sum);
        else if (has_next && NAME_ST(few_side_by_side)(size))
            NAME_ST(few_dots4)(next, q, centre, size, at_zero, NULL, NULL, NULL, to);
        else if (has_next)
            for (int i = 0; i < 4; i++)
                to[i] = NAME_ST(few_dot)(next[i], q, centre, size, at_zero, NULL, NULL, 0, NULL);
        else
            for (int64_t k = 0; k < size / FEW_STEP * FEW_STEP; k += BLOCK)
                NAME_ST(few_sum_block)(row, weight, centre, k, at_zero, sum);
        if (has_sums) NAME_ST(few_sum_end)(row, weight, centre, size, sum);
    }
    for (j = start + (stop - start) / 4 * 4; j < stop; j++)
        dots[j - start] = NAME_ST(few_dot)(NAME_S(row)(points, j), q, centre, size, at_zero, NULL, NULL, 0, NULL);
    query->pending = 0;
}
static void NAME_ST(few_stream)(const ff_points *points, const few_packed *packed, int64_t start, int64_t stop,
                                few_query *query, double *dots) {
    if (FEW_BIAS == 0 && points->centre_is_zero)
        NAME_ST(few_pass)(points, packed->q, packed->centre, 1, start, stop, query, dots);
    else NAME_ST(few_pass)(points, packed->q, packed->centre, 0, start, stop, query, dots);
}

/* One smooth query over one strip of points, in the compute type. */
static void NAME_ST(few_smooth_strip)(const ff_job *job, int64_t start, int64_t stop, const few_packed *packed,
                                      few_query *query, few_scratch *s) {
    const ff_points *points = job->points;
    const treatment *how = &packed->how;
    double largest = query->part.largest;
    NAME_ST(few_stream)(points, packed, start, stop, query, s->logit);
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
    const int64_t stride = few_stride(job->points);
    double *rows = (double *)((char *)packed + ff_aligned((size_t)job->queries->count * sizeof *packed));
    FF_TT *centre = (FF_TT *)rows;
    for (int64_t k = 0; k < size; k++)
        centre[NAME_ST(few_place)(k, size)] =
            (FF_TT)(job->points->centre[k] + (k < size / FEW_STEP * FEW_STEP ? FEW_BIAS : 0));
    for (int64_t i = query; i < query + count; i++) {
        few_packed *p = packed + i;
        p->e = rows + (1 + 2 * i) * stride;
        p->q = p->e + stride;
        p->centre = centre;
        const coefficients c = centred_query(job->points, job->queries, i, p->e);
        p->how = NAME_ST(settle)(job, &c);
        p->how.sharp |= sizeof(FF_TT) == 8 || p->how.heavy < INFINITY || job->pointwise; /* float64 costs little here */
        for (int64_t k = 0; k < size && !p->how.sharp; k++)
            ((FF_TT *)p->q)[NAME_ST(few_place)(k, size)] = (FF_TT)(2.0 * c.precision * c.beta * p->e[k]);
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
        memset(q->narrow_sum, 0, FEW_ROWS * (size_t)stride * sizeof(double));
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
        NAME_ST(few_stream)(points, packed + i, stop, stop, s->query + i, s->logit);
        for (int64_t k = 0; k < size; k++) q->sum[k] = (double)((FF_TT *)q->narrow_sum)[NAME_ST(few_place)(k, size)];
    }
}
#undef FEW_WIDTH
#undef FEW_BIAS
#undef FEW_BLOCK
#undef FEW_PLACE
#undef FEW_STEP
#undef INLINE
