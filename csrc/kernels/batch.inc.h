/* Many queries of many dimensions: bound by arithmetic. Lanes hold queries. Both products, logits = Y Q and sum = Y^T P,
   are those of products_vector.inc.h, or in an instruction set that has matrices those of products_matrix.inc.h.
   Included once for each pair of storage type FF_S and compute type FF_T. How the logits keep their accuracy is told in
   treatment.inc.h. */

#ifdef FF_MATRIX
#include "products_matrix.inc.h"
#else
#include "products_vector.inc.h"
#endif

#ifndef FF_BATCH
#define FF_BATCH
enum {
    BATCH_EVEN = 16,     /* what a number of chunks above it is a multiple of */
    BATCH_QUICK_LOG = 64 /* dimensions up to which logarithms of variances may be taken in float32 */
};

/* Chunks of one length, in a number that the usual numbers of threads divide, so that all finish together. */
static int64_t batch_chunk(const ff_points *points) {
    const int64_t fewest = ff_ceil_div(points->count, BATCH_TILE * BATCH_TILES);
    int64_t chunks = ff_max(fewest, ff_min(BATCH_EVEN, ff_ceil_div(points->count, BATCH_LEAST)));
    if (chunks > BATCH_EVEN) chunks = ff_ceil_div(chunks, BATCH_EVEN) * BATCH_EVEN;
    return ff_ceil_div(points->count, chunks);
}
/* Points of a tile, of a chunk of `count` points. */
static int64_t batch_tile(int64_t count) {
    return ff_ceil_div(ff_ceil_div(count, ff_ceil_div(count, BATCH_TILE)), BATCH_ROWS) * BATCH_ROWS;
}

/* The points whose share of a query is summed in float64: all of a sharp query, the heavy ones of a smooth query. */
typedef struct {
    int64_t count, *index; /* with room for a tile; no memory is touched where none is kept */
    double *weight;
} batch_kept;

/* The sum of w gamma over the list. */
static double batch_gain(const ff_points *points, const coefficients *c, const batch_kept *kept) {
    double gain = 0.0;
    for (int64_t i = 0; i < kept->count; i++) gain += kept->weight[i] * own_gain(points, c, kept->index[i]);
    return gain;
}

/* Where the other points of a tile weigh more than BATCH_OTHERS beside a heavy one, roundings of their weights, 2.5e-7 of the
   largest at most (treatment.suspect), do not show in a residual. It is below one half: so what sits at a distance sits at
   any smaller one. A logit of a smooth query is off by a quarter of a nat at most, less than BATCH_DOUBT. */
static const double BATCH_OTHERS = 0.25, BATCH_DOUBT = 1.0;

/* Whether the residual of a query at `own` nats from its point, precision |r|^2, is less than twice what the others add to
   it: they lie within 20 nats, so at distances whose squares are at most 20/precision larger. */
static inline int batch_sits(double own, double others) { return own <= 4.0 * others * others * (own + 20.0); }

