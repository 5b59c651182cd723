/* Few dimensions, float32 queries: the kernel of low.inc.h with float32 lanes, twice as many of them, where residuals in
   float32 are accurate enough. Independent of the storage type.

   What keeps the digits: a query is known as y = (x - alpha m_i - beta offset) / (beta scale), where the points would lie
   that it comes from without noise, whose weights fall with |mu - y|^2 / (2 h^2), h^2 = D / (beta scale)^2. It is split in a
   value `at` of float32, about where the posterior mean of points of one Gaussian would be, and the `rest`, which is some h
   at most. Then d = mu - at is the difference of two float32 values, |mu - y|^2 - |rest|^2 = d . (d + 2 rest) rounds by
   some roundings of h^2, at any time and for any shift of the data, and of less where the rest is far larger than d. And
   the sums of p d round by the distance of points from about their mean. What rounds in a logit is then the logit: lanes whose largest logit of a chunk is beyond LOW_NARROW_LIMIT go
   to float64, as do those of far queries and of numbers outside the range of float32. That hangs on the query and the
   chunk alone, not on the lanes beside. Logits are to base 2. */

enum { NARROW_LANES = 2 * F32_LANES };
/* Points that meet a panel between two sums in float64: enough to make those cheap, few enough that 8 KB of logits stay in
   the first-level cache and that a sum rounds like a short one. */
enum { NARROW_TILE = 128 };
/* Weights that are summed in float32: nearly equal ones round the same way, each time by up to this many times 2^-25. */
enum { NARROW_SUM = 16 };
/* Three roundings of a logit of 32, 32 * 3 * 2^-24 ln 2, are 4e-6 of a weight. */
#define LOW_NARROW_LIMIT 32.0f
#define NARROW_DEAD (-1e37f)

/* How the variances of points enter: one for all, own ones at one time, own ones at a time for each query. */
enum { NARROW_SHARED, NARROW_ONE_TIME, NARROW_EACH_TIME };

typedef struct {
    float at[LOW_SIZE * NARROW_LANES], rest[LOW_SIZE * NARROW_LANES]; /* [k][lane]; twice the rest */
    float rest_square[NARROW_LANES]; /* |rest|^2 */
    float factor[NARROW_LANES]; /* of |mu - y|^2 in the logit; of |mu - y|^2 / D_j at each query's time */
    /* each query's time: with the variance of a point beyond the smallest, D_j over the smallest D is 1 + slope own, and
       gamma_j that D times (gain_constant + gain_slope own) over it */
    float slope[NARROW_LANES], gain_constant[NARROW_LANES], gain_slope[NARROW_LANES];
    double base[NARROW_LANES];   /* what the logits leave out, of it the logit of |rest|^2 */
    double rest_logit[NARROW_LANES];
    double shift[LOW_SIZE * NARROW_LANES]; /* at - centre */
    int wide[NARROW_LANES];      /* goes to float64 */
    int64_t without[NARROW_LANES];
    float logit[NARROW_TILE * NARROW_LANES], inverse[NARROW_TILE * NARROW_LANES];
    /* sums over the chunk */
    double largest[NARROW_LANES], total[NARROW_LANES], first[NARROW_LANES], second[NARROW_LANES], gain[NARROW_LANES];
    double sum[LOW_SIZE * NARROW_LANES], gained[LOW_SIZE * NARROW_LANES];
} low_narrow;

/* The tile: values as stored, and for each point log2 C_j (relative to equal masses) and its variance beyond the smallest;
   or, at one time, all of the logit that does not hang on the query, the smallest D over D_j, D_j over it less 1, and
   gamma_j. */
typedef struct {
    float value[LOW_CHUNK * LOW_SIZE], mass[LOW_CHUNK], own[LOW_CHUNK];
    float inverse[LOW_CHUNK], rise[LOW_CHUNK], gain[LOW_CHUNK];
    double grid[LOW_SIZE]; /* of the largest values: a finer one would round all differences from `at` the same way */
} low_narrow_tile;

static int low_is_narrow(const ff_job *job) {
    const ff_points *points = job->points;
    return job->queries->dtype == FF_FLOAT32 && points->dtype != FF_FLOAT64 && points->largest_square < 1e30 &&
           points->largest_square > 1e-30;
}

