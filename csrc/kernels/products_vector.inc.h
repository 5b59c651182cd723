/* The two products of the batch kernel by vectors: elements of a tile of points are broadcast against two vectors of
   queries. Included once for each pair of storage type FF_S and compute type FF_T. */

#ifndef FF_PRODUCTS
#define FF_PRODUCTS
enum {
    BATCH_SLICE = 96,     /* dimensions that are multiplied at a time: short sums round less, and their queries stay near */
    BATCH_TILE = 252,     /* points of a tile at most */
    BATCH_TILES = 4,      /* tiles of a chunk at most: the state is read and written once for each chunk */
    BATCH_LEAST = 252,    /* points that a chunk has at least, where there are as many */
    BATCH_ROWS = FF_ROWS, /* which numbers of points of a tile are multiples of */
    BATCH_PANELS = F32_LANES == 16 ? 4 : 8, /* panels of queries in a block, for which a tile is made */
    /* A tile is laid out [group of FF_TALL dimensions][point][dimension of the group]: the sums read it as one stream, and
       the dot products as one stream for each group. Laid out by points, with dimensions side by side, the sums took a
       tenth longer (Zen 3). It is made of so many points at a time, whose parts of a group fill cache lines. */
    BATCH_STRIP = 8,
    /* A group has room for whole strips, and for what the vectors of its last point may write beyond that. */
    BATCH_GROUP = (BATCH_TILE + BATCH_STRIP - 1) / BATCH_STRIP * BATCH_STRIP * FF_TALL + 16
};
static const ff_stride batch_points = {FF_TALL, FF_TALL * FF_TALL}, batch_dimensions = {1, BATCH_GROUP};

static int64_t batch_padded(int64_t size) { return ff_ceil_div(size, FF_TALL) * FF_TALL; }
static size_t batch_tile_values(int64_t size) { return BATCH_GROUP * (size_t)(batch_padded(size) / FF_TALL); }
#endif

#define LANES NAME_T(LANES)

typedef FF_TT NAME_ST(batch_value);

/* Queries in the state are in panels of this many, and so they are packed, merged and written. */
enum { NAME_ST(STATE_LANES) = LANES, NAME_ST(PACKED) = LANES, NAME_ST(MERGED) = LANES };

/* The q of a panel of queries, laid out [k][lane]. */
static size_t NAME_ST(batch_panel_bytes)(int64_t size) { return LANES * (size_t)batch_padded(size) * sizeof(FF_TT); }

/* One lane of a panel: q = factor e. Returns by what q rounds, where it is not its own size. */
static double NAME_ST(batch_put)(const ff_points *points, void *panel, int64_t lane, double factor, const double *e) {
    const int64_t size = points->size;
    FF_TT *to = (FF_TT *)panel + lane;
    for (int64_t k = 0; k < size; k++) to[k * LANES] = (FF_TT)(factor * e[k]);
    for (int64_t k = size; k < batch_padded(size); k++) to[k * LANES] = 0;
    return 0.0;
}

/* mu' of a tile, for both products, with zeros for the dimensions that fill it up; what fills up its points is not used. */
static void NAME_ST(batch_make_tile)(const ff_points *points, int64_t start, int64_t count, FF_TT *tile) {
    enum { REACH = (FF_TALL + FF_LANES_T - 1) / FF_LANES_T * FF_LANES_T }; /* of the vectors of a group */
    const int64_t size = points->size;
    const FF_TT *centre = FF_CENTRE_T(points);
    for (int64_t first = 0; first < count; first += BATCH_STRIP) {
        const FF_STORED *row[BATCH_STRIP];
        for (int j = 0; j < BATCH_STRIP; j++) row[j] = NAME_S(row)(points, start + ff_min(first + j, count - 1));
        FF_TT *to = tile + first * FF_TALL;
        int64_t from = 0;
        for (; from + REACH <= size; from += FF_TALL, to += BATCH_GROUP)
            FF_UNROLL
            for (int j = 0; j < BATCH_STRIP; j++)
                FF_UNROLL
                for (int k = 0; k < FF_TALL; k += FF_LANES_T) /* what is beyond the group, the next point overwrites */
                    T(store)(to + j * FF_TALL + k, T(sub)(FF_LOAD_T(row[j] + from + k), T(load)(centre + from + k)));
        for (; from < size; from += FF_TALL, to += BATCH_GROUP)
            for (int j = 0; j < BATCH_STRIP; j++)
                for (int64_t k = from; k < from + FF_TALL; k++)
                    to[j * FF_TALL + k - from] = k < size ? (FF_TT)VALUE(row[j][k]) - centre[k] : 0;
    }
}