/* clang-format off */
#define BATCH(s, t) {OF(STATE_LANES, s##_##t), BATCH_PANELS * OF(LANES, t), OF(LANES, t), OF(PACKED, s##_##t), \
                     OF(MERGED, s##_##t), batch_chunk, sum_values, OF(batch_packed_bytes, s##_##t), \
                     OF(batch_scratch_bytes, s##_##t), \
                     OF(batch_pack, s##_##t), NULL, OF(batch_compute, s##_##t), OF(batch_merge, s##_##t), NULL}
/* clang-format on */
#endif

#define LANES NAME_T(LANES)
#define BLOCK (BATCH_PANELS * LANES)

/* Scratch of a worker. Logits are laid out [panel][point][lane]; the sums of p gamma mu' come after those of p mu'. */
typedef struct {
    NAME_ST(batch_value) *tile;
    FF_TT *square, *log_mass, *logit, *sum;
    /* Where points have variances of their own: logits of a panel in float64, [point][lane]; p gamma, as the logits; and
       its total of each query of the block. Where all queries share one time, 1/D_j, gamma_j and log_mass with
       -(size/2) log D_j in it; else gamma_j of a panel. */
    double *wide, *gain_total, *inverse, *gain, *gains, *own_mass;
    FF_TT *gained;
    double *e;
    batch_kept kept[BLOCK];
    int64_t *kept_index;
    double *kept_weight;
    /* Of a tile: its partials. Of the chunk so far: the merged ones, the sums in float64 of the points that were kept, a row
       for each query, and whether there are any. */
    partial partials[BLOCK];
    double largest[BLOCK], total[BLOCK], first[BLOCK], second[BLOCK], base[BLOCK];
    double *whole_gain, *kept_sum;
    unsigned char has_kept[BLOCK];
    unsigned char computed[BATCH_PANELS]; /* whether a panel has sums in `sum`: not all of its queries are sharp */
} NAME_ST(batch_scratch);

static size_t NAME_ST(batch_lay_out)(const ff_points *points, NAME_ST(batch_scratch) * s, char *base) {
    const size_t padded = (size_t)batch_padded(points->size);
    size_t at = ff_aligned(sizeof *s);
#define PART(field, count)                                      \
    s->field = (void *)(base ? base + at : NULL);               \
    at += ff_aligned((size_t)(count) * sizeof *s->field)
    PART(tile, batch_tile_values(points->size));
    PART(square, BATCH_TILE);
    PART(log_mass, BATCH_TILE);
    PART(logit, BATCH_TILE * BLOCK);
    const size_t pointwise = points->data.variance != NULL;
    PART(sum, BLOCK * padded * (1 + pointwise));
    PART(wide, pointwise * BATCH_TILE * LANES);
    PART(gained, pointwise * BATCH_TILE * BLOCK);
    PART(gain_total, pointwise * BLOCK);
    PART(inverse, pointwise * BATCH_TILE);
    PART(gain, pointwise * BATCH_TILE);
    PART(gains, pointwise * BATCH_TILE * LANES);
    PART(own_mass, pointwise * BATCH_TILE);
    PART(e, points->size);
    PART(kept_index, BLOCK * BATCH_TILE);
    PART(kept_weight, BLOCK * BATCH_TILE);
    PART(whole_gain, pointwise * BLOCK);
    PART(kept_sum, BLOCK * points->size * (1 + (int64_t)pointwise));
#undef PART
    return at;
}

static size_t NAME_ST(batch_scratch_bytes)(const ff_points *points, const ff_job *job) {
    (void)job;
    NAME_ST(batch_scratch) s;
    return NAME_ST(batch_lay_out)(points, &s, NULL);
}

/* Packed queries: the treatment records, then q in panels. */
static size_t NAME_ST(batch_records_bytes)(const ff_job *job) {
    return ff_aligned((size_t)(ff_ceil_div(job->queries->count, LANES) * LANES) * sizeof(treatment));
}
static void *NAME_ST(batch_panel)(const ff_job *job, int64_t panel) {
    return (char *)job->packed + NAME_ST(batch_records_bytes)(job) +
           (size_t)panel * NAME_ST(batch_panel_bytes)(job->points->size);
}
static size_t NAME_ST(batch_packed_bytes)(const ff_job *job) {
    const size_t panels = (size_t)ff_ceil_div(job->queries->count, LANES);
    return NAME_ST(batch_records_bytes)(job) + panels * NAME_ST(batch_panel_bytes)(job->points->size);
}

static void NAME_ST(batch_pack)(const ff_job *job, int64_t query, int64_t count, void *scratch) {
    NAME_ST(batch_scratch) *s = scratch;
    NAME_ST(batch_lay_out)(job->points, s, scratch);
    treatment *records = job->packed;
    /* The last queries are packed with the idle lanes of their panel. */
    const int64_t lanes = query + count < job->queries->count ? count : ff_ceil_div(query + count, LANES) * LANES - query;
    for (int64_t q = query; q < query + lanes; q++) {
        double factor = 0.0, unit = 1.0; /* of q, and of what a logit has of it */
        if (q < query + count) {
            const coefficients c = centred_query(job->points, job->queries, q, s->e);
            records[q] = NAME_ST(settle)(job, &c, NAME_ST(roundoff)(job->points->size));
            if (records[q].window != INFINITY)
                factor = job->pointwise ? 1.0 : records[q].sharp ? 1.0 / c.beta : 2.0 * c.precision * c.beta;
            if (job->pointwise) unit = fabs(c.beta) / (c.variance + c.slope * job->points->narrowest);
        } else { /* zero queries of a treatment that costs nothing */
            records[q] = (treatment){.exact = records[q - 1].exact, .scale = 1.0, .suspect = 1.0, .heavy = INFINITY,
                                     .sharp = records[q - 1].sharp};
        }
        const double rounds = NAME_ST(batch_put)(job->points, NAME_ST(batch_panel)(job, q / LANES), q % LANES, factor, s->e);
        records[q].terms = fmax(records[q].terms, 0.5 * unit * rounds * sqrt(job->points->largest_square));
    }
}

/* What a tile is to all panels. */
static void NAME_ST(batch_begin)(const ff_job *job, NAME_ST(batch_scratch) * s, int64_t start, int64_t count) {
    const ff_points *points = job->points;
    const int64_t size = points->size;
    NAME_ST(batch_make_tile)(points, start, count, s->tile);
    for (int64_t j = 0; j < count; j++) {
        s->square[j] = (FF_TT)points->square[start + j];
        s->log_mass[j] = (FF_TT)fmax(log_mass(points, start + j), FF_DEAD_T);
    }
    if (!job->pointwise || job->queries->stride != 0) return;
    const coefficients c = query_numbers(points, job->queries, 0);
    for (int64_t j = 0; j < count; j++) {
        const double variance = own_variance(points, &c, start + j);
        s->inverse[j] = 1.0 / variance;
        s->gain[j] = own_gain(points, &c, start + j);
        s->own_mass[j] = log_mass(points, start + j) - 0.5 * (double)size * log(variance);
    }
}

static FF_TT *NAME_ST(batch_gained_sums)(const ff_job *job, const NAME_ST(batch_scratch) * s) {
    return s->sum + BLOCK * batch_padded(job->points->size);
}

/* Compute exactly what a query may put weight on, the points listed. */
static partial NAME_ST(batch_keep)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *b, int64_t query,
                                   batch_kept *kept) {
    query_offset(job->points, job->queries, query, s->e);
    partial p = {-1.7e308, 0.0, 0.0, 0.0, b->exact.base};
    for (int64_t i = 0; i < kept->count; i++) {
        const int64_t j = kept->index[i];
        const double distance = NAME_S(distance)(job->points, s->e, &b->exact, j);
        kept->weight[i] = exact_logit(job->points, &b->exact, j, distance);
        p.largest = fmax(p.largest, kept->weight[i]);
    }
    int64_t count = 0;
    for (int64_t i = 0; i < kept->count; i++) {
        const double below = kept->weight[i] - p.largest, weight = exp(below);
        if (weight == 0.0) continue;
        p.total += weight;
        p.first += weight * below;
        p.second += weight * weight;
        kept->index[count] = kept->index[i];
        kept->weight[count++] = weight;
    }
    kept->count = count;
    return p;
}
/* Compute again, by residuals, the weights of a panel's smooth queries whose own rounding would be seen. The total takes
   each weight as the sums of the points take it, rounded to the compute type. */
static void NAME_ST(batch_refine)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *records,
                                  int64_t query, int64_t start, int64_t points, int64_t lanes, FF_TT *weight,
                                  const double *largest, partial *partials) {
    enum { L = LANES / 2 };
    FF_TT constant[LANES], factor[LANES], bound[LANES];
    int any = 0;
    for (int lane = 0; lane < LANES; lane++) {
        const treatment *b = records + lane;
        /* Where no point has mass, or only one that is left out, weights of one stand for nothing, and stay. */
        const int alive = largest[lane] > 0.5 * (job->pointwise ? FF_LEFT_OUT : FF_DEAD_T);
        const int may = lane < lanes && !b->sharp && alive &&
                        may_be_suspect(job->points, b, job->pointwise ? 0.0 : largest[lane]);
        constant[lane] = (FF_TT)suspect_terms(b, job->pointwise ? 0.0 : largest[lane]);
        factor[lane] = (FF_TT)(2.0 * b->square);
        bound[lane] = may ? (FF_TT)b->suspect : (FF_TT)INFINITY;
        any |= may;
    }
    if (!any) return;
    const TV c0 = T(load)(constant), c1 = T(load)(constant + L), f0 = T(load)(factor), f1 = T(load)(factor + L);
    const TV b0 = T(load)(bound), b1 = T(load)(bound + L);
    double total[LANES] = {0};
    int count[LANES] = {0};
    int16_t suspects[LANES][BATCH_TILE];
    for (int64_t j = 0; j < points; j++) {
        const FF_TT *row = weight + j * LANES;
        const TV n = T(set1)(s->square[j]);
        uint64_t mask = T(above)(T(mul)(T(load)(row), T(fma)(f0, n, c0)), b0) |
                        (uint64_t)T(above)(T(mul)(T(load)(row + L), T(fma)(f1, n, c1)), b1) << L;
        for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctzll(mask);
            suspects[lane][count[lane]++] = (int16_t)j;
        }
        for (int lane = 0; lane < LANES; lane++) total[lane] += (double)row[lane];
    }
    for (int64_t lane = 0; lane < lanes; lane++) {
        if (bound[lane] == (FF_TT)INFINITY) continue; /* a query's result does not depend on those beside it */
        const treatment *b = records + lane;
        partial *p = partials + lane;
        p->total = total[lane];
        if (count[lane] == 0) continue;
        query_offset(job->points, job->queries, query + lane, s->e);
        for (int i = 0; i < count[lane]; i++) {
            const int64_t j = suspects[lane][i];
            FF_TT *at = weight + j * LANES + lane;
            const double old = (double)*at;
            const double distance = NAME_S(distance)(job->points, s->e, &b->exact, start + j);
            const double below = exact_logit(job->points, &b->exact, start + j, distance) - p->largest;
            *at = (FF_TT)exp(below);
            const double new = (double)*at;
            p->total += new - old;
            if (job->pointwise) {
                FF_TT *gained = s->gained + (at - s->logit);
                s->gain_total[partials - s->partials + lane] -= (double)*gained;
                *gained = (FF_TT)(new * own_gain(job->points, &b->exact, start + j));
                s->gain_total[partials - s->partials + lane] += (double)*gained;
            }
            if (!job->want_spread) continue;
            p->first += new * below - old * log(old);
            p->second += new * new - old * old;
        }
    }
}

