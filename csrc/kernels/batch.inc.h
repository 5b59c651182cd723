/* Many queries of many dimensions: bound by arithmetic. Lanes hold queries; both products, logits = Y Q and
   sum = Y^T P, broadcast elements of a tile of points and run through one register-blocked microkernel.
   Included once for each pair of storage type FF_S and compute type FF_T. How the logits keep their accuracy is told in
   treatment.inc.h. */

#ifndef FF_BATCH
#define FF_BATCH
enum {
    BATCH_ROWS = 6,    /* points, or dimensions, of a microkernel: 6 x 2 vectors of sums leave 4 of 16 registers */
    BATCH_SLICE = 96,  /* dimensions of a slice of the tile: short sums round less, and 6 lines fill no cache set */
    BATCH_CHUNK = 252, /* points of a tile, a multiple of BATCH_ROWS */
    BATCH_PANELS = 6   /* panels of queries in a block */
};

static int64_t batch_chunk(const ff_points *points) {
    (void)points;
    return BATCH_CHUNK;
}
static int64_t batch_slices(int64_t size) { return ff_ceil_div(size, BATCH_SLICE); }
/* Dimensions of slice `slice`, filled up with zeros to a multiple of the microkernel's rows. */
static int64_t batch_width(int64_t size, int64_t slice) {
    const int64_t width = ff_min(BATCH_SLICE, size - slice * BATCH_SLICE);
    return ff_ceil_div(width, BATCH_ROWS) * BATCH_ROWS;
}
static int64_t batch_padded(int64_t size) { return batch_slices(size) * BATCH_SLICE; }

/* The points whose share of a query is summed in float64: all of a sharp query, the heavy ones of a smooth query. */
typedef struct {
    int64_t count;
    int64_t index[BATCH_CHUNK];
    double weight[BATCH_CHUNK];
} batch_kept;
#endif

enum { NAME_ST(LANES) = 2 * FF_LANES_T };
#define LANES NAME_ST(LANES)
#define BLOCK (BATCH_PANELS * LANES)

/* Scratch of a worker. The tile is laid out [slice][point][BATCH_SLICE], the logits [panel][point][lane], the sums
   [panel][k][lane] with k up to the padded size. */
typedef struct {
    FF_TT *tile, *square, *log_mass, *logit, *sum;
    double *e, *row;
    batch_kept *kept;
    partial partials[BLOCK];
    unsigned char computed[BATCH_PANELS]; /* whether the panel's sums were computed */
} NAME_ST(batch_scratch);

static size_t NAME_ST(batch_lay_out)(const ff_points *points, NAME_ST(batch_scratch) * s, char *base) {
    const size_t padded = (size_t)batch_padded(points->size);
    size_t at = ff_aligned(sizeof *s);
#define PART(field, count)                                      \
    s->field = (void *)(base ? base + at : NULL);               \
    at += ff_aligned((size_t)(count) * sizeof *s->field)
    PART(tile, BATCH_CHUNK * padded);
    PART(square, BATCH_CHUNK);
    PART(log_mass, BATCH_CHUNK);
    PART(logit, BATCH_CHUNK * BLOCK);
    PART(sum, BLOCK * padded);
    PART(e, points->size);
    PART(row, points->size);
    PART(kept, BLOCK);
#undef PART
    return at;
}

static size_t NAME_ST(batch_scratch_bytes)(const ff_points *points, const ff_job *job) {
    (void)job;
    NAME_ST(batch_scratch) s;
    return NAME_ST(batch_lay_out)(points, &s, NULL);
}

/* Packed queries: the treatment records, then q in panels of [padded size][lane]. */
static FF_TT *NAME_ST(batch_panels)(const ff_job *job) {
    const int64_t padded = ff_ceil_div(job->queries->count, LANES) * LANES;
    return (FF_TT *)((char *)job->packed + ff_aligned((size_t)padded * sizeof(treatment)));
}
static size_t NAME_ST(batch_packed_bytes)(const ff_points *points, int64_t queries) {
    const size_t padded = (size_t)(ff_ceil_div(queries, LANES) * LANES);
    return ff_aligned(padded * sizeof(treatment)) + padded * (size_t)batch_padded(points->size) * sizeof(FF_TT);
}

