/* Few dimensions and few queries: lanes hold points, where the kernel for many queries would leave most lanes idle.
   All arithmetic is in float64 by residuals. Included once for each storage type. */

#ifndef FF_LOW_FEW
#define FF_LOW_FEW
enum {
    /* So many take as long as half a panel of the kernel for many: of 10,000 points in 2, 3, 5, 8 and 10 dimensions and
       float32 queries at t = 0.1, one thread of Zen 5, 5, 6, 8, 5 and 5 by AVX-512, whose vectors are of 8, and by AVX2,
       whose are of 4, 3, 3.5, 4, 2.5 and 3. Up to half as many again at t = 0.3, where a batch may need half a panel of each
       of two kinds. */
    LOW_FEW_QUERIES = F64_LANES < 5 ? F64_LANES : 5,
    LOW_FEW_CHUNK = 512 /* points: their columns stay in the first-level cache at size 2 */
};
static int64_t low_few_chunk(const ff_points *points) {
    (void)points;
    return LOW_FEW_CHUNK;
}

typedef struct {
    double column[LOW_SIZE * LOW_FEW_CHUNK]; /* mu' of the chunk, [k][point] */
    double log_mass[LOW_FEW_CHUNK], own[LOW_FEW_CHUNK]; /* own variances, where points have them */
    double logit[LOW_FEW_CHUNK], weight[LOW_FEW_CHUNK];
    double e[LOW_SIZE], sum[LOW_FEW_QUERIES * (2 * LOW_SIZE + 1)];
    partial partials[LOW_FEW_QUERIES];
} low_few_scratch;

static size_t low_few_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)points, (void)job;
    return sizeof(low_few_scratch);
}

/* sum[k] = sum of the weights times mu'_k */
static void low_few_sums(const low_few_scratch *s, int64_t points, int64_t size, double *sum) {
    for (int64_t k = 0; k < size; k++) {
        f64v total = f64_set1(0.0);
        for (int64_t j = 0; j < points; j += F64_LANES)
            total = f64_fma(f64_load(s->weight + j), f64_load(s->column + k * LOW_FEW_CHUNK + j), total);
        sum[k] = f64_sum(total);
    }
}

/* One query over the chunk, `points` filled up to whole vectors, without one of them if `without` is not negative. */
static partial low_few_query(const ff_job *job, low_few_scratch *s, const coefficients *c, int64_t points,
                             int64_t without, double *sum) {
    enum { L = F64_LANES };
    const int64_t size = job->points->size;
    const f64v variance = f64_set1(c->variance), slope = f64_set1(c->slope), beyond = f64_set1(c->excess * c->slope);
    const f64v widest = f64_set1(job->points->widest[0]), half = f64_set1(0.5), whole = f64_set1(0.5 * (double)size);
    const f64v beta = f64_set1(c->beta), precision = f64_set1(c->precision);
    f64v largest = f64_set1(-1.7e308);
    for (int64_t j = 0; j < points; j += L) {
        f64v distance = f64_set1(0.0);
        for (int64_t k = 0; k < size; k++) {
            const f64v mu = f64_load(s->column + k * LOW_FEW_CHUNK + j), near = f64_set1(c->is_far ? 0.0 : s->e[k]);
            const f64v far = f64_set1(c->is_far ? 2.0 * s->e[k] : s->e[k]);
            distance = f64_fma(f64_fnma(beta, mu, near), f64_fnma(beta, mu, far), distance);
        }
        f64v logit = f64_load(s->log_mass + j);
        if (job->pointwise) { /* exact_logit */
            const f64v own = f64_load(s->own + j), component = f64_fma(slope, own, variance);
            distance = f64_fma(beyond, f64_sub(widest, own), distance);
            logit = f64_fnma(whole, f64_log(component), logit);
            logit = f64_fnma(half, f64_div(distance, component), logit);
        } else {
            logit = f64_fnma(precision, distance, logit);
        }
        f64_store(s->logit + j, logit);
        largest = f64_max(largest, logit);
    }
    double lanes[L];
    f64_store(lanes, largest);
    partial p = {lanes[0], 0.0, 0.0, 0.0, c->base};
    for (int l = 1; l < L; l++) p.largest = fmax(p.largest, lanes[l]);
    if (without >= 0) {
        s->logit[without] = p.largest = FF_LEFT_OUT;
        for (int64_t j = 0; j < points; j++) p.largest = fmax(p.largest, s->logit[j]);
    }

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
    if (!job->want_mean) return p;
    low_few_sums(s, points, size, sum);
    if (!job->pointwise) return p;
    const f64v constant = f64_set1(c->gain_constant), rise = f64_set1(c->gain_slope);
    f64v gain = f64_set1(0.0);
    for (int64_t j = 0; j < points; j += L) {
        const f64v own = f64_load(s->own + j), gamma = f64_div(f64_fma(rise, own, constant), f64_fma(slope, own, variance));
        const f64v weight = f64_mul(f64_load(s->weight + j), gamma);
        f64_store(s->weight + j, weight);
        gain = f64_add(gain, weight);
    }
    low_few_sums(s, points, size, sum + size);
    sum[2 * size] = f64_sum(gain);
    return p;
}

static void low_few_compute(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                            void *scratch) {
    low_few_scratch *s = scratch;
    const int64_t filled = ff_ceil_div(stop - start, F64_LANES) * F64_LANES, rows = ff_rows(job);
    for (int64_t q = 0; q < count; q++) {
        const coefficients c = centred_query(job->points, job->queries, query + q, s->e);
        const int64_t without = left_out(job, query + q, start, stop);
        s->partials[q] = low_few_query(job, s, &c, filled, without < 0 ? -1 : without - start, s->sum + q * rows);
    }
}

static void low_few_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                          void *scratch) {
    (void)stop;
    low_few_scratch *s = scratch;
    for (int64_t q = 0; q < count; q++)
        merge_row(job, start == 0, query + q, s->partials + q, s->sum + q * ff_rows(job));
}
#endif

static void NAME_S(low_few_begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch) {
    low_few_scratch *s = scratch;
    const ff_points *points = job->points;
    for (int64_t j = 0; j < ff_ceil_div(stop - start, F64_LANES) * F64_LANES; j++) {
        const int filler = start + j >= stop; /* points without mass, to whole vectors */
        const FF_STORED *row = NAME_S(row)(points, filler ? stop - 1 : start + j);
        for (int64_t k = 0; k < points->size; k++)
            s->column[k * LOW_FEW_CHUNK + j] = (double)VALUE(row[k]) - points->centre[k];
        s->own[j] = job->pointwise ? points->data.variance[filler ? stop - 1 : start + j] : 0.0;
        s->log_mass[j] = filler ? FF_LEFT_OUT : log_mass(points, start + j);
    }
}