/* Where a smooth query sits on a heavy point, all weights of the tile are made exact and listed, so that the residual, which
   then is what the other points add, does not show the roundings of their weights. */
static void NAME_ST(batch_sit)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *b, int64_t query, int64_t start,
                               int64_t points, FF_TT *weight, partial *p, batch_kept *kept) {
    const coefficients *c = &b->exact;
    double others = p->total, own = INFINITY;
    for (int64_t i = 0; i < kept->count; i++) others -= kept->weight[i];
    if (others > BATCH_OTHERS || c->is_far) return;
    if (!job->pointwise) {
        for (int64_t i = 0; i < kept->count; i++)
            own = fmin(own, log_mass(job->points, kept->index[i]) - p->largest - log(kept->weight[i]));
        if (!batch_sits(own - BATCH_DOUBT, others)) return;
    }
    query_offset(job->points, job->queries, query, s->e);
    own = INFINITY;
    for (int64_t i = 0; i < kept->count; i++)
        own = fmin(own, c->precision * NAME_S(distance)(job->points, s->e, c, kept->index[i]));
    if (!batch_sits(own, others)) return;
    const int64_t without = left_out(job, query, start, start + points);
    kept->count = 0;
    for (int64_t j = start; j < start + points; j++)
        if (j != without) kept->index[kept->count++] = j;
    *p = NAME_ST(batch_keep)(job, s, b, query, kept);
    for (int64_t j = 0; j < points; j++) {
        weight[j * LANES] = 0;
        if (job->pointwise) s->gained[weight - s->logit + j * LANES] = 0;
    }
    if (job->pointwise) s->gain_total[p - s->partials] = batch_gain(job->points, c, kept);
}