static int low_narrow_padded(int size);
static int low_narrow_mode(const ff_job *job) {
    return !job->pointwise ? NARROW_SHARED : job->queries->stride == 0 ? NARROW_ONE_TIME : NARROW_EACH_TIME;
}

/* The numbers of the points of a chunk; their values are filled in by the kernel of their storage type. */
static void low_narrow_begin(const ff_job *job, int64_t start, int64_t stop, low_narrow_tile *tile) {
    const ff_points *points = job->points;
    const double to_base_2 = 1.4426950408889634, size = (double)points->size, reach = sqrt(points->largest_square);
    for (int64_t k = 0; k < points->size; k++) tile->grid[k] = ldexp(1.0, ilogb(fabs(points->centre[k]) + reach) - 23);
    const int one_time = low_narrow_mode(job) == NARROW_ONE_TIME;
    const coefficients c = query_numbers(points, job->queries, 0);
    const double narrowest = job->pointwise ? c.variance + c.slope * points->narrowest : 1.0;
    for (int64_t j = start; j < stop; j++) {
        double mass = points->data.log_mass ? points->data.log_mass[j] - points->equal_log_mass : 0.0;
        const double own = job->pointwise ? points->data.variance[j] - points->narrowest : 0.0;
        if (one_time) {
            const double variance = own_variance(points, &c, j);
            mass -= 0.5 * size * log(variance / narrowest);
            tile->inverse[j - start] = (float)(narrowest / variance);
            tile->rise[j - start] = (float)(c.slope * own / narrowest);
            tile->gain[j - start] = (float)own_gain(points, &c, j);
        }
        tile->mass[j - start] = (float)fmax(mass * to_base_2, NARROW_DEAD);
        tile->own[j - start] = (float)own;
    }
}

/* Put a query in a lane. */
static void low_narrow_query(const ff_job *job, low_narrow *s, const low_narrow_tile *tile, int lane, int64_t query,
                             double *e) {
    const ff_points *points = job->points;
    const int64_t size = points->size;
    const int mode = low_narrow_mode(job);
    const coefficients c = centred_query(points, job->queries, query, e);
    const double to_base_2 = 1.4426950408889634;
    const double narrowest = c.variance + (job->pointwise ? c.slope * points->narrowest : 0.0);
    const double widest = c.variance + (job->pointwise ? c.slope * points->widest[0] : 0.0);
    const double factor = 0.5 * to_base_2 * c.beta * c.beta / narrowest;
    int wide = c.is_far || !(factor < 1e30);
    double furthest = 0.0, rest_square = 0.0;
    const double own = points->mean_square / (double)size, share = own / (own + narrowest / (c.beta * c.beta));
    for (int64_t k = 0; k < size; k++) {
        const double y = c.beta == 0.0 ? 0.0 : e[k] / c.beta; /* from the centre */
        const float at = (float)(tile->grid[k] * rint((points->centre[k] + share * y) / tile->grid[k]));
        furthest = fmax(furthest, fabs(y));
        s->at[k * NARROW_LANES + lane] = at;
        s->shift[k * NARROW_LANES + lane] = (double)at - points->centre[k];
        const double rest = s->shift[k * NARROW_LANES + lane] - y;
        s->rest[k * NARROW_LANES + lane] = (float)(2.0 * rest);
        rest_square += rest * rest;
    }
    for (int64_t k = size; k < low_narrow_padded((int)size); k++)
        s->at[k * NARROW_LANES + lane] = s->rest[k * NARROW_LANES + lane] = 0.0f;
    wide |= !(furthest < 1e15 && widest < 1e30 * narrowest);
    s->factor[lane] = wide ? 0.0f : (float)factor;
    if (mode == NARROW_EACH_TIME) {
        /* (D_j / narrowest)^(size/2) is multiplied in after the exponential: it must not undo what that has left. */
        wide |= job->want_spread || !(0.5 * (double)size * log2(widest / narrowest) < 40.0);
        s->slope[lane] = (float)(c.slope / narrowest);
        s->gain_constant[lane] = (float)((c.gain_constant + c.gain_slope * points->narrowest) / narrowest);
        s->gain_slope[lane] = (float)(c.gain_slope / narrowest);
    }
    s->rest_square[lane] = (float)rest_square;
    s->rest_logit[lane] = factor * rest_square;
    s->base[lane] = points->equal_log_mass - (job->pointwise ? 0.5 * (double)size * log(narrowest) : 0.0) -
                    0.6931471805599453 * s->rest_logit[lane];
    /* All points are at one distance then, which y does not tell. */
    if (c.beta == 0.0) {
        wide |= job->pointwise;
        s->base[lane] -= c.precision * c.norm * c.norm;
    }
    s->wide[lane] = wide;
    s->largest[lane] = NARROW_DEAD;
    s->total[lane] = s->first[lane] = s->second[lane] = s->gain[lane] = 0.0;
    for (int64_t k = 0; k < size; k++) s->sum[k * NARROW_LANES + lane] = s->gained[k * NARROW_LANES + lane] = 0.0;
}

