/* Few dimensions, any number of queries: bound by the exponential. Lanes hold queries, points are broadcast, and all
   arithmetic is in float64 by residuals, so no accuracy is lost at any time; low_narrow.inc.h does the same in float32 where
   that is accurate enough. Included once for each storage type. */

#ifndef FF_LOW_LANES
#define FF_LOW_LANES (2 * F64_LANES)
enum { LOW_SIZE = 16, LOW_BLOCK = 32 * FF_LOW_LANES };
/* Points of a chunk: enough that the cost of setting up and merging a query is small beside that of a chunk; and of what
   meets a panel in float64 at a time, so that points and logits stay in the first-level cache at size 2. */
enum { LOW_CHUNK = 2048, LOW_TILE = 512 };
#include "low_narrow.inc.h"
#include "low_flat.inc.h"

/* Scratch: the tile of points, the logits of a panel, the partial sums of a block. */
typedef struct {
    double point[LOW_CHUNK * LOW_SIZE];
    double log_mass[LOW_CHUNK];
    /* Points with variances of their own: theirs, and where all queries share one time 1/D_j, gamma_j, and log_mass with
       -(size/2) log D_j in it. Where they do not, gamma_j of a panel. */
    double own[LOW_CHUNK], inverse[LOW_CHUNK], gain[LOW_CHUNK], gains[LOW_TILE * FF_LOW_LANES];
    double logit[LOW_TILE * FF_LOW_LANES];
    double sum[LOW_BLOCK * (2 * LOW_SIZE + 1)]; /* panels of [row][lane] */
    double part[FF_LOW_LANES * (2 * LOW_SIZE + 1)], exact[FF_LOW_LANES * (2 * LOW_SIZE + 1)]; /* one panel */
    double e[LOW_SIZE * FF_LOW_LANES], origin[LOW_SIZE * FF_LOW_LANES], row[LOW_SIZE];
    double beta[FF_LOW_LANES], precision[FF_LOW_LANES], base[FF_LOW_LANES];
    double variance[FF_LOW_LANES], slope[FF_LOW_LANES], gain_constant[FF_LOW_LANES], gain_slope[FF_LOW_LANES];
    double excess[FF_LOW_LANES], per_narrowest[FF_LOW_LANES], widest;
    int one_time, quick_log;
    int64_t without[FF_LOW_LANES]; /* place in the tile of the point that a query leaves out, or -1 */
    partial partials[LOW_BLOCK];
    low_narrow narrow;
    low_narrow_tile tile;
    low_flat flat;
    low_flat_tile flat_tile;
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
static inline void low_exp(const f64v below[2], int narrow, int halves, f64v p[2]) {
    if (narrow) {
        const f32v e = f32_exp(f32_from_f64(below[0], below[halves - 1]));
        p[0] = f64_from_low(e);
        p[1] = f64_from_high(e);
    } else {
        FOR_PAIR p[h] = f64_exp(below[h]);
    }
}

/* Strike the points that queries leave out off the logits of a panel, and off the largest. */
static inline void low_leave_out(const int64_t *without, int64_t from, int64_t points, double *logits,
                                 f64v largest[2]) {
    for (int lane = 0; lane < FF_LOW_LANES; lane++) {
        if (without[lane] < from || without[lane] >= from + points) continue;
        double lanes[FF_LOW_LANES];
        f64_store(lanes, largest[0]);
        f64_store(lanes + F64_LANES, largest[1]);
        logits[(without[lane] - from) * FF_LOW_LANES + lane] = lanes[lane] = FF_LEFT_OUT;
        for (int64_t j = 0; j < points; j++) lanes[lane] = fmax(lanes[lane], logits[j * FF_LOW_LANES + lane]);
        largest[0] = f64_load(lanes);
        largest[1] = f64_load(lanes + F64_LANES);
    }
}

/* exact_logit for the half h of a panel, and gamma_j. */
static inline f64v low_own_logit(low_scratch *s, int64_t from, int64_t place, int h, int size, f64v distance) {
    const int64_t j = from + place;
    const int at = h * F64_LANES;
    const f64v slope = f64_load(s->slope + at), own = f64_set1(s->own[j]), half = f64_set1(0.5);
    const f64v beyond = f64_mul(f64_mul(f64_load(s->excess + at), slope), f64_set1(s->widest - s->own[j]));
    distance = f64_mul(half, f64_add(distance, beyond));
    if (s->one_time) return f64_fnma(distance, f64_set1(s->inverse[j]), f64_set1(s->log_mass[j]));
    f64v inverse, log_variance;
    const f64v variance = f64_fma(slope, own, f64_load(s->variance + at));
    if (s->quick_log) { /* off by a few 1e-8 of itself, and by 8 times that in the logit */
        inverse = f64_div(f64_set1(1.0), variance);
        const f64v relative = f64_mul(variance, f64_load(s->per_narrowest + at));
        log_variance = f64_from_low(f32_log(f32_from_f64(relative, relative)));
    } else {
        log_variance = f64_log_inverse(variance, 21, &inverse);
    }
    const f64v gain = f64_fma(f64_load(s->gain_slope + at), own, f64_load(s->gain_constant + at));
    f64_store(s->gains + place * FF_LOW_LANES + at, f64_mul(gain, inverse));
    const f64v mass = f64_fnma(f64_set1(0.5 * size), log_variance, f64_set1(s->log_mass[j]));
    return f64_fnma(distance, inverse, mass);
}

/* One panel of queries over the tile. The last six arguments are constants in the calls below, so that loops over
   the dimensions unroll and branches vanish. */
static inline __attribute__((always_inline)) void low_panel(low_scratch *s, int64_t from, int64_t points, double *sum,
                                                            partial *partials, int lanes, int size, int far,
                                                            int narrow, int spread, int pointwise, int halves) {
    enum { L = F64_LANES };
    double *logits = s->logit;
    f64v e[2 * LOW_SIZE] = {f64_set1(0.0)}, origin[2 * LOW_SIZE] = {f64_set1(0.0)}, beta[2], precision[2], largest[2];
    FF_UNROLL
    for (int k = 0; k < size; k++) {
        FOR_PAIR {
            e[2 * k + h] = f64_load(s->e + k * FF_LOW_LANES + h * L);
            if (far) origin[2 * k + h] = f64_load(s->origin + k * FF_LOW_LANES + h * L);
        }
    }
    FOR_PAIR {
        beta[h] = f64_load(s->beta + h * L);
        precision[h] = f64_load(s->precision + h * L);
    }
    largest[0] = largest[1] = f64_set1(-1.7e308);
    for (int64_t j = 0; j < points; j++) {
        const double *point = s->point + (from + j) * size;
        f64v distance[2] = {f64_set1(0.0), f64_set1(0.0)};
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f64v mu = f64_set1(point[k]);
            FOR_PAIR {
                const f64v r = f64_fnma(beta[h], mu, e[2 * k + h]);
                distance[h] = f64_fma(r, far ? f64_fnma(beta[h], mu, origin[2 * k + h]) : r, distance[h]);
            }
        }
        const f64v mass = f64_set1(s->log_mass[from + j]);
        FOR_PAIR {
            const f64v logit = pointwise ? low_own_logit(s, from, j, h, size, distance[h])
                                         : f64_fnma(precision[h], distance[h], mass);
            f64_store(logits + j * FF_LOW_LANES + h * L, logit);
            largest[h] = f64_max(largest[h], logit);
        }
    }
    low_leave_out(s->without, from, points, logits, largest);
    f64v total[2], first[2], second[2], gain[2], mean[2 * LOW_SIZE] = {f64_set1(0.0)}, gained[2 * LOW_SIZE];
    FF_UNROLL
    for (int h = 0; h < 2; h++) total[h] = first[h] = second[h] = gain[h] = f64_set1(0.0);
    FF_UNROLL
    for (int k = 0; k < 2 * size; k++) mean[k] = gained[k] = f64_set1(0.0);
    for (int64_t j = 0; j < points; j++) {
        const double *point = s->point + (from + j) * size;
        f64v below[2], p[2];
        FOR_PAIR {
            below[h] = f64_sub(f64_load(logits + j * FF_LOW_LANES + h * L), largest[h]);
            /* the bound, where weights are zero, keeps the products finite */
            if (spread) below[h] = f64_max(below[h], f64_set1(-1e4));
        }
        low_exp(below, narrow, halves, p);
        FOR_PAIR {
            total[h] = f64_add(total[h], p[h]);
            if (spread) {
                first[h] = f64_fma(p[h], below[h], first[h]);
                second[h] = f64_fma(p[h], p[h], second[h]);
            }
        }
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f64v mu = f64_set1(point[k]);
            FOR_PAIR mean[2 * k + h] = f64_fma(p[h], mu, mean[2 * k + h]);
        }
        if (!pointwise) continue;
        FOR_PAIR {
            const f64v own = s->one_time ? f64_set1(s->gain[from + j]) : f64_load(s->gains + j * FF_LOW_LANES + h * L);
            p[h] = f64_mul(p[h], own);
            gain[h] = f64_add(gain[h], p[h]);
        }
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f64v mu = f64_set1(point[k]);
            FOR_PAIR gained[2 * k + h] = f64_fma(p[h], mu, gained[2 * k + h]);
        }
    }
    FF_UNROLL
    for (int k = 0; k < size; k++) FOR_PAIR f64_store(sum + (2 * k + h) * L, mean[2 * k + h]);
    if (pointwise) {
        FF_UNROLL
        for (int k = 0; k < size; k++) FOR_PAIR f64_store(sum + (2 * (size + k) + h) * L, gained[2 * k + h]);
        FOR_PAIR f64_store(sum + (4 * size + h) * L, gain[h]);
    }
    double out[4][FF_LOW_LANES];
    FOR_PAIR {
        f64_store(out[0] + h * L, largest[h]);
        f64_store(out[1] + h * L, total[h]);
        f64_store(out[2] + h * L, first[h]);
        f64_store(out[3] + h * L, second[h]);
    }
    for (int lane = 0; lane < lanes; lane++)
        partials[lane] = (partial){out[0][lane], out[1][lane], out[2][lane], out[3][lane], s->base[lane]};
}