/* Move the heavy weights of a panel's smooth queries from the tile to the lists that are summed in float64. */
static void NAME_ST(batch_take_heavy)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *records, int64_t query,
                                      int64_t start, int64_t points, int64_t lanes, FF_TT *weight, partial *partials,
                                      batch_kept *kept) {
    enum { L = LANES / 2 };
    const double mass = job->points->data.log_mass ? 0.0 : job->points->equal_log_mass; /* the largest, or above it */
    FF_TT bound[LANES];
    int any = 0;
    for (int lane = 0; lane < LANES; lane++) {
        const treatment *b = records + lane;
        const partial *p = partials + lane;
        /* Few weights carry this tile, at most 8 for each unit of the total; or it has points far closer to the query
           than is typical, |r|^2 / (2D) = size/2, so that their residuals are differences of far larger points. */
        const int may = lane < lanes && !b->sharp && b->heavy < 1.0 &&
                        (p->total < 4.0 || mass - p->largest - p->base < 0.1 * (double)job->points->size);
        bound[lane] = may ? (FF_TT)b->heavy : (FF_TT)INFINITY;
        any |= may;
    }
    if (!any) return;
    const TV b0 = T(load)(bound), b1 = T(load)(bound + L);
    for (int64_t j = 0; j < points; j++) {
        FF_TT *row = weight + j * LANES;
        uint64_t mask = T(above)(T(load)(row), b0) | (uint64_t)T(above)(T(load)(row + L), b1) << L;
        for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctzll(mask);
            kept[lane].index[kept[lane].count] = start + j;
            kept[lane].weight[kept[lane].count++] = (double)row[lane];
            row[lane] = 0;
            if (job->pointwise) s->gained[row - s->logit + lane] = 0;
        }
    }
    for (int64_t lane = 0; lane < lanes; lane++)
        if (bound[lane] < (FF_TT)INFINITY)
            NAME_ST(batch_sit)(job, s, records + lane, query + lane, start, points, weight + lane, partials + lane, kept + lane);
}

/* From dot products to logits, a column of each lane: logit = scale * a + base; and the largest a. The last
   argument is a constant in the calls. */
static inline __attribute__((always_inline)) void NAME_ST(batch_logits)(const NAME_ST(batch_scratch) * s,
                                                                         const treatment *records, int64_t points,
                                                                         FF_TT *logit, double *largest, int halves) {
    enum { L = LANES / 2 };
    FF_TT square[LANES], per_scale[LANES], most[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        square[lane] = (FF_TT)records[lane].square;
        per_scale[lane] = (FF_TT)(1.0 / records[lane].scale);
        most[lane] = (FF_TT)FF_DEAD_T;
    }
    TV factor[2], unit[2], m[2];
    FOR_PAIR {
        factor[h] = T(load)(square + h * L);
        unit[h] = T(load)(per_scale + h * L);
        m[h] = T(load)(most + h * L);
    }
    for (int64_t j = 0; j < points; j++) {
        const TV n = T(set1)(s->square[j]), mass = T(set1)(s->log_mass[j]);
        FOR_PAIR {
            FF_TT *at = logit + j * LANES + h * L;
            TV a = T(fma)(unit[h], mass, T(fnma)(factor[h], n, T(load)(at)));
            if (s->log_mass[j] <= (FF_TT)FF_DEAD_T) a = mass; /* no mass: below everything at any scale */
            T(store)(at, a);
            m[h] = T(max)(m[h], a);
        }
    }
    FOR_PAIR T(store)(most + h * L, m[h]);
    for (int lane = 0; lane < LANES; lane++) largest[lane] = (double)most[lane];
}

/* The same where points have variances of their own, in float64 from the dot products e.mu' on: the logit, for sharp
   queries with what it may be too small by; and the largest of it less twice that. The last three arguments are constants
   in the calls: whether all queries share one time, whether logarithms are taken in float32 (off by a few 1e-8 of itself,
   times size/2 in the logit), and whether no query is far or sharp, so that some terms are zero. */