static void NAME_ST(batch_pack)(const ff_job *job, int64_t query, int64_t count, void *scratch) {
    NAME_ST(batch_scratch) *s = scratch;
    NAME_ST(batch_lay_out)(job->points, s, scratch);
    const int64_t size = job->points->size, padded = batch_padded(size);
    treatment *records = job->packed;
    for (int64_t q = query; q < query + ff_ceil_div(count, LANES) * LANES; q++) {
        const int64_t lane = q % LANES;
        FF_TT *panel = NAME_ST(batch_panels)(job) + q / LANES * padded * LANES;
        if (q < query + count) {
            const coefficients c = centred_query(job->points, job->queries, q, s->e);
            records[q] = NAME_ST(settle)(job, &c);
            const double factor = records[q].sharp ? 1.0 / c.beta : 2.0 * c.precision * c.beta;
            for (int64_t k = 0; k < size; k++) panel[k * LANES + lane] = (FF_TT)(factor * s->e[k]);
        } else { /* idle lanes of the last panel: zero queries of a treatment that costs nothing */
            records[q] = (treatment){.scale = 1.0, .suspect = 1.0, .heavy = INFINITY, .sharp = records[q - 1].sharp};
            for (int64_t k = 0; k < size; k++) panel[k * LANES + lane] = 0;
        }
        for (int64_t k = size; k < padded; k++) panel[k * LANES + lane] = 0;
    }
}

static void NAME_ST(batch_begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch) {
    NAME_ST(batch_scratch) *s = scratch;
    const ff_points *points = job->points;
    NAME_ST(batch_lay_out)(points, s, scratch);
    const int64_t size = points->size, count = stop - start;
    const int64_t rows = ff_ceil_div(count, BATCH_ROWS) * BATCH_ROWS;
    for (int64_t slice = 0; slice < batch_slices(size); slice++) {
        const int64_t from = slice * BATCH_SLICE, filled = ff_min(BATCH_SLICE, size - from);
        FF_TT *tile = s->tile + slice * BATCH_CHUNK * BATCH_SLICE;
        const double *centre = points->centre + from;
        for (int64_t j = 0; j < count; j++) {
            const FF_STORED *row = NAME_S(row)(points, start + j) + from;
            FF_TT *to = tile + j * BATCH_SLICE;
            for (int64_t k = 0; k < filled; k++) to[k] = (FF_TT)row[k] - (FF_TT)centre[k];
            for (int64_t k = filled; k < BATCH_SLICE; k++) to[k] = 0;
        }
        memset(tile + count * BATCH_SLICE, 0, (size_t)((rows - count) * BATCH_SLICE) * sizeof *tile);
    }
    for (int64_t j = 0; j < count; j++) {
        s->square[j] = (FF_TT)points->square[start + j];
        s->log_mass[j] = (FF_TT)fmax(log_mass(points, start + j), FF_DEAD);
    }
}

/* out[i][lane] = sum over steps of y[i row_stride + step step_stride] q[step][lane], or that added to out. */
static inline __attribute__((always_inline)) void NAME_ST(batch_multiply)(const FF_TT *y, int64_t row_stride,
                                                                          int64_t step_stride, const FF_TT *q,
                                                                          int64_t steps, FF_TT *out, int add) {
    enum { L = LANES / 2 };
    TV sum[BATCH_ROWS][2];
    FF_UNROLL
    for (int i = 0; i < BATCH_ROWS; i++) sum[i][0] = sum[i][1] = T(set1)(0);
    for (int64_t step = 0; step < steps; step++) {
        const TV q0 = T(load)(q + step * LANES), q1 = T(load)(q + step * LANES + L);
        FF_UNROLL
        for (int i = 0; i < BATCH_ROWS; i++) {
            const TV yi = T(set1)(y[i * row_stride + step * step_stride]);
            sum[i][0] = T(fma)(yi, q0, sum[i][0]);
            sum[i][1] = T(fma)(yi, q1, sum[i][1]);
        }
    }
    FF_UNROLL
    for (int i = 0; i < BATCH_ROWS; i++) {
        FF_TT *to = out + i * LANES;
        T(store)(to, add ? T(add)(T(load)(to), sum[i][0]) : sum[i][0]);
        T(store)(to + L, add ? T(add)(T(load)(to + L), sum[i][1]) : sum[i][1]);
    }
}