#define PAIR_LOAD(p, h) f32_load((p) + (h) * F32_LANES)

/* x^(size/2) for 0 < x <= 1; `two` tells as a constant that size is 2 */
static inline __attribute__((always_inline)) f32v f32_half_power(f32v x, int size, int two) {
    if (two) return x;
    f32v power = size % 2 ? f32_sqrt(x) : f32_set1(1.0f);
    for (int left = size / 2; left; left /= 2) {
        if (left % 2) power = f32_mul(power, x);
        x = f32_mul(x, x);
    }
    return power;
}

/* Logits of a tile of points; at each query's time short of the power of D_j, with narrowest / D_j kept. */
static inline __attribute__((always_inline)) void low_narrow_logits(low_narrow *s, const low_narrow_tile *tile,
                                                                    int64_t from, int64_t count, int size, int mode,
                                                                    int halves, float *largest) {
    f32v most[2], factor[2];
    FOR_PAIR {
        most[h] = f32_set1(NARROW_DEAD);
        factor[h] = PAIR_LOAD(s->factor, h);
    }
    f32v at[LOW_SIZE][2], rest[LOW_SIZE][2]; /* by themselves: the compiler takes stores of logits to change them */
    FF_UNROLL
    for (int k = 0; k < size; k++) FOR_PAIR {
            at[k][h] = PAIR_LOAD(s->at + k * NARROW_LANES, h);
            rest[k][h] = PAIR_LOAD(s->rest + k * NARROW_LANES, h);
        }
    for (int64_t j = 0; j < count; j++) {
        const float *value = tile->value + (from + j) * size;
        f32v distance[2];
        FOR_PAIR distance[h] = f32_set1(0.0f);
        FF_UNROLL
        for (int k = 0; k < size; k++) {
            const f32v mu = f32_set1(value[k]);
            FOR_PAIR {
                const f32v d = f32_sub(mu, at[k][h]);
                distance[h] = f32_fma(d, f32_add(d, rest[k][h]), distance[h]);
            }
        }
        const f32v mass = f32_set1(tile->mass[from + j]), own = f32_set1(tile->own[from + j]);
        FOR_PAIR {
            /* (|d + rest|^2 / (1 + rise) - |rest|^2), of which |rest|^2 is that of the query alone */
            f32v scaled = distance[h];
            if (mode != NARROW_SHARED) {
                const f32v rise = mode == NARROW_ONE_TIME ? f32_set1(tile->rise[from + j])
                                                          : f32_mul(PAIR_LOAD(s->slope, h), own);
                f32v inverse = f32_set1(tile->inverse[from + j]);
                if (mode == NARROW_EACH_TIME) {
                    inverse = f32_div(f32_set1(1.0f), f32_add(f32_set1(1.0f), rise));
                    f32_store(s->inverse + j * NARROW_LANES + h * F32_LANES, inverse);
                }
                scaled = f32_mul(f32_fnma(rise, PAIR_LOAD(s->rest_square, h), scaled), inverse);
            }
            const f32v logit = f32_fnma(factor[h], scaled, mass);
            f32_store(s->logit + j * NARROW_LANES + h * F32_LANES, logit);
            most[h] = f32_max(most[h], logit);
        }
    }
    FOR_PAIR f32_store(largest + h * F32_LANES, most[h]);
}