static inline __attribute__((always_inline)) void NAME_ST(batch_own_logits)(const ff_job *job, NAME_ST(batch_scratch) * s,
                                                                             const treatment *records, int64_t start,
                                                                             int64_t points, const FF_TT *dots,
                                                                             double *largest, int one_time, int quick,
                                                                             int common) {
    const ff_points *data = job->points;
    const double size = (double)data->size, widest = data->widest[0];
    double half_square[LANES], beta[LANES], variance[LANES], slope[LANES], excess[LANES], error[LANES];
    double gain_constant[LANES], gain_slope[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        const treatment *b = records + lane;
        half_square[lane] = b->exact.is_far ? 0.0 : 0.5 * b->exact.norm * b->exact.norm;
        beta[lane] = b->exact.beta;
        variance[lane] = b->exact.variance;
        slope[lane] = b->exact.slope;
        excess[lane] = 0.5 * b->exact.excess * b->exact.slope;
        error[lane] = b->sharp ? b->dot_error : 0.0;
        gain_constant[lane] = b->exact.gain_constant;
        gain_slope[lane] = b->exact.gain_slope;
    }
    const f64v whole = f64_set1(0.5 * size), one = f64_set1(1.0);
    for (int lane = 0; lane < LANES; lane += 2 * F64_LANES) {
        f64v half[2], ratio[2], half_ratio[2], base[2], rise[2], constant[2], gain[2], per_least[2], most[2];
        FF_UNROLL
        for (int h = 0; h < 2; h++) {
            const int at = lane + h * F64_LANES;
            half[h] = f64_load(half_square + at);
            ratio[h] = f64_load(beta + at);
            half_ratio[h] = f64_mul(f64_set1(0.5), f64_mul(ratio[h], ratio[h]));
            base[h] = f64_load(variance + at);
            rise[h] = f64_load(slope + at);
            constant[h] = f64_load(gain_constant + at);
            gain[h] = f64_load(gain_slope + at);
            per_least[h] = f64_div(one, f64_fma(rise[h], f64_set1(data->narrowest), base[h]));
            most[h] = f64_set1(-1.7e308);
        }
        for (int64_t j = 0; j < points; j++) {
            const f64v own = f64_set1(data->data.variance[start + j]), square = f64_set1(data->square[start + j]);
            const f64v given = f64_set1(one_time ? s->own_mass[j] : log_mass(data, start + j));
            f64v inverse[2], log_variance[2];
            if (one_time) {
                inverse[0] = inverse[1] = f64_set1(s->inverse[j]);
            } else if (quick) {
                f64v relative[2];
                FF_UNROLL
                for (int h = 0; h < 2; h++) {
                    relative[h] = f64_mul(f64_fma(rise[h], own, base[h]), per_least[h]);
                    inverse[h] = f64_mul(f64_div(one, relative[h]), per_least[h]);
                }
                const f32v both = f32_log(f32_from_f64(relative[0], relative[1]));
                log_variance[0] = f64_from_low(both);
                log_variance[1] = f64_from_high(both);
            } else {
                FF_UNROLL
                for (int h = 0; h < 2; h++) /* in float32 off by 5e-12 of 1, times size/2 in the logit */
                    log_variance[h] = f64_log_inverse(f64_fma(rise[h], own, base[h]), sizeof(FF_TT) == 4 ? 13 : 21,
                                                      &inverse[h]);
            }
            FF_UNROLL
            for (int h = 0; h < 2; h++) {
                const int64_t at = j * LANES + lane + h * F64_LANES;
                const f64v dot = FF_PASTE3(f64, load, FF_T)(dots + at);
                f64v distance = f64_fnma(ratio[h], dot, f64_fma(half_ratio[h], square, half[h]));
                if (!common)
                    distance = f64_fma(f64_load(excess + lane + h * F64_LANES), f64_sub(f64_set1(widest), own), distance);
                const f64v mass = one_time ? given : f64_fnma(whole, log_variance[h], given);
                f64v logit = f64_fnma(distance, inverse[h], mass), bar = logit;
                if (!common) {
                    const f64v doubt = f64_mul(f64_load(error + lane + h * F64_LANES), inverse[h]);
                    bar = f64_sub(logit, doubt);
                    logit = f64_add(logit, doubt);
                }
                f64_store(s->wide + at, logit);
                most[h] = f64_max(most[h], bar);
                if (!one_time) f64_store(s->gains + at, f64_mul(f64_fma(gain[h], own, constant[h]), inverse[h]));
            }
        }
        FF_UNROLL
        for (int h = 0; h < 2; h++) f64_store(largest + lane + h * F64_LANES, most[h]);
    }
}