/* Dot products of the tile with the panels of a block: logit[panel][point][lane]. */
static void NAME_ST(batch_dots)(const ff_job *job, NAME_ST(batch_scratch) * s, int64_t points, int64_t first_panel,
                                int64_t panels) {
    const int64_t size = job->points->size, padded = batch_padded(size);
    for (int64_t slice = 0; slice < batch_slices(size); slice++) {
        const FF_TT *tile = s->tile + slice * BATCH_CHUNK * BATCH_SLICE;
        const int64_t width = ff_min(BATCH_SLICE, size - slice * BATCH_SLICE);
        for (int64_t panel = 0; panel < panels; panel++) {
            const FF_TT *q =
                NAME_ST(batch_panels)(job) + ((first_panel + panel) * padded + slice * BATCH_SLICE) * LANES;
            FF_TT *logit = s->logit + panel * BATCH_CHUNK * LANES;
            for (int64_t j = 0; j < points; j += BATCH_ROWS)
                NAME_ST(batch_multiply)(tile + j * BATCH_SLICE, BATCH_SLICE, 1, q, width, logit + j * LANES, slice > 0);
        }
    }
}

/* Sums p mu' of the tile for the panels of a block: sum[panel][k][lane]. */
static void NAME_ST(batch_sums)(const ff_job *job, NAME_ST(batch_scratch) * s, int64_t points, int64_t panels) {
    const int64_t size = job->points->size, padded = batch_padded(size);
    for (int64_t slice = 0; slice < batch_slices(size); slice++) {
        const FF_TT *tile = s->tile + slice * BATCH_CHUNK * BATCH_SLICE;
        for (int64_t panel = 0; panel < panels; panel++) {
            if (!s->computed[panel]) continue;
            const FF_TT *p = s->logit + panel * BATCH_CHUNK * LANES;
            FF_TT *sum = s->sum + (panel * padded + slice * BATCH_SLICE) * LANES;
            for (int64_t k = 0; k < batch_width(size, slice); k += BATCH_ROWS)
                NAME_ST(batch_multiply)(tile + k, 1, BATCH_SLICE, p, points, sum + k * LANES, 0);
        }
    }
}

/* Keep what a query may put weight on: screen its column of the panel (all points where logit is NULL), then compute
   exactly. */
