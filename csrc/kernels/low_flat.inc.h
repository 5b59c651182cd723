/* Few dimensions, float32 queries to which no point is very near or very far: of the logits log2 C_j + f (2 y.mu' - |mu'|^2),
   short of the query's own f |y|^2, with f = beta^2 / (2 D ln 2) and y = e / beta, no term is beyond FLAT_LIMIT. Then they
   need none of the residuals of low_narrow.inc.h to round as little, and 2 to their power is a float32 as it is: no largest
   logit is looked for, and each pair takes two thirds of the instructions. So it is with typical queries of a linear
   schedule up to about t = 0.3. It hangs on the query alone, not on the lanes beside. For points of equal masses that share
   one variance. */

/* On 30,000 queries of random small problems the errors of 8 were those of low_narrow.inc.h, the largest 0.1 % among them
   (where mean and query nearly cancel) included; those of 16 and 32 were twice as large. */
#define FLAT_LIMIT 8.0

typedef struct {
    float slope[LOW_SIZE * NARROW_LANES]; /* 2 f y, [k][lane] */
    float factor[NARROW_LANES];           /* -f */
    double base[NARROW_LANES];            /* what the logits leave out */
    int64_t without[NARROW_LANES];
    float weight[NARROW_TILE * NARROW_LANES], logit[NARROW_TILE * NARROW_LANES]; /* logits for the spread alone */
    /* sums over the chunk */
    double total[NARROW_LANES], first[NARROW_LANES], second[NARROW_LANES], sum[LOW_SIZE * NARROW_LANES];
} low_flat;

/* mu' of a chunk, [point][dimension, filled up as in low_narrow_tile], and |mu'|^2; times -f, if that is one for all queries */
typedef struct {
    float offset[LOW_CHUNK * LOW_SIZE], square[LOW_CHUNK];
} low_flat_tile;

static double low_flat_factor(const coefficients *c) {
    const double to_base_2 = 1.4426950408889634;
    return to_base_2 * c->precision * c->beta * c->beta;
}

static int low_may_be_flat(const ff_job *job) { return !job->pointwise && !job->points->data.log_mass; }

/* The points of a chunk from their mu' in float64, [point][dimension]. */
static void low_flat_begin(const ff_job *job, int64_t start, int64_t stop, const double *point, double *e, low_flat_tile *tile) {
    const ff_points *points = job->points;
    const int64_t size = points->size, padded = low_narrow_padded((int)size);
    const coefficients c = centred_query(points, job->queries, 0, e);
    const float factor = job->queries->stride == 0 ? (float)-low_flat_factor(&c) : 1.0f;
    for (int64_t j = 0; j < stop - start; j++) {
        float *offset = tile->offset + j * padded;
        for (int64_t k = 0; k < padded; k++) offset[k] = k < size ? (float)point[j * size + k] : 0.0f;
        tile->square[j] = factor * (float)points->square[start + j];
    }
}

/* Make all lanes idle: their weights are one. */
static void low_flat_clear(low_flat *s) {
    for (int lane = 0; lane < NARROW_LANES; lane++) {
        for (int k = 0; k < LOW_SIZE; k++) s->slope[k * NARROW_LANES + lane] = 0.0f;
        s->factor[lane] = 0.0f;
        s->without[lane] = -1;
    }
}