/* The right one of these for a panel, and the constants that its logits lack. */
static void NAME_ST(batch_panel_logits)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *records,
                                        int64_t start, int64_t points, const FF_TT *dots, double *largest, double *lack) {
    const int quick = sizeof(FF_TT) == 4 && job->points->size <= BATCH_QUICK_LOG && quick_log(job);
    int common = 1;
    for (int lane = 0; lane < LANES; lane++) {
        common &= !records[lane].sharp && records[lane].exact.excess == 0.0;
        lack[lane] = 0.0;
    }
#define OWN_LOGITS(one_time, quick, common) \
    NAME_ST(batch_own_logits)(job, s, records, start, points, dots, largest, one_time, quick, common)
    if (job->queries->stride == 0) {
        if (common) OWN_LOGITS(1, 0, 1);
        else OWN_LOGITS(1, 0, 0);
    } else if (quick) {
        for (int lane = 0; lane < LANES; lane++) {
            const coefficients *c = &records[lane].exact;
            lack[lane] = -0.5 * (double)job->points->size * log(c->variance + c->slope * job->points->narrowest);
        }
        if (common) OWN_LOGITS(0, 1, 1);
        else OWN_LOGITS(0, 1, 0);
    } else if (common) {
        OWN_LOGITS(0, 0, 1);
    } else {
        OWN_LOGITS(0, 0, 0);
    }
#undef OWN_LOGITS
}

/* Strike the points that queries leave out off a panel of logits, and off the largest. */
static void NAME_ST(batch_leave_out)(const ff_job *job, const NAME_ST(batch_scratch) * s, int64_t start, int64_t points,
                                     int64_t query, int64_t lanes, FF_TT *logit, double *largest) {
    if (!job->queries->exclude) return;
    for (int64_t lane = 0; lane < lanes; lane++) {
        const int64_t without = left_out(job, query + lane, start, start + points);
        if (without < 0) continue;
        const int64_t at = (without - start) * LANES + lane;
        if (job->pointwise) s->wide[at] = FF_LEFT_OUT;
        else logit[at] = (FF_TT)FF_DEAD_T;
        largest[lane] = job->pointwise ? FF_LEFT_OUT : FF_DEAD_T;
        for (int64_t j = lane; j < points * LANES; j += LANES) {
            const double other = job->pointwise ? s->wide[j] : (double)logit[j];
            if (other > largest[lane]) largest[lane] = other;
        }
    }
}

/* Weights of the smooth lanes from their logits, in sums of 32 rows at a time, so that the sum of a chunk rounds like a
   short one. The last argument is a constant in the calls. */
static inline __attribute__((always_inline)) void NAME_ST(batch_weights)(const ff_job *job, const NAME_ST(batch_scratch) * s,
                                                                          int64_t points, FF_TT *logit,
                                                                          const double *largest, double *total,
                                                                          double *first, double *second, double *gain,
                                                                          int halves) {
    enum { L = LANES / 2 };
    FF_TT most[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        most[lane] = (FF_TT)largest[lane];
        total[lane] = first[lane] = second[lane] = 0.0;
    }
    TV m[2];
    FOR_PAIR m[h] = T(load)(most + h * L);
    for (int64_t from = 0; from < points; from += 32) {
        TV part[3][2];
        FOR_PAIR part[0][h] = part[1][h] = part[2][h] = T(set1)(0);
        for (int64_t j = from; j < ff_min(from + 32, points); j++) {
            FF_TT *row = logit + j * LANES;
            TV below[2];
            FOR_PAIR below[h] = job->pointwise ? T(below)(s->wide + j * LANES + h * L, largest + h * L)
                                               : T(sub)(T(load)(row + h * L), m[h]);
            FOR_PAIR {
                const TV p = T(exp)(below[h]);
                T(store)(row + h * L, p);
                part[0][h] = T(add)(part[0][h], p);
                if (!job->want_spread) continue;
                part[1][h] = T(fma)(p, below[h], part[1][h]);
                part[2][h] = T(fma)(p, p, part[2][h]);
            }
        }
        FF_TT sums[3][LANES];
        for (int i = 0; i < 3; i++) FOR_PAIR T(store)(sums[i] + h * L, part[i][h]);
        for (int lane = 0; lane < halves * L; lane++) {
            total[lane] += sums[0][lane];
            first[lane] += sums[1][lane];
            second[lane] += sums[2][lane];
        }
    }
    if (!job->pointwise || !job->want_mean) return;
    double sums[LANES] = {0};
    FF_TT *gained = s->gained + (logit - s->logit);
    for (int64_t j = 0; j < points; j++) {
        const FF_TT *row = logit + j * LANES;
        FF_TT *to = gained + j * LANES;
        if (job->queries->stride == 0)
            for (int lane = 0; lane < LANES; lane++) to[lane] = row[lane] * (FF_TT)s->gain[j];
        else
            for (int lane = 0; lane < LANES; lane++) to[lane] = row[lane] * (FF_TT)s->gains[j * LANES + lane];
        for (int lane = 0; lane < LANES; lane++) sums[lane] += (double)to[lane];
    }
    for (int lane = 0; lane < LANES; lane++) gain[lane] = sums[lane];
}