static partial NAME_ST(batch_keep)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *b, int64_t query,
                                   int64_t start, int64_t points, const FF_TT *logit, FF_TT largest, batch_kept *kept) {
    const double bar = (double)largest - b->window;
    kept->count = 0;
    for (int64_t j = 0; j < points; j++)
        if (!logit || (double)logit[j * LANES] >= bar) kept->index[kept->count++] = start + j;
    centred_query(job->points, job->queries, query, s->e);
    partial p = {-1.7e308, 0.0, 0.0, 0.0, b->exact.base};
    for (int64_t i = 0; i < kept->count; i++) {
        const int64_t j = kept->index[i];
        kept->weight[i] =
            log_mass(job->points, j) - b->exact.precision * NAME_S(distance)(job->points, s->e, &b->exact, j);
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

/* Compute again, by residuals, the weights of a smooth query whose own rounding would be seen, and its sums. */
static void NAME_ST(batch_refine)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *b, int64_t query,
                                  int64_t start, int64_t points, FF_TT *weight, double largest, partial *p) {
    centred_query(job->points, job->queries, query, s->e);
    p->total = p->first = p->second = 0.0;
    for (int64_t j = 0; j < points; j++) {
        double w = (double)weight[j * LANES], below;
        if (w * (fabs(largest) + 2.0 * b->square * (double)s->square[j]) > b->suspect) {
            const double distance = NAME_S(distance)(job->points, s->e, &b->exact, start + j);
            below = log_mass(job->points, start + j) - b->exact.precision * distance - p->largest;
            w = exp(below);
            weight[j * LANES] = (FF_TT)w;
        } else {
            below = job->want_spread && w > 0.0 ? log(w) : 0.0;
        }
        p->total += w;
        p->first += w * below;
        p->second += w * w;
    }
}

/* Move the heavy weights of a smooth query from the tile to the list that is summed in float64; or all weights, made
   exact, where the query sits on one point, so that its residual is what the others add. */
static void NAME_ST(batch_take_heavy)(const ff_job *job, NAME_ST(batch_scratch) * s, const treatment *b, int64_t query,
                                      int64_t start, int64_t points, FF_TT *weight, partial *p, batch_kept *kept) {
    for (int64_t j = 0; j < points; j++) {
        if (!((double)weight[j * LANES] > b->heavy)) continue;
        kept->index[kept->count] = start + j;
        kept->weight[kept->count++] = (double)weight[j * LANES];
        weight[j * LANES] = 0;
    }
    double others = p->total, own = INFINITY;
    for (int64_t i = 0; i < kept->count; i++) others -= kept->weight[i];
    if (others > 0.5) return;
    /* The others lie within 20 units of logit, so at distances whose squares are at most 20/precision larger. */
    const coefficients c = centred_query(job->points, job->queries, query, s->e);
    for (int64_t i = 0; i < kept->count; i++)
        own = fmin(own, c.precision * NAME_S(distance)(job->points, s->e, &c, kept->index[i]));
    if (c.is_far || own > 4.0 * others * others * (own + 20.0)) return;
    *p = NAME_ST(batch_keep)(job, s, b, query, start, points, NULL, 0, kept);
    for (int64_t j = 0; j < points; j++) weight[j * LANES] = 0;
}

/* From dot products to weights: one panel of a block. */
static void NAME_ST(batch_weigh)(const ff_job *job, NAME_ST(batch_scratch) * s, int64_t start, int64_t points,
                                 int64_t query, int64_t panel, int64_t lanes) {
    enum { L = LANES / 2 };
    const treatment *records = (const treatment *)job->packed + query + panel * LANES;
    FF_TT *logit = s->logit + panel * BATCH_CHUNK * LANES;
    FF_TT square[LANES], per_scale[LANES], largest[LANES];
    int sharp = 0;
    for (int lane = 0; lane < LANES; lane++) {
        square[lane] = (FF_TT)records[lane].square;
        per_scale[lane] = (FF_TT)(1.0 / records[lane].scale);
        sharp += records[lane].sharp;
    }
    /* The logits of the tile, and the largest of each lane. */
    {
        const TV h0 = T(load)(square), h1 = T(load)(square + L);
        const TV c0 = T(load)(per_scale), c1 = T(load)(per_scale + L);
        TV m0 = T(set1)((FF_TT)FF_DEAD), m1 = m0;
        for (int64_t j = 0; j < points; j++) {
            FF_TT *row = logit + j * LANES;
            const TV n = T(set1)(s->square[j]), mass = T(set1)(s->log_mass[j]);
            TV a0 = T(fma)(c0, mass, T(fnma)(h0, n, T(load)(row)));
            TV a1 = T(fma)(c1, mass, T(fnma)(h1, n, T(load)(row + L)));
            if (s->log_mass[j] <= (FF_TT)FF_DEAD) a0 = a1 = mass; /* no mass: below everything at any scale */
            T(store)(row, a0);
            T(store)(row + L, a1);
            m0 = T(max)(m0, a0);
            m1 = T(max)(m1, a1);
        }
        T(store)(largest, m0);
        T(store)(largest + L, m1);
    }
    partial *partials = s->partials + panel * LANES;
    if (sharp)
        for (int lane = 0; lane < lanes; lane++)
            if (records[lane].sharp)
                partials[lane] =
                    NAME_ST(batch_keep)(job, s, records + lane, query + panel * LANES + lane, start, points,
                                        logit + lane, largest[lane], s->kept + panel * LANES + lane);
    s->computed[panel] = sharp < LANES;
    if (sharp == LANES) return;

    /* Weights of the smooth lanes. Sums of 32 rows at a time, so that the sum of a chunk rounds like a short one. */
    double total[LANES] = {0}, first[LANES] = {0}, second[LANES] = {0};
    const TV m0 = T(load)(largest), m1 = T(load)(largest + L);
    for (int64_t from = 0; from < points; from += 32) {
        TV total0 = T(set1)(0), total1 = total0, first0 = total0, first1 = total0, second0 = total0, second1 = total0;
        for (int64_t j = from; j < ff_min(from + 32, points); j++) {
            FF_TT *row = logit + j * LANES;
            const TV below0 = T(sub)(T(load)(row), m0), below1 = T(sub)(T(load)(row + L), m1);
            const TV p0 = T(exp)(below0), p1 = T(exp)(below1);
            T(store)(row, p0);
            T(store)(row + L, p1);
            total0 = T(add)(total0, p0);
            total1 = T(add)(total1, p1);
            if (job->want_spread) {
                first0 = T(fma)(p0, below0, first0);
                first1 = T(fma)(p1, below1, first1);
                second0 = T(fma)(p0, p0, second0);
                second1 = T(fma)(p1, p1, second1);
            }
        }
        FF_TT sums[3][LANES];
        T(store)(sums[0], total0), T(store)(sums[0] + L, total1);
        T(store)(sums[1], first0), T(store)(sums[1] + L, first1);
        T(store)(sums[2], second0), T(store)(sums[2] + L, second1);
        for (int lane = 0; lane < LANES; lane++) {
            total[lane] += sums[0][lane];
            first[lane] += sums[1][lane];
            second[lane] += sums[2][lane];
        }
    }
    for (int lane = 0; lane < lanes; lane++) {
        const treatment *b = records + lane;
        if (b->sharp) {
            for (int64_t j = 0; j < points; j++) logit[j * LANES + lane] = 0;
            continue;
        }
        s->kept[panel * LANES + lane].count = 0;
        partials[lane] = (partial){(double)largest[lane] + b->base, total[lane], first[lane],
                                     second[lane], b->exact.base};
        if (may_be_suspect(job->points, b, (double)largest[lane]))
            NAME_ST(batch_refine)(job, s, b, query + panel * LANES + lane, start, points, logit + lane,
                                  (double)largest[lane], partials + lane);
        /* Few weights carry this chunk: at most 8 for each unit of the total. */
        if (b->heavy < 1.0 && partials[lane].total < 4.0)
            NAME_ST(batch_take_heavy)(job, s, b, query + panel * LANES + lane, start, points, logit + lane,
                                      partials + lane, s->kept + panel * LANES + lane);
    }
}

static void NAME_ST(batch_compute)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                   void *scratch) {
    NAME_ST(batch_scratch) *s = scratch;
    const int64_t panels = ff_ceil_div(count, LANES);
    NAME_ST(batch_dots)(job, s, stop - start, query / LANES, panels);
    for (int64_t panel = 0; panel < panels; panel++)
        NAME_ST(batch_weigh)(job, s, start, stop - start, query, panel, ff_min(LANES, count - panel * LANES));
    if (job->want_mean) NAME_ST(batch_sums)(job, s, stop - start, panels);
}