/* The common sizes of toy problems, without far queries and spread, get code of their own. */
static inline __attribute__((always_inline)) void low_run_halves(low_scratch *s, int64_t from, int64_t points, double *sum,
                                                                 partial *partials, int lanes, int size, int far, int narrow,
                                                                 int spread, int pointwise, int halves) {
#define LOW_PANEL(size, far, narrow, spread, pointwise) \
    low_panel(s, from, points, sum, partials, lanes, size, far, narrow, spread, pointwise, halves)
#define LOW_CASE(n)                                        \
    if (size == n && !far && !spread) {                    \
        if (pointwise && narrow) LOW_PANEL(n, 0, 1, 0, 1); \
        else if (pointwise) LOW_PANEL(n, 0, 0, 0, 1);      \
        else if (narrow) LOW_PANEL(n, 0, 1, 0, 0);         \
        else LOW_PANEL(n, 0, 0, 0, 0);                     \
        return;                                            \
    }
    LOW_CASE(1)
    LOW_CASE(2)
    LOW_CASE(3)
#undef LOW_CASE
    if (pointwise) LOW_PANEL(size, far, narrow, spread, 1);
    else if (far) LOW_PANEL(size, 1, narrow, spread, 0);
    else LOW_PANEL(size, 0, narrow, spread, 0);
#undef LOW_PANEL
}