/* From dot products to weights: one panel of a block. */
static void NAME_ST(batch_weigh)(const ff_job *job, NAME_ST(batch_scratch) * s, int64_t start, int64_t points,
                                 int64_t query, int64_t panel, int64_t lanes) {
    const treatment *records = (const treatment *)job->packed + query + panel * LANES;
    FF_TT *logit = s->logit + panel * BATCH_TILE * LANES;
    partial *partials = s->partials + panel * LANES;
    double *gain = job->pointwise ? s->gain_total + panel * LANES : NULL;
    const int halves = lanes > LANES / 2 ? 2 : 1;
    double largest[LANES] = {0}, total[LANES], first[LANES], second[LANES];
    double lack[LANES] = {0};
    if (job->pointwise) NAME_ST(batch_panel_logits)(job, s, records, start, points, logit, largest, lack);
    else if (halves == 1) NAME_ST(batch_logits)(s, records, points, logit, largest, 1);
    else NAME_ST(batch_logits)(s, records, points, logit, largest, 2);
    NAME_ST(batch_leave_out)(job, s, start, points, query + panel * LANES, lanes, logit, largest);

    int sharp = 0;
    for (int lane = 0; lane < LANES; lane++) sharp += records[lane].sharp;
    for (int64_t lane = 0; lane < lanes; lane++) {
        if (!records[lane].sharp) continue;
        batch_kept *kept = s->kept + panel * LANES + lane;
        const int64_t at = query + panel * LANES + lane, without = left_out(job, at, start, start + points);
        const double bar = largest[lane] - records[lane].window;
        kept->count = 0;
        for (int64_t j = 0; j < points; j++) {
            const double screen = job->pointwise ? s->wide[j * LANES + lane] : (double)logit[j * LANES + lane];
            if (screen >= bar && start + j != without) kept->index[kept->count++] = start + j;
        }
        partials[lane] = NAME_ST(batch_keep)(job, s, records + lane, at, kept);
        if (gain) gain[lane] = batch_gain(job->points, &records[lane].exact, kept);
    }
    s->computed[panel] = sharp < LANES;
    if (sharp == LANES) return;

    double gains[LANES];
    if (halves == 1) NAME_ST(batch_weights)(job, s, points, logit, largest, total, first, second, gains, 1);
    else NAME_ST(batch_weights)(job, s, points, logit, largest, total, first, second, gains, 2);
    for (int lane = 0; lane < lanes; lane++) {
        const treatment *b = records + lane;
        if (b->sharp) continue;
        s->kept[panel * LANES + lane].count = 0;
        largest[lane] += lack[lane];
        partials[lane] = (partial){largest[lane] + b->base, total[lane], first[lane], second[lane], b->exact.base};
        if (gain) gain[lane] = gains[lane];
    }
    NAME_ST(batch_refine)(job, s, records, query + panel * LANES, start, points, lanes, logit, largest, partials);
    for (int lane = 0; lane < lanes; lane++) {
        if (!records[lane].sharp) continue;
        for (int64_t j = 0; j < points; j++) {
            logit[j * LANES + lane] = 0;
            if (gain) s->gained[(panel * BATCH_TILE + j) * LANES + lane] = 0;
        }
    }
    NAME_ST(batch_take_heavy)(job, s, records, query + panel * LANES, start, points, lanes, logit, partials,
                              s->kept + panel * LANES);
}

/* Merge what a tile gave a panel into what the chunk has so far: the numbers of each query, and the points kept. The sums
   of the chunk and the weights of the tile come to one scale, for the product that adds them. */
static void NAME_ST(batch_join)(const ff_job *job, NAME_ST(batch_scratch) * s, int64_t points, int64_t query, int64_t panel,
                                int64_t lanes, int is_first) {
    const ff_state whole = {s->largest, s->total, s->first, s->second, s->base, NULL};
    const treatment *records = (const treatment *)job->packed + query + panel * LANES;
    const int64_t size = job->points->size;
    double keep[LANES] = {0}, add[LANES] = {0};
    for (int64_t lane = 0; lane < lanes; lane++) {
        const int64_t at = panel * LANES + lane;
        merge_scalars(&whole, at, s->partials + at, is_first, keep + lane, add + lane);
        if (!job->pointwise) continue;
        s->whole_gain[at] = (is_first ? 0.0 : keep[lane] * s->whole_gain[at]) + add[lane] * s->gain_total[at];
    }
    if (!job->want_mean) return;
    for (int64_t family = 0; s->computed[panel] && !is_first && family <= job->pointwise; family++) {
        NAME_T(scale_lanes)((family ? s->gained : s->logit) + panel * BATCH_TILE * LANES, points, add, 1);
        NAME_ST(batch_scale_sums)(NAME_ST(batch_panel_sums)(family ? NAME_ST(batch_gained_sums)(job, s) : s->sum, size, panel),
                                  size, keep);
    }
    for (int64_t lane = 0; lane < lanes; lane++) {
        const int64_t at = panel * LANES + lane, values = size * (1 + job->pointwise);
        double *sum = s->kept_sum + at * values;
        batch_kept *kept = s->kept + at;
        if (is_first) s->has_kept[at] = 0;
        if (s->has_kept[at] && keep[lane] != 1.0)
            for (int64_t k = 0; k < values; k++) sum[k] *= keep[lane];
        if (kept->count == 0 || add[lane] == 0.0) continue;
        if (!s->has_kept[at]) memset(sum, 0, (size_t)values * sizeof *sum);
        s->has_kept[at] = 1;
        for (int64_t family = 0; family <= job->pointwise; family++) {
            for (int64_t i = 0; i < kept->count; i++)
                kept->weight[i] *= family ? own_gain(job->points, &records[lane].exact, kept->index[i]) : add[lane];
            NAME_S(accumulate)(job->points, kept->count, kept->index, kept->weight, sum + family * size);
        }
    }
}