/* Add the tile's sums of a panel to the state: to = keep to + add from, lane by lane. */
static void NAME_ST(batch_merge_panel)(const FF_TT *from, double *to, int64_t size, const double *keep,
                                       const double *add, int is_first) {
    enum { V = LANES / F64_LANES };
    f64v k[V], a[V];
    FF_UNROLL
    for (int i = 0; i < V; i++) {
        k[i] = f64_load(keep + i * F64_LANES);
        a[i] = f64_load(add + i * F64_LANES);
    }
    for (int64_t row = 0; row < size; row++, from += LANES, to += LANES)
        FF_UNROLL
        for (int i = 0; i < V; i++) {
            const f64v part = f64_mul(a[i], FF_PASTE3(f64, load, FF_T)(from + i * F64_LANES));
            f64_store(to + i * F64_LANES, is_first ? part : f64_fma(k[i], f64_load(to + i * F64_LANES), part));
        }
}

static void NAME_ST(batch_merge)(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                                 void *scratch) {
    (void)stop;
    NAME_ST(batch_scratch) *s = scratch;
    const ff_points *points = job->points;
    const int64_t size = points->size, padded = batch_padded(size);
    const int is_first = start == 0;
    for (int64_t panel = 0; panel * LANES < count; panel++) {
        const int64_t at = query + panel * LANES, lanes = ff_min(LANES, count - panel * LANES);
        const treatment *records = (const treatment *)job->packed + at;
        double keep[LANES] = {0}, add[LANES] = {0}, smooth_add[LANES] = {0};
        for (int64_t lane = 0; lane < lanes; lane++) {
            merge_scalars(&job->state, at + lane, s->partials + panel * LANES + lane, is_first, keep + lane,
                          add + lane);
            if (!records[lane].sharp) smooth_add[lane] = add[lane];
        }
        if (!job->want_mean) continue;
        double *sum = job->state.sum + at * size;
        if (s->computed[panel])
            NAME_ST(batch_merge_panel)(s->sum + panel * padded * LANES, sum, size, keep, smooth_add, is_first);
        else if (is_first)
            memset(sum, 0, (size_t)(size * LANES) * sizeof *sum);
        for (int64_t lane = 0; lane < lanes; lane++) {
            if (!s->computed[panel] && !is_first && keep[lane] != 1.0)
                for (int64_t k = 0; k < size; k++) sum[k * LANES + lane] *= keep[lane];
            batch_kept *kept = s->kept + panel * LANES + lane;
            if (add[lane] == 0.0 || kept->count == 0) continue;
            memset(s->row, 0, (size_t)size * sizeof *s->row);
            NAME_S(accumulate)(points, kept->count, kept->index, kept->weight, s->row);
            for (int64_t k = 0; k < size; k++) sum[k * LANES + lane] += add[lane] * s->row[k];
        }
    }
}

#undef LANES
#undef BLOCK
