/* Few dimensions, any number of queries: bound by the exponential. Lanes hold queries, points are broadcast, and all
   arithmetic is in float64 by residuals, so no accuracy is lost at any time. Included once for each storage type. */

#ifndef FF_LOW_LANES
#define FF_LOW_LANES (2 * F64_LANES)
enum { LOW_SIZE = 16, LOW_BLOCK = 32 * FF_LOW_LANES };
/* Points of a chunk: the tile of points and the logits of one panel stay in the first-level cache at size 2, and the
   cost of a merge is small beside that of a chunk. */
enum { LOW_CHUNK = 512 };

/* Scratch: the tile of points, the logits of a panel, the partial sums of a block. */
typedef struct {
    double point[LOW_CHUNK * LOW_SIZE];
    double log_mass[LOW_CHUNK];
    /* Points with variances of their own: theirs, and where all queries share one time 1/D_j, gamma_j, and log_mass with
       -(size/2) log D_j in it. Where they do not, gamma_j of a panel. */
    double own[LOW_CHUNK], inverse[LOW_CHUNK], gain[LOW_CHUNK], gains[LOW_CHUNK * FF_LOW_LANES];
    double logit[LOW_CHUNK * FF_LOW_LANES];
    double sum[LOW_BLOCK * (2 * LOW_SIZE + 1)]; /* panels of [row][lane] */
    double e[LOW_SIZE * FF_LOW_LANES], origin[LOW_SIZE * FF_LOW_LANES], row[LOW_SIZE];
    double beta[FF_LOW_LANES], precision[FF_LOW_LANES], base[FF_LOW_LANES];
    double variance[FF_LOW_LANES], slope[FF_LOW_LANES], gain_constant[FF_LOW_LANES], gain_slope[FF_LOW_LANES];
    double excess[FF_LOW_LANES], widest;
    int one_time;
    int64_t without[FF_LOW_LANES]; /* place in the tile of the point that a query leaves out, or -1 */
    partial partials[LOW_BLOCK];
} low_scratch;

static int64_t low_chunk(const ff_points *points) {
    (void)points;
    return LOW_CHUNK;
}
static size_t low_packed_bytes(const ff_job *job) {
    (void)job;
    return 0;
}
static size_t low_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)points, (void)job;
    return sizeof(low_scratch);
}

/* exp of a panel's row, in float64, or for float32 queries in float32: the argument is exact to a rounding of the
   result's type, since it was formed in float64. */
static inline void low_exp(const f64v below[2], int narrow, f64v p[2]) {
    if (narrow) {
        const f32v e = f32_exp(f32_from_f64(below[0], below[1]));
        p[0] = f64_from_low(e);
        p[1] = f64_from_high(e);
    } else {
        p[0] = f64_exp(below[0]);
        p[1] = f64_exp(below[1]);
    }
}

/* Strike the points that queries leave out off the logits of a panel, and off the largest. */
static inline void low_leave_out(const int64_t *without, int64_t points, double *logits, f64v largest[2]) {
    for (int lane = 0; lane < FF_LOW_LANES; lane++) {
        if (without[lane] < 0) continue;
        double lanes[FF_LOW_LANES];
        f64_store(lanes, largest[0]);
        f64_store(lanes + F64_LANES, largest[1]);
        logits[without[lane] * FF_LOW_LANES + lane] = lanes[lane] = FF_LEFT_OUT;
        for (int64_t j = 0; j < points; j++) lanes[lane] = fmax(lanes[lane], logits[j * FF_LOW_LANES + lane]);
        largest[0] = f64_load(lanes);
        largest[1] = f64_load(lanes + F64_LANES);
    }
}

/* exact_logit for the half h of a panel, and gamma_j. */
static inline f64v low_own_logit(low_scratch *s, int64_t j, int h, int size, int narrow, f64v distance) {
    const int at = h * F64_LANES;
    const f64v slope = f64_load(s->slope + at), own = f64_set1(s->own[j]), half = f64_set1(0.5);
    const f64v beyond = f64_mul(f64_mul(f64_load(s->excess + at), slope), f64_set1(s->widest - s->own[j]));
    distance = f64_mul(half, f64_add(distance, beyond));
    if (s->one_time) return f64_fnma(distance, f64_set1(s->inverse[j]), f64_set1(s->log_mass[j]));
    f64v inverse;
    /* off by 5e-9 at most for float32 queries, and by 8 times that in the logit */
    const f64v log_variance = f64_log_inverse(f64_fma(slope, own, f64_load(s->variance + at)), narrow ? 9 : 21,
                                              &inverse);
    const f64v gain = f64_fma(f64_load(s->gain_slope + at), own, f64_load(s->gain_constant + at));
    f64_store(s->gains + j * FF_LOW_LANES + at, f64_mul(gain, inverse));
    const f64v mass = f64_fnma(f64_set1(0.5 * size), log_variance, f64_set1(s->log_mass[j]));
    return f64_fnma(distance, inverse, mass);
}

