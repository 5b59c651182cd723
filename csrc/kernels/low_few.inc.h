/* Few dimensions and few queries: lanes hold points, where the kernel for many queries would leave most lanes idle.
   All arithmetic is in float64 by residuals. Included once for each storage type. */

#ifndef FF_LOW_FEW
#define FF_LOW_FEW
typedef struct {
    double column[LOW_SIZE * LOW_CHUNK]; /* mu' of the chunk, [k][point] */
    double log_mass[LOW_CHUNK];
    double logit[LOW_CHUNK], weight[LOW_CHUNK];
    double e[LOW_SIZE], sum[FEW_QUERIES * LOW_SIZE];
    partial partials[FEW_QUERIES];
} low_few_scratch;

static size_t low_few_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)points, (void)job;
    return sizeof(low_few_scratch);
}

/* One query over the chunk, `points` filled up to whole vectors. */
static partial low_few_query(low_few_scratch *s, const coefficients *c, int64_t points, int64_t size, double *sum) {
    enum { L = F64_LANES };
    const f64v beta = f64_set1(c->beta), precision = f64_set1(c->precision);
    f64v largest = f64_set1(-1.7e308);
    for (int64_t j = 0; j < points; j += L) {
        f64v distance = f64_set1(0.0);
        for (int64_t k = 0; k < size; k++) {
            const f64v mu = f64_load(s->column + k * LOW_CHUNK + j), near = f64_set1(c->is_far ? 0.0 : s->e[k]);
            const f64v far = f64_set1(c->is_far ? 2.0 * s->e[k] : s->e[k]);
            distance = f64_fma(f64_fnma(beta, mu, near), f64_fnma(beta, mu, far), distance);
        }
        const f64v logit = f64_fnma(precision, distance, f64_load(s->log_mass + j));
        f64_store(s->logit + j, logit);
        largest = f64_max(largest, logit);
    }
    double lanes[L];
    f64_store(lanes, largest);
    partial p = {lanes[0], 0.0, 0.0, 0.0, c->base};
    for (int l = 1; l < L; l++) p.largest = fmax(p.largest, lanes[l]);

    f64v total = f64_set1(0.0), first = total, second = total;
    const f64v reference = f64_set1(p.largest), bound = f64_set1(-1e4); /* bounded, a zero weight times it is zero */
    for (int64_t j = 0; j < points; j += L) {
        const f64v below = f64_max(f64_sub(f64_load(s->logit + j), reference), bound), weight = f64_exp(below);
        f64_store(s->weight + j, weight);
        total = f64_add(total, weight);
        first = f64_fma(weight, below, first);
        second = f64_fma(weight, weight, second);
    }
    p.total = f64_sum(total);
    p.first = f64_sum(first);
    p.second = f64_sum(second);
    for (int64_t k = 0; k < size; k++) {
        f64v mean = f64_set1(0.0);
        for (int64_t j = 0; j < points; j += L)
            mean = f64_fma(f64_load(s->weight + j), f64_load(s->column + k * LOW_CHUNK + j), mean);
        sum[k] = f64_sum(mean);
    }
    return p;
}

static void low_few_compute(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                            void *scratch) {
    low_few_scratch *s = scratch;
    const int64_t filled = ff_ceil_div(stop - start, F64_LANES) * F64_LANES, size = job->points->size;
    for (int64_t q = 0; q < count; q++) {
        const coefficients c = centred_query(job->points, job->queries, query + q, s->e);
        s->partials[q] = low_few_query(s, &c, filled, size, s->sum + q * size);
    }
}

static void low_few_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                          void *scratch) {
    (void)stop;
    low_few_scratch *s = scratch;
    for (int64_t q = 0; q < count; q++)
        merge_row(job, start == 0, query + q, s->partials + q, s->sum + q * job->points->size);
}
#endif

static void NAME_S(low_few_begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch) {
    low_few_scratch *s = scratch;
    const ff_points *points = job->points;
    for (int64_t j = 0; j < ff_ceil_div(stop - start, F64_LANES) * F64_LANES; j++) {
        const int filler = start + j >= stop; /* points without mass, to whole vectors */
        const FF_STORED *row = NAME_S(row)(points, filler ? stop - 1 : start + j);
        for (int64_t k = 0; k < points->size; k++)
            s->column[k * LOW_CHUNK + j] = (double)row[k] - points->centre[k];
        s->log_mass[j] = filler ? -1e300 : log_mass(points, start + j);
    }
}