/* One panel of queries over the tile, one vector of it or both. */
static void low_run(low_scratch *s, int64_t from, int64_t points, double *sum, partial *partials, int lanes, int size,
                    int far, int narrow, int spread, int pointwise) {
    if (lanes <= F64_LANES) low_run_halves(s, from, points, sum, partials, lanes, size, far, narrow, spread, pointwise, 1);
    else low_run_halves(s, from, points, sum, partials, lanes, size, far, narrow, spread, pointwise, 2);
}

/* The point that a query leaves out, as a place in the tile, or -1. */
static int64_t low_without(const ff_job *job, int64_t query, int64_t start, int64_t stop) {
    const int64_t without = left_out(job, query, start, stop);
    return without < 0 ? -1 : without - start;
}

/* One panel of queries in float64, those listed. */
static void low_wide(const ff_job *job, int64_t start, int64_t stop, const int64_t *queries, int lanes, low_scratch *s,
                     double *sum, partial *partials) {
    const int size = (int)job->points->size, narrow = job->queries->dtype == FF_FLOAT32;
    double shift[FF_LOW_LANES]; /* what the logits of the panel leave out */
    int far = 0;
    s->quick_log = narrow && job->queries->stride != 0 && quick_log(job);
    for (int lane = 0; lane < FF_LOW_LANES; lane++) { /* the last panel repeats its last query */
        const int64_t at = queries[ff_min(lane, lanes - 1)];
        const coefficients c = centred_query(job->points, job->queries, at, s->row);
        for (int k = 0; k < size; k++) {
            s->e[k * FF_LOW_LANES + lane] = c.is_far ? 2.0 * s->row[k] : s->row[k];
            s->origin[k * FF_LOW_LANES + lane] = c.is_far ? 0.0 : s->row[k];
        }
        s->without[lane] = lane < lanes ? low_without(job, at, start, stop) : -1;
        s->beta[lane] = c.beta;
        s->precision[lane] = c.precision;
        const double narrowest = c.variance + c.slope * job->points->narrowest;
        s->per_narrowest[lane] = 1.0 / narrowest;
        s->base[lane] = c.base;
        shift[lane] = s->quick_log ? -0.5 * size * log(narrowest) : 0.0;
        s->variance[lane] = c.variance;
        s->slope[lane] = c.slope;
        s->gain_constant[lane] = c.gain_constant;
        s->gain_slope[lane] = c.gain_slope;
        s->excess[lane] = c.excess;
        far |= c.is_far;
    }
    const int64_t rows = job->pointwise ? 2 * size + 1 : size;
    double of[5][FF_LOW_LANES];
    const ff_state whole = {of[0], of[1], of[2], of[3], of[4], sum};
    for (int64_t from = 0; from < stop - start; from += LOW_TILE) {
        low_run(s, from, ff_min(LOW_TILE, stop - start - from), s->part, partials, lanes, size, far, narrow,
                job->want_spread, job->pointwise);
        for (int lane = 0; lane < lanes; lane++) {
            double keep, add;
            merge_scalars(&whole, lane, partials + lane, from == 0, &keep, &add);
            for (int64_t k = lane; k < rows * FF_LOW_LANES; k += FF_LOW_LANES)
                sum[k] = (from == 0 ? 0.0 : keep * sum[k]) + add * s->part[k];
        }
    }
    for (int lane = 0; lane < lanes; lane++)
        partials[lane] = (partial){of[0][lane] + shift[lane], of[1][lane], of[2][lane], of[3][lane], of[4][lane]};
}