/* One panel of queries over the tile. The last five arguments are constants in the calls below, so that loops over
   the dimensions unroll and branches vanish. */
static inline __attribute__((always_inline)) void low_panel(low_scratch *s, int64_t points, double *logits, double *sum,
                                                            partial *partials, int lanes, int size, int far,
                                                            int narrow, int spread, int pointwise) {
    enum { L = F64_LANES };
    f64v e[2 * LOW_SIZE] = {f64_set1(0.0)}, origin[2 * LOW_SIZE] = {f64_set1(0.0)}, beta[2], precision[2], largest[2];
    FF_UNROLL
    for (int k = 0; k < size; k++) {
        FF_UNROLL
        for (int h = 0; h < 2; h++) {
            e[2 * k + h] = f64_load(s->e + k * FF_LOW_LANES + h * L);
            if (far) origin[2 * k + h] = f64_load(s->origin + k * FF_LOW_LANES + h * L);
        }
    }
    FF_UNROLL
    for (int h = 0; h < 2; h++) {
        beta[h] = f64_load(s->beta + h * L);
        precision[h] = f64_load(s->precision + h * L);
        largest[h] = f64_set1(-1.7e308);
    }
    for (int64_t j = 0; j < points; j++) {
        const double *point = s->point + j * size;
        f64v distance[2] = {f64_set1(0.0), f64_set1(0.0)};
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f64v mu = f64_set1(point[k]);
            FF_UNROLL
            for (int h = 0; h < 2; h++) {
                const f64v r = f64_fnma(beta[h], mu, e[2 * k + h]);
                distance[h] = f64_fma(r, far ? f64_fnma(beta[h], mu, origin[2 * k + h]) : r, distance[h]);
            }
        }
        const f64v mass = f64_set1(s->log_mass[j]);
        FF_UNROLL
        for (int h = 0; h < 2; h++) {
            const f64v logit = pointwise ? low_own_logit(s, j, h, size, narrow, distance[h])
                                         : f64_fnma(precision[h], distance[h], mass);
            f64_store(logits + j * FF_LOW_LANES + h * L, logit);
            largest[h] = f64_max(largest[h], logit);
        }
    }
    low_leave_out(s->without, points, logits, largest);
    f64v total[2], first[2], second[2], gain[2], mean[2 * LOW_SIZE] = {f64_set1(0.0)}, gained[2 * LOW_SIZE];
    FF_UNROLL
    for (int h = 0; h < 2; h++) total[h] = first[h] = second[h] = gain[h] = f64_set1(0.0);
    FF_UNROLL
    for (int k = 0; k < 2 * size; k++) mean[k] = gained[k] = f64_set1(0.0);
    for (int64_t j = 0; j < points; j++) {
        const double *point = s->point + j * size;
        f64v below[2], p[2];
        FF_UNROLL
        for (int h = 0; h < 2; h++) {
            below[h] = f64_sub(f64_load(logits + j * FF_LOW_LANES + h * L), largest[h]);
            /* the bound, where weights are zero, keeps the products finite */
            if (spread) below[h] = f64_max(below[h], f64_set1(-1e4));
        }
        low_exp(below, narrow, p);
        FF_UNROLL
        for (int h = 0; h < 2; h++) {
            total[h] = f64_add(total[h], p[h]);
            if (spread) {
                first[h] = f64_fma(p[h], below[h], first[h]);
                second[h] = f64_fma(p[h], p[h], second[h]);
            }
        }
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f64v mu = f64_set1(point[k]);
            mean[2 * k] = f64_fma(p[0], mu, mean[2 * k]);
            mean[2 * k + 1] = f64_fma(p[1], mu, mean[2 * k + 1]);
        }
        if (!pointwise) continue;
        FF_UNROLL
        for (int h = 0; h < 2; h++) {
            const f64v own = s->one_time ? f64_set1(s->gain[j]) : f64_load(s->gains + j * FF_LOW_LANES + h * L);
            p[h] = f64_mul(p[h], own);
            gain[h] = f64_add(gain[h], p[h]);
        }
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f64v mu = f64_set1(point[k]);
            gained[2 * k] = f64_fma(p[0], mu, gained[2 * k]);
            gained[2 * k + 1] = f64_fma(p[1], mu, gained[2 * k + 1]);
        }
    }
    FF_UNROLL
    for (int k = 0; k < 2 * size; k++) f64_store(sum + k * L, mean[k]);
    if (pointwise) {
        FF_UNROLL
        for (int k = 0; k < 2 * size; k++) f64_store(sum + (2 * size + k) * L, gained[k]);
        f64_store(sum + 4 * size * L, gain[0]);
        f64_store(sum + (4 * size + 1) * L, gain[1]);
    }
    double out[4][FF_LOW_LANES];
    FF_UNROLL
    for (int h = 0; h < 2; h++) {
        f64_store(out[0] + h * L, largest[h]);
        f64_store(out[1] + h * L, total[h]);
        f64_store(out[2] + h * L, first[h]);
        f64_store(out[3] + h * L, second[h]);
    }
    for (int lane = 0; lane < lanes; lane++)
        partials[lane] = (partial){out[0][lane], out[1][lane], out[2][lane], out[3][lane], s->base[lane]};
}