/* The tile of the points start..stop-1, to be fetched while the products of one as large run, so that it is made of what
   lies in the caches: 64 queries of 8,000 x 3,072 float32 values took 3 % less time (Zen 3). */
static ff_ahead NAME_ST(batch_ahead)(const ff_points *points, int64_t start, int64_t stop, int64_t panels,
                                     int64_t families) {
    if (points->data.index || start >= stop) return (ff_ahead){NULL, NULL, 0};
    const int64_t size = points->size, count = stop - start;
    const int64_t blocks = panels * (ff_ceil_div(size, BATCH_SLICE) * (count / FF_TALL) + families * (size / FF_TALL));
    const int64_t lines = ff_ceil_div(count * size * (int64_t)sizeof(FF_STORED), FF_LINE);
    const FF_STORED *from = NAME_S(row)(points, start);
    return (ff_ahead){(const char *)from, (const char *)(from + count * size), ff_ceil_div(lines, ff_max(1, blocks))};
}

/* logit[panel][point][lane] = mu'_point . q_lane of the points start..start+count-1. */
static void NAME_ST(batch_dots)(const ff_points *points, int64_t start, int64_t count, FF_TT *tile, const void *queries,
                                int64_t halves, FF_TT *logit, ff_ahead *ahead) {
    (void)start;
    const int64_t size = points->size;
    for (int64_t from = 0; from < size; from += BATCH_SLICE, tile += BATCH_SLICE / FF_TALL * BATCH_GROUP)
        for (int64_t panel = 0; 2 * panel < halves; panel++)
            NAME_T(multiply)(tile, batch_points, batch_dimensions,
                             (const FF_TT *)queries + (panel * batch_padded(size) + from) * LANES,
                             ff_min(BATCH_SLICE, size - from), logit + panel * BATCH_TILE * LANES, from > 0, count,
                             ff_min(2, halves - 2 * panel), ahead);
}

/* Where the sums of a panel begin: [k][lane]. */
static FF_TT *NAME_ST(batch_panel_sums)(FF_TT *sums, int64_t size, int64_t panel) {
    return sums + panel * batch_padded(size) * LANES;
}

/* Sums over the points of weights[panel][point][lane] times mu', or these added, for the panels that are `computed`. */
static void NAME_ST(batch_sums)(const ff_points *points, int64_t start, int64_t count, FF_TT *tile, int64_t halves,
                                const unsigned char *computed, const FF_TT *weights, FF_TT *sums, int add,
                                ff_ahead *ahead) {
    (void)start;
    const int64_t size = points->size;
    for (int64_t from = 0; from < size; from += BATCH_SLICE, tile += BATCH_SLICE / FF_TALL * BATCH_GROUP)
        for (int64_t panel = 0; 2 * panel < halves; panel++)
            if (computed[panel])
                NAME_T(multiply)(tile, batch_dimensions, batch_points, weights + panel * BATCH_TILE * LANES, count,
                                 NAME_ST(batch_panel_sums)(sums, size, panel) + from * LANES, add,
                                 ff_min(BATCH_SLICE, size - from), ff_min(2, halves - 2 * panel), ahead);
}

/* Sums of a panel times a factor of each lane. */
static void NAME_ST(batch_scale_sums)(FF_TT *sums, int64_t size, const double *factors) {
    NAME_T(scale_lanes)(sums, size, factors, 0);
}

/* Add the sums of a panel to `size` rows of the state, of which the first is `to`: to = keep to + add from, lane by lane. */
static void NAME_ST(batch_merge_part)(const FF_TT *from, double *to, int64_t rows, int64_t size, int64_t first, int64_t lanes,
                                      const double *keep, const double *add, int is_first) {
    (void)rows, (void)first, (void)lanes;
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

#undef LANES