/* Where the sums of a query of the block begin; row k is at k FF_LOW_LANES. */
static double *low_sums(low_scratch *s, int64_t query, int64_t rows) {
    return s->sum + query / FF_LOW_LANES * rows * FF_LOW_LANES + query % FF_LOW_LANES;
}

/* At most NARROW_LANES queries of the block that begins with `query`, those listed, in float32, and those in float64 that
   need it. */
static void low_both(const ff_job *job, int64_t start, int64_t stop, int64_t query, const int64_t *listed, int count,
                     low_scratch *s) {
    const int64_t rows = ff_rows(job);
    const int halves = count > F32_LANES ? 2 : 1;
    for (int lane = 0; lane < halves * F32_LANES; lane++) {
        const int64_t at = query + listed[ff_min(lane, count - 1)];
        low_narrow_query(job, &s->narrow, &s->tile, lane, at, s->row);
        s->narrow.without[lane] = low_without(job, at, start, stop);
    }
    low_narrow_panel(job, &s->narrow, &s->tile, stop - start, halves);
    int64_t wide[NARROW_LANES], at[NARROW_LANES];
    int wides = 0;
    for (int lane = 0; lane < count; lane++) {
        const int64_t q = listed[lane];
        if (!low_narrow_finish(job, &s->narrow, lane, s->partials + q, low_sums(s, q, rows), FF_LOW_LANES)) {
            wide[wides] = q;
            at[wides++] = query + q;
        }
    }
    for (int first = 0; first < wides; first += FF_LOW_LANES) {
        const int lanes = (int)ff_min(FF_LOW_LANES, wides - first);
        partial exact[FF_LOW_LANES];
        low_wide(job, start, stop, at + first, lanes, s, s->exact, exact);
        for (int lane = 0; lane < lanes; lane++) {
            const int64_t q = wide[first + lane];
            double *to = low_sums(s, q, rows);
            s->partials[q] = exact[lane];
            for (int64_t k = 0; job->want_mean && k < rows * FF_LOW_LANES; k += FF_LOW_LANES) to[k] = s->exact[k + lane];
        }
    }
}