/* to += v, in float64 */
static inline void low_narrow_add(double *to, f32v v) {
    f64_store(to, f64_add(f64_load(to), f64_from_low(v)));
    f64_store(to + F64_LANES, f64_add(f64_load(to + F64_LANES), f64_from_high(v)));
}

/* From logits to weights, in place, and their sums; where variances differ, weights times gamma_j take the place of what
   `inverse` held. The last four arguments are constants in the calls. */
static inline __attribute__((always_inline)) void low_narrow_weights(low_narrow *s, const low_narrow_tile *tile,
                                                                     int64_t from, int64_t count, int size,
                                                                     const float *largest, int mode, int spread,
                                                                     int two, int halves) {
    f32v most[2], constant[2], slope[2];
    FOR_PAIR {
        most[h] = PAIR_LOAD(largest, h);
        constant[h] = PAIR_LOAD(s->gain_constant, h);
        slope[h] = PAIR_LOAD(s->gain_slope, h);
    }
    for (int64_t block = 0; block < count; block += NARROW_SUM) {
        f32v total[2], first[2], second[2], gain[2];
        FOR_PAIR total[h] = first[h] = second[h] = gain[h] = f32_set1(0.0f);
        const int64_t stop = ff_min(block + NARROW_SUM, count);
        for (int64_t j = block; j < stop; j++) FOR_PAIR {
            const int64_t at = j * NARROW_LANES + h * F32_LANES;
            const f32v below = f32_sub(f32_load(s->logit + at), most[h]);
            f32v p = f32_exp2(below), gamma;
            if (mode == NARROW_EACH_TIME) {
                const f32v inverse = f32_load(s->inverse + at);
                p = f32_mul(p, f32_half_power(inverse, size, two));
                gamma = f32_mul(f32_fma(slope[h], f32_set1(tile->own[from + j]), constant[h]), inverse);
            } else if (mode == NARROW_ONE_TIME) {
                gamma = f32_set1(tile->gain[from + j]);
            }
            f32_store(s->logit + at, p);
            total[h] = f32_add(total[h], p);
            if (mode != NARROW_SHARED) {
                const f32v gained = f32_mul(p, gamma);
                f32_store(s->inverse + at, gained);
                gain[h] = f32_add(gain[h], gained);
            }
            if (spread) {
                first[h] = f32_fma(p, f32_max(below, f32_set1(-1e4f)), first[h]);
                second[h] = f32_fma(p, p, second[h]);
            }
        }
        FOR_PAIR {
            low_narrow_add(s->total + h * F32_LANES, total[h]);
            if (spread) low_narrow_add(s->first + h * F32_LANES, first[h]);
            if (spread) low_narrow_add(s->second + h * F32_LANES, second[h]);
            if (mode != NARROW_SHARED) low_narrow_add(s->gain + h * F32_LANES, gain[h]);
        }
    }
}

/* sum[k][lane] += sum_j weight_j (mu_jk - at_k) for `dims` dimensions from `first` on, and where variances differ the same
   with the weights times gamma_j. The last three arguments are constants. */