/* The common sizes of toy problems, without far queries and spread, get code of their own. */
static void low_run(low_scratch *s, int64_t points, double *sum, partial *partials, int lanes, int size, int far,
                    int narrow, int spread, int pointwise) {
    double *logits = s->logit;
#define LOW_CASE(n)                                                                                         \
    if (size == n && !far && !spread) {                                                                     \
        if (pointwise && narrow) low_panel(s, points, logits, sum, partials, lanes, n, 0, 1, 0, 1);         \
        else if (pointwise) low_panel(s, points, logits, sum, partials, lanes, n, 0, 0, 0, 1);              \
        else if (narrow) low_panel(s, points, logits, sum, partials, lanes, n, 0, 1, 0, 0);                 \
        else low_panel(s, points, logits, sum, partials, lanes, n, 0, 0, 0, 0);                             \
        return;                                                                                             \
    }
    LOW_CASE(1)
    LOW_CASE(2)
    LOW_CASE(3)
#undef LOW_CASE
    if (pointwise) low_panel(s, points, logits, sum, partials, lanes, size, far, narrow, spread, 1);
    else if (far) low_panel(s, points, logits, sum, partials, lanes, size, 1, narrow, spread, 0);
    else low_panel(s, points, logits, sum, partials, lanes, size, 0, narrow, spread, 0);
}

static void low_compute(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    low_scratch *s = scratch;
    const int size = (int)job->points->size, narrow = job->queries->dtype == FF_FLOAT32;
    for (int64_t q = 0; q < count; q += FF_LOW_LANES) {
        const int lanes = (int)ff_min(FF_LOW_LANES, count - q);
        int far = 0;
        for (int lane = 0; lane < FF_LOW_LANES; lane++) { /* the last panel repeats its last query */
            const int64_t at = query + q + ff_min(lane, lanes - 1);
            const coefficients c = centred_query(job->points, job->queries, at, s->row);
            for (int k = 0; k < size; k++) {
                s->e[k * FF_LOW_LANES + lane] = c.is_far ? 2.0 * s->row[k] : s->row[k];
                s->origin[k * FF_LOW_LANES + lane] = c.is_far ? 0.0 : s->row[k];
            }
            const int64_t without = left_out(job, at, start, stop);
            s->without[lane] = without < 0 ? -1 : without - start;
            s->beta[lane] = c.beta;
            s->precision[lane] = c.precision;
            s->base[lane] = c.base;
            s->variance[lane] = c.variance;
            s->slope[lane] = c.slope;
            s->gain_constant[lane] = c.gain_constant;
            s->gain_slope[lane] = c.gain_slope;
            s->excess[lane] = c.excess;
            far |= c.is_far;
        }
        low_run(s, stop - start, s->sum + q * (job->pointwise ? 2 * size + 1 : size), s->partials + q, lanes, size, far,
                narrow, job->want_spread, job->pointwise);
    }
}

static void low_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    (void)stop;
    low_scratch *s = scratch;
    const int64_t rows = ff_rows(job);
    for (int64_t q = 0; q < count; q++) {
        double keep, add;
        merge_scalars(&job->state, query + q, s->partials + q, start == 0, &keep, &add);
        const int64_t panel = q / FF_LOW_LANES * rows * FF_LOW_LANES + q % FF_LOW_LANES;
        double *to = job->state.sum + query / FF_LOW_LANES * rows * FF_LOW_LANES + panel;
        const double *from = s->sum + panel;
        for (int64_t k = 0; k < rows * FF_LOW_LANES; k += FF_LOW_LANES)
            to[k] = (start == 0 ? 0.0 : keep * to[k]) + add * from[k];
    }
}
#endif

static void NAME_S(low_begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch) {
    low_scratch *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size;
    for (int64_t j = start; j < stop; j++) {
        const FF_STORED *row = NAME_S(row)(points, j);
        for (int64_t k = 0; k < size; k++) s->point[(j - start) * size + k] = (double)VALUE(row[k]) - points->centre[k];
        s->log_mass[j - start] = log_mass(points, j);
    }
    if (!job->pointwise) return;
    s->one_time = job->queries->stride == 0;
    s->widest = points->widest[0];
    memcpy(s->own, points->data.variance + start, (size_t)(stop - start) * sizeof *s->own);
    if (!s->one_time) return;
    const coefficients c = query_numbers(points, job->queries, 0);
    for (int64_t j = start; j < stop; j++) {
        const double variance = own_variance(points, &c, j);
        s->inverse[j - start] = 1.0 / variance;
        s->gain[j - start] = own_gain(points, &c, j);
        s->log_mass[j - start] -= 0.5 * (double)size * log(variance);
    }
}