/* Put a query in a lane, if this file is for it. */
static int low_flat_put(const ff_job *job, low_flat *s, int lane, int64_t query, double *e) {
    if (!low_may_be_flat(job)) return 0;
    const ff_points *points = job->points;
    const coefficients c = centred_query(points, job->queries, query, e);
    const double to_base_2 = 1.4426950408889634, reach = sqrt(points->largest_square);
    const double factor = low_flat_factor(&c), slope = 2.0 * to_base_2 * c.precision * c.beta;
    /* |e| / |beta| alone may be beyond any number */
    if (c.is_far || !(fabs(slope) * c.norm * reach + factor * points->largest_square < FLAT_LIMIT)) return 0;
    const int padded = low_narrow_padded((int)points->size);
    for (int k = 0; k < padded; k++)
        s->slope[k * NARROW_LANES + lane] = k < points->size ? (float)(slope * e[k]) : 0.0f;
    s->factor[lane] = (float)-factor;
    s->base[lane] = points->equal_log_mass - c.precision * c.norm * c.norm;
    s->total[lane] = s->first[lane] = s->second[lane] = 0.0;
    for (int k = 0; k < points->size; k++) s->sum[k * NARROW_LANES + lane] = 0.0;
    return 1;
}

/* Weights of a tile of points, and their sums in `sums`: of p, and for the spread of p l and p^2; they are in float32, but
   sums of short sums. The last four arguments are constants. */
static inline __attribute__((always_inline)) void low_flat_weights(low_flat *s, const low_flat_tile *tile, int64_t from,
                                                                   int64_t count, float sums[3][NARROW_LANES], int one_time,
                                                                   int spread, int size, int halves) {
    f32v factor[2], total[3][2];
    FOR_PAIR {
        factor[h] = PAIR_LOAD(s->factor, h);
        total[0][h] = total[1][h] = total[2][h] = f32_set1(0.0f);
    }
    for (int64_t block = 0; block < count; block += NARROW_SUM) {
        f32v part[3][2];
        FOR_PAIR part[0][h] = part[1][h] = part[2][h] = f32_set1(0.0f);
        for (int64_t j = block; j < ff_min(block + NARROW_SUM, count); j++) {
            const float *offset = tile->offset + (from + j) * size;
            FOR_PAIR {
                f32v logit = f32_set1(tile->square[from + j]);
                if (!one_time) logit = f32_mul(factor[h], logit);
                FF_UNROLL
                for (int k = 0; k < size; k++)
                    logit = f32_fma(f32_set1(offset[k]), PAIR_LOAD(s->slope + k * NARROW_LANES, h), logit);
                const f32v p = f32_exp2_within(logit);
                f32_store(s->weight + j * NARROW_LANES + h * F32_LANES, p);
                part[0][h] = f32_add(part[0][h], p);
                if (!spread) continue;
                f32_store(s->logit + j * NARROW_LANES + h * F32_LANES, logit);
                part[1][h] = f32_fma(p, logit, part[1][h]);
                part[2][h] = f32_fma(p, p, part[2][h]);
            }
        }
        for (int i = 0; i < (spread ? 3 : 1); i++) FOR_PAIR total[i][h] = f32_add(total[i][h], part[i][h]);
    }
    for (int i = 0; i < (spread ? 3 : 1); i++) FOR_PAIR f32_store(sums[i] + h * F32_LANES, total[i][h]);
}

/* sum[k][lane] += sum_j weight_j mu'_jk for `dims` dimensions from `first` on. The last two arguments are constants. */
static inline __attribute__((always_inline)) void low_flat_sums(low_flat *s, const low_flat_tile *tile, int64_t from,
                                                                int64_t count, int padded, int first, int dims, int halves) {
    f32v sum[4][2];
    FF_UNROLL
    for (int k = 0; k < dims; k++) FOR_PAIR sum[k][h] = f32_set1(0.0f);
    for (int64_t j = 0; j < count; j++) {
        const float *offset = tile->offset + (from + j) * padded + first;
        f32v p[2];
        FOR_PAIR p[h] = PAIR_LOAD(s->weight + j * NARROW_LANES, h);
        FF_UNROLL
        for (int k = 0; k < dims; k++) {
            const f32v mu = f32_set1(offset[k]);
            FOR_PAIR sum[k][h] = f32_fma(p[h], mu, sum[k][h]);
        }
    }
    FF_UNROLL
    for (int k = 0; k < dims; k++) FOR_PAIR
            low_narrow_add(s->sum + (first + k) * NARROW_LANES + h * F32_LANES, sum[k][h]);
}