static inline __attribute__((always_inline)) void low_narrow_sums(low_narrow *s, const low_narrow_tile *tile, int64_t from,
                                                                  int64_t count, int padded, int first, int dims,
                                                                  int differ, int halves) {
    f32v sum[4][2], gained[4][2], at[4][2];
    FF_UNROLL
    for (int k = 0; k < dims; k++) FOR_PAIR {
            sum[k][h] = gained[k][h] = f32_set1(0.0f);
            at[k][h] = PAIR_LOAD(s->at + (first + k) * NARROW_LANES, h);
        }
    for (int64_t j = 0; j < count; j++) {
        const float *value = tile->value + (from + j) * padded + first;
        const float *p = s->logit + j * NARROW_LANES, *g = s->inverse + j * NARROW_LANES;
        FF_UNROLL
        for (int k = 0; k < dims; k++) {
            const f32v mu = f32_set1(value[k]);
            FOR_PAIR {
                const f32v offset = f32_sub(mu, at[k][h]);
                sum[k][h] = f32_fma(PAIR_LOAD(p, h), offset, sum[k][h]);
                if (differ) gained[k][h] = f32_fma(PAIR_LOAD(g, h), offset, gained[k][h]);
            }
        }
    }
    FF_UNROLL
    for (int k = 0; k < dims; k++) FOR_PAIR {
            const int64_t to = (first + k) * NARROW_LANES + h * F32_LANES;
            low_narrow_add(s->sum + to, sum[k][h]);
            if (differ) low_narrow_add(s->gained + to, gained[k][h]);
        }
}
static inline __attribute__((always_inline)) void low_narrow_all_sums(low_narrow *s, const low_narrow_tile *tile,
                                                                      int64_t from, int64_t count, int size, int padded,
                                                                      int differ, int halves) {
    int k = 0;
    if (!differ)
        for (; k + 4 <= size; k += 4) low_narrow_sums(s, tile, from, count, padded, k, 4, differ, halves);
    for (; k + 2 <= size; k += 2) low_narrow_sums(s, tile, from, count, padded, k, 2, differ, halves);
    if (k < size) low_narrow_sums(s, tile, from, count, padded, k, 1, differ, halves);
}

/* Leave out what queries leave out of a tile. */
static void low_narrow_leave_out(low_narrow *s, int lanes, int64_t from, int64_t count, float *largest) {
    for (int lane = 0; lane < lanes; lane++) {
        const int64_t without = s->without[lane] - from;
        if (without < 0 || without >= count) continue;
        s->logit[without * NARROW_LANES + lane] = largest[lane] = NARROW_DEAD;
        for (int64_t j = 0; j < count; j++) largest[lane] = fmaxf(largest[lane], s->logit[j * NARROW_LANES + lane]);
    }
}

/* Raise the reference of the sums to the largest logit of a tile. */
static void low_narrow_raise(low_narrow *s, int lanes, int rows, float *largest) {
    for (int lane = 0; lane < lanes; lane++) {
        if ((double)largest[lane] <= s->largest[lane]) {
            largest[lane] = (float)s->largest[lane];
            continue;
        }
        const double shift = s->largest[lane] - (double)largest[lane];
        const double keep = s->total[lane] > 0.0 ? exp2(shift) : 0.0;
        s->largest[lane] = (double)largest[lane];
        s->first[lane] = keep == 0.0 ? 0.0 : keep * (s->first[lane] + s->total[lane] * shift);
        s->second[lane] *= keep * keep;
        s->total[lane] *= keep;
        s->gain[lane] *= keep;
        for (int k = 0; k < rows; k++) {
            s->sum[k * NARROW_LANES + lane] *= keep;
            s->gained[k * NARROW_LANES + lane] *= keep;
        }
    }
}

/* Logits have code for each of some sizes, so that the loop over the dimensions unrolls; points and queries of others are
   filled up with zeros. */
#define NARROW_SIZES(X) X(1) X(2) X(3) X(4) X(6) X(8) X(12) X(16)
#define NARROW_LOGITS(n)                                                                                             \
    static void low_narrow_logits_##n(low_narrow *s, const low_narrow_tile *tile, int64_t from, int64_t count, int mode, \
                                      int halves, float *largest) {                                                  \
        if (halves == 1) NARROW_MODES(n, 1);                                                                         \
        else NARROW_MODES(n, 2);                                                                                     \
    }
#define NARROW_MODES(n, halves)                                                                                       \
    if (mode == NARROW_SHARED) low_narrow_logits(s, tile, from, count, n, NARROW_SHARED, halves, largest);            \
    else if (mode == NARROW_ONE_TIME) low_narrow_logits(s, tile, from, count, n, NARROW_ONE_TIME, halves, largest);   \
    else low_narrow_logits(s, tile, from, count, n, NARROW_EACH_TIME, halves, largest)