/* Tile by tile: dot products, weights, sums. */
static void NAME_ST(batch_compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                   void *scratch) {
    NAME_ST(batch_scratch) *s = scratch;
    NAME_ST(batch_lay_out)(job->points, s, scratch);
    for (int64_t i = 0; i < BLOCK; i++)
        s->kept[i] = (batch_kept){0, s->kept_index + i * BATCH_TILE, s->kept_weight + i * BATCH_TILE};
    /* Halves of panels that have queries. */
    const int64_t halves = ff_ceil_div(count, LANES / 2), panels = ff_ceil_div(halves, 2), most = batch_tile(stop - start);
    const void *queries = NAME_ST(batch_panel)(job, query / LANES);
    for (int64_t first = start; first < stop; first += most) {
        const int64_t points = ff_min(most, stop - first);
        NAME_ST(batch_begin)(job, s, first, points);
        ff_ahead ahead = NAME_ST(batch_ahead)(job->points, first + points, ff_min(first + 2 * points, stop), panels,
                                             job->want_mean * (1 + job->pointwise));
        NAME_ST(batch_dots)(job->points, first, points, s->tile, queries, halves, s->logit, &ahead);
        for (int64_t panel = 0; panel < panels; panel++) {
            const int64_t lanes = ff_min(LANES, count - panel * LANES);
            NAME_ST(batch_weigh)(job, s, first, points, query, panel, lanes);
            NAME_ST(batch_join)(job, s, points, query, panel, lanes, first == start);
        }
        for (int64_t family = 0; job->want_mean && family <= job->pointwise; family++)
            NAME_ST(batch_sums)(job->points, first, points, s->tile, halves, s->computed, family ? s->gained : s->logit,
                                family ? NAME_ST(batch_gained_sums)(job, s) : s->sum, first > start, &ahead);
    }
}

_Static_assert(LANES % NAME_ST(PACKED) == 0 && NAME_ST(PACKED) % NAME_ST(MERGED) == 0 &&
                   NAME_ST(MERGED) % NAME_ST(STATE_LANES) == 0,
               "a panel is packed and merged in whole pieces");

/* Of some queries of one panel. */
static void NAME_ST(batch_merge)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                 void *scratch) {
    (void)stop;
    NAME_ST(batch_scratch) *s = scratch;
    const ff_points *points = job->points;
    enum { S = NAME_ST(STATE_LANES) };
    const int64_t size = points->size, rows = ff_rows(job);
    const int64_t at = query % job->block, panel = at / LANES; /* in the block */
    const int is_first = start == 0;
    const treatment *records = (const treatment *)job->packed + query;
    double keep[LANES] = {0}, add[LANES] = {0}, smooth_add[LANES] = {0};
    int counts = 0; /* whether anything changes the state */
    for (int64_t i = 0; i < count; i++) {
        const partial whole = {s->largest[at + i], s->total[at + i], s->first[at + i], s->second[at + i], s->base[at + i]};
        merge_scalars(&job->state, query + i, &whole, is_first, keep + i, add + i);
        if (!records[i].sharp) smooth_add[i] = add[i];
        counts |= keep[i] != 1.0 || add[i] != 0.0;
    }
    if (!job->want_mean || !counts) return;
    double *sum = job->state.sum + query * rows;
    for (int64_t family = 0; s->computed[panel] && family <= job->pointwise; family++) {
        FF_TT *sums = family ? NAME_ST(batch_gained_sums)(job, s) : s->sum;
        NAME_ST(batch_merge_part)(NAME_ST(batch_panel_sums)(sums, size, panel), sum + family * size * S, rows, size,
                                  at % LANES, count, keep, smooth_add, is_first);
    }
    if (!s->computed[panel] && is_first) memset(sum, 0, (size_t)(ff_ceil_div(count, S) * S * rows) * sizeof *sum);
    for (int64_t i = 0; i < count; i++) {
        double *own = sum + i / S * S * rows + i % S; /* of one query: row k at k S */
        if (!s->computed[panel] && !is_first && keep[i] != 1.0)
            for (int64_t k = 0; k < (1 + job->pointwise) * size; k++) own[k * S] *= keep[i];
        if (job->pointwise) {
            double *gain = own + 2 * size * S;
            *gain = (is_first ? 0.0 : keep[i] * *gain) + add[i] * s->whole_gain[at + i];
        }
        if (!s->has_kept[at + i] || add[i] == 0.0) continue;
        const double *from = s->kept_sum + (at + i) * size * (1 + job->pointwise);
        for (int64_t k = 0; k < (1 + job->pointwise) * size; k++) own[k * S] += add[i] * from[k];
    }
}

#undef LANES
#undef BLOCK