/* Take what queries leave out of a tile off its weights and their sums. */
static void low_flat_leave_out(low_flat *s, int lanes, int64_t from, int64_t count, int spread,
                               float sums[3][NARROW_LANES]) {
    for (int lane = 0; lane < lanes; lane++) {
        const int64_t without = s->without[lane] - from;
        if (without < 0 || without >= count) continue;
        s->weight[without * NARROW_LANES + lane] = 0.0f;
        double rest[3] = {0.0, 0.0, 0.0};
        for (int64_t at = lane; at < count * NARROW_LANES; at += NARROW_LANES) {
            const double p = (double)s->weight[at];
            rest[0] += p;
            if (spread) rest[1] += p * (double)s->logit[at];
            rest[2] += p * p;
        }
        for (int i = 0; i < (spread ? 3 : 1); i++) sums[i][lane] = (float)rest[i];
    }
}

static inline __attribute__((always_inline)) void low_flat_all_sums(low_flat *s, const low_flat_tile *tile, int64_t from,
                                                                    int64_t count, int size, int padded, int halves) {
    int k = 0;
    for (; k + 4 <= size; k += 4) low_flat_sums(s, tile, from, count, padded, k, 4, halves);
    for (; k + 2 <= size; k += 2) low_flat_sums(s, tile, from, count, padded, k, 2, halves);
    if (k < size) low_flat_sums(s, tile, from, count, padded, k, 1, halves);
}

/* A panel of queries over the chunk, of which `halves` have queries. */
static void low_flat_panel(const ff_job *job, low_flat *s, const low_flat_tile *tile, int64_t points, int halves) {
    const int size = (int)job->points->size, padded = low_narrow_padded(size), spread = job->want_spread;
    const int one_time = job->queries->stride == 0, lanes = halves * F32_LANES;
    for (int64_t from = 0; from < points; from += NARROW_TILE) {
        const int64_t count = ff_min(NARROW_TILE, points - from);
        float sums[3][NARROW_LANES];
#define WEIGHTS(n)                                                                          \
    case n:                                                                                 \
        if (halves == 1) KINDS(n, 1);                                                       \
        else KINDS(n, 2);                                                                   \
        break;
#define KINDS(n, halves)                                                                    \
    if (one_time && !spread) low_flat_weights(s, tile, from, count, sums, 1, 0, n, halves); \
    else if (one_time) low_flat_weights(s, tile, from, count, sums, 1, 1, n, halves);       \
    else if (!spread) low_flat_weights(s, tile, from, count, sums, 0, 0, n, halves);        \
    else low_flat_weights(s, tile, from, count, sums, 0, 1, n, halves)
        switch (padded) { NARROW_SIZES(WEIGHTS) }
#undef WEIGHTS
#undef KINDS
        low_flat_leave_out(s, lanes, from, count, spread, sums);
        for (int lane = 0; lane < lanes; lane++) {
            s->total[lane] += (double)sums[0][lane];
            if (!spread) continue;
            s->first[lane] += (double)sums[1][lane];
            s->second[lane] += (double)sums[2][lane];
        }
        if (!job->want_mean) continue;
        if (halves == 1) low_flat_all_sums(s, tile, from, count, size, padded, 1);
        else low_flat_all_sums(s, tile, from, count, size, padded, 2);
    }
}

/* The sums of a lane as a partial, and in rows of p mu'. */
static void low_flat_finish(const ff_job *job, const low_flat *s, int lane, partial *part, double *rows, int64_t stride) {
    *part = (partial){s->base[lane], s->total[lane], s->first[lane] * 0.6931471805599453, s->second[lane], 0.0};
    for (int64_t k = 0; job->want_mean && k < job->points->size; k++) rows[k * stride] = s->sum[k * NARROW_LANES + lane];
}

#undef NARROW_SIZES