NARROW_SIZES(NARROW_LOGITS)
#undef NARROW_LOGITS
#undef NARROW_MODES
typedef void low_narrow_logits_of(low_narrow *, const low_narrow_tile *, int64_t, int64_t, int, int, float *);
static int low_narrow_padded(int size) {
#define NARROW_FITS(n) if (size <= n) return n;
    NARROW_SIZES(NARROW_FITS)
#undef NARROW_FITS
    return LOW_SIZE;
}
static low_narrow_logits_of *low_narrow_logits_for(int size) {
#define NARROW_FITS(n) if (size <= n) return low_narrow_logits_##n;
    NARROW_SIZES(NARROW_FITS)
#undef NARROW_FITS
    return low_narrow_logits_16;
}

/* Weights and sums of a tile, from its logits. The last argument is a constant. */
static inline __attribute__((always_inline)) void low_narrow_finish_tile(const ff_job *job, low_narrow *s,
                                                                         const low_narrow_tile *tile, int64_t from,
                                                                         int64_t count, const float *largest, int halves) {
    const int size = (int)job->points->size, padded = low_narrow_padded(size), mode = low_narrow_mode(job);
#define WEIGHTS(mode, spread, two) low_narrow_weights(s, tile, from, count, size, largest, mode, spread, two, halves)
    if (mode == NARROW_EACH_TIME && size == 2) WEIGHTS(NARROW_EACH_TIME, 0, 1);
    else if (mode == NARROW_EACH_TIME) WEIGHTS(NARROW_EACH_TIME, 0, 0);
    else if (mode == NARROW_ONE_TIME && job->want_spread) WEIGHTS(NARROW_ONE_TIME, 1, 0);
    else if (mode == NARROW_ONE_TIME) WEIGHTS(NARROW_ONE_TIME, 0, 0);
    else if (job->want_spread) WEIGHTS(NARROW_SHARED, 1, 0);
    else WEIGHTS(NARROW_SHARED, 0, 0);
#undef WEIGHTS
    if (!job->want_mean) return;
    if (mode == NARROW_SHARED) low_narrow_all_sums(s, tile, from, count, size, padded, 0, halves);
    else low_narrow_all_sums(s, tile, from, count, size, padded, 1, halves);
}

/* A panel of queries over the chunk, of which `halves` have queries. */
static void low_narrow_panel(const ff_job *job, low_narrow *s, const low_narrow_tile *tile, int64_t points, int halves) {
    const int size = (int)job->points->size, mode = low_narrow_mode(job), lanes = halves * F32_LANES;
    low_narrow_logits_of *const logits = low_narrow_logits_for(size);
    for (int64_t from = 0; from < points; from += NARROW_TILE) {
        const int64_t count = ff_min(NARROW_TILE, points - from);
        float largest[NARROW_LANES];
        logits(s, tile, from, count, mode, halves, largest);
        low_narrow_leave_out(s, lanes, from, count, largest);
        low_narrow_raise(s, lanes, size, largest);
        if (halves == 1) low_narrow_finish_tile(job, s, tile, from, count, largest, 1);
        else low_narrow_finish_tile(job, s, tile, from, count, largest, 2);
    }
}

/* The sums of a lane as a partial, and in rows of p mu', p gamma mu' and p gamma. Whether they are to be trusted. */
static int low_narrow_finish(const ff_job *job, const low_narrow *s, int lane, partial *part, double *rows,
                             int64_t stride) {
    const int64_t size = job->points->size;
    const double logit = fabs(s->largest[lane] - s->rest_logit[lane]) + s->rest_logit[lane];
    if (s->wide[lane] || !(logit < LOW_NARROW_LIMIT && s->total[lane] > 0.0 && s->total[lane] < INFINITY)) return 0;
    *part = (partial){s->largest[lane] * 0.6931471805599453 + s->base[lane], s->total[lane],
                      s->first[lane] * 0.6931471805599453, s->second[lane], 0.0};
    if (!job->want_mean) return 1;
    for (int64_t k = 0; k < size; k++) {
        const int64_t at = k * NARROW_LANES + lane;
        rows[k * stride] = s->sum[at] + s->shift[at] * s->total[lane];
        if (job->pointwise) rows[(size + k) * stride] = s->gained[at] + s->shift[at] * s->gain[lane];
    }
    if (job->pointwise) rows[2 * size * stride] = s->gain[lane];
    return 1;
}