/* The flat ones of a panel, those listed. */
static void low_flat_run(const ff_job *job, int64_t points, const int64_t *listed, int count, low_scratch *s) {
    low_flat_panel(job, &s->flat, &s->flat_tile, points, count > F32_LANES ? 2 : 1);
    for (int lane = 0; lane < count; lane++)
        low_flat_finish(job, &s->flat, lane, s->partials + listed[lane], low_sums(s, listed[lane], ff_rows(job)), FF_LOW_LANES);
}

/* A block of float32 queries, first the flat ones, then the others: panels are of one kind, so that neither is computed in
   vain. */
static void low_float32(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, low_scratch *s) {
    int64_t flat[NARROW_LANES], other[LOW_BLOCK];
    int flats = 0, others = 0;
    low_flat_clear(&s->flat); /* some lanes of the last panel may stay idle */
    for (int64_t q = 0; q < count; q++) {
        if (!low_flat_put(job, &s->flat, flats, query + q, s->row)) {
            other[others++] = q;
            continue;
        }
        s->flat.without[flats] = low_without(job, query + q, start, stop);
        flat[flats++] = q;
        if (flats < NARROW_LANES) continue;
        low_flat_run(job, stop - start, flat, flats, s);
        flats = 0;
    }
    if (flats) low_flat_run(job, stop - start, flat, flats, s);
    for (int first = 0; first < others; first += NARROW_LANES)
        low_both(job, start, stop, query, other + first, (int)ff_min(NARROW_LANES, others - first), s);
}

static void low_compute(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    low_scratch *s = scratch;
    if (low_is_narrow(job)) {
        low_float32(job, start, stop, query, count, s);
        return;
    }
    for (int64_t q = 0; q < count; q += FF_LOW_LANES) {
        int64_t queries[FF_LOW_LANES];
        const int lanes = (int)ff_min(FF_LOW_LANES, count - q);
        for (int lane = 0; lane < lanes; lane++) queries[lane] = query + q + lane;
        low_wide(job, start, stop, queries, lanes, s, low_sums(s, q, ff_rows(job)), s->partials + q);
    }
}

static void low_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    (void)stop;
    low_scratch *s = scratch;
    const int64_t rows = ff_rows(job);
    const int64_t first = query % job->block; /* in the block */
    for (int64_t q = 0; q < count; q++) {
        double keep, add;
        merge_scalars(&job->state, query + q, s->partials + first + q, start == 0, &keep, &add);
        const double *from = low_sums(s, first + q, rows);
        double *to = job->state.sum + query / FF_LOW_LANES * rows * FF_LOW_LANES + (from - low_sums(s, first, rows));
        for (int64_t k = 0; k < rows * FF_LOW_LANES; k += FF_LOW_LANES)
            to[k] = (start == 0 ? 0.0 : keep * to[k]) + add * from[k];
    }
}
#endif

static void NAME_S(low_begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch) {
    low_scratch *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size, padded = low_narrow_padded((int)size);
    for (int64_t j = start; j < stop; j++) {
        const FF_STORED *row = NAME_S(row)(points, j);
        float *value = s->tile.value + (j - start) * padded;
        for (int64_t k = 0; k < size; k++) {
            s->point[(j - start) * size + k] = (double)VALUE(row[k]) - points->centre[k];
            value[k] = (float)VALUE(row[k]);
        }
        for (int64_t k = size; k < padded; k++) value[k] = 0.0f;
        s->log_mass[j - start] = log_mass(points, j);
    }
    if (low_is_narrow(job)) {
        low_narrow_begin(job, start, stop, &s->tile);
        if (low_may_be_flat(job)) low_flat_begin(job, start, stop, s->point, s->row, &s->flat_tile);
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
