/* Few queries: bound by the memory bandwidth, so float64 arithmetic by residuals costs nothing. A chunk is cut in
   strips that stay in the second-level cache between the pass for the logits and the pass for the sums, and so each
   point is read from memory once. Included once for each storage type. */

#ifndef FF_FEW
#define FF_FEW
/* More queries than these are faster as a padded panel of the batch kernel (bench/compare.py --crossover). */
enum { FEW_QUERIES = 4 };
enum { FEW_CHUNK = 256 };
/* Bytes of one strip: a quarter of the second-level cache of the smallest current cores (512 KB), and so that of a
   point of 12,288 float32 values still fits. */
enum { FEW_STRIP = 128 * 1024 };

/* Scratch: for each query e (size values), its sum (size values), then the strip's distances and indices. */
typedef struct {
    partial partials[FEW_QUERIES];
    double distance[FEW_CHUNK], weight[FEW_CHUNK];
    int64_t index[FEW_CHUNK];
    double rows[];
} few_scratch;

static int64_t few_chunk(const ff_points *points) {
    (void)points;
    return FEW_CHUNK;
}
static size_t few_packed_bytes(const ff_points *points, int64_t queries) {
    (void)points, (void)queries;
    return 0;
}
static size_t few_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)job;
    return sizeof(few_scratch) + 2 * FEW_QUERIES * (size_t)points->size * sizeof(double);
}

static void few_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    (void)stop;
    few_scratch *s = scratch;
    const int64_t size = job->points->size;
    for (int64_t q = 0; q < count; q++) {
        double keep, add;
        merge_scalars(&job->state, query + q, s->partials + q, start == 0, &keep, &add);
        if (!job->want_mean) continue;
        double *to = job->state.sum + (query + q) * size;
        const double *from = s->rows + (2 * q + 1) * size;
        if (start == 0) memcpy(to, from, (size_t)size * sizeof(double));
        else
            for (int64_t k = 0; k < size; k++) to[k] = keep * to[k] + add * from[k];
    }
}
#endif

/* One query over one strip of points, added to its partial sums. */
static void NAME_S(few_strip)(const ff_job *job, int64_t start, int64_t stop, const coefficients *c, const double *e,
                              double *sum, partial *p, few_scratch *s) {
    const ff_points *points = job->points;
    NAME_S(distances)(points, e, c->beta, start, stop, s->distance);
    double largest = p->largest;
    for (int64_t i = 0; i < stop - start; i++) {
        s->distance[i] = log_mass(points, start + i) - c->precision * s->distance[i];
        largest = fmax(largest, s->distance[i]);
    }
    if (largest > p->largest && p->total > 0.0) {
        const double shift = p->largest - largest, keep = exp(shift);
        p->first = keep * (p->first + p->total * shift);
        p->second *= keep * keep;
        p->total *= keep;
        if (job->want_mean)
            for (int64_t k = 0; k < points->size; k++) sum[k] *= keep;
    }
    p->largest = largest;
    for (int64_t i = 0; i < stop - start; i += F64_LANES) /* the chunk is a multiple of the lanes */
        f64_store(s->weight + i, f64_exp(f64_sub(f64_load(s->distance + i), f64_set1(largest))));
    int64_t kept = 0;
    for (int64_t i = 0; i < stop - start; i++) {
        const double below = s->distance[i] - largest, weight = s->weight[i];
        if (weight == 0.0) continue;
        p->total += weight;
        p->first += weight * below;
        p->second += weight * weight;
        s->weight[kept] = weight;
        s->index[kept++] = start + i;
    }
    if (job->want_mean) NAME_S(accumulate)(points, kept, s->index, s->weight, sum);
}

static void NAME_S(few_compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                void *scratch) {
    few_scratch *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size;
    coefficients c[FEW_QUERIES];
    for (int64_t q = 0; q < count; q++) {
        c[q] = coefficients_of(points, job->queries, query + q);
        centred_query(points, job->queries, query + q, s->rows + 2 * q * size);
        memset(s->rows + (2 * q + 1) * size, 0, (size_t)size * sizeof(double));
        s->partials[q] = (partial){-1.7e308, 0.0, 0.0, 0.0};
    }
    const int64_t row_bytes = size * (int64_t)sizeof(FF_PASTE(FF_S, _t));
    const int64_t strip = ff_max(4, FEW_STRIP / row_bytes / 4 * 4);
    for (int64_t j = start; j < stop; j += strip)
        for (int64_t q = 0; q < count; q++)
            NAME_S(few_strip)(job, j, ff_min(j + strip, stop), c + q, s->rows + 2 * q * size,
                              s->rows + (2 * q + 1) * size, s->partials + q, s);
}
