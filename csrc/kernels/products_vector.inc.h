/* The two products of the batch kernel by vectors: elements of a tile of points are broadcast against two vectors of
   queries. Included once for each pair of storage type FF_S and compute type FF_T. */

#ifndef FF_PRODUCTS
#define FF_PRODUCTS
enum {
    BATCH_SLICE = 96,     /* dimensions of a slice of the tile: short sums round less, and 6 lines fill no cache set */
    BATCH_TILE = 252,     /* points of a tile at most */
    BATCH_TILES = 4,      /* tiles of a chunk at most: the state is read and written once for each chunk */
    BATCH_LEAST = 252,    /* points that a chunk has at least, where there are as many */
    BATCH_ROWS = FF_ROWS, /* which numbers of points of a tile are multiples of */
    BATCH_PANELS = F32_LANES == 16 ? 4 : 8 /* panels of queries in a block, for which a tile is made */
};

static int64_t batch_slices(int64_t size) { return ff_ceil_div(size, BATCH_SLICE); }
/* Dimensions of slice `slice`, filled up with zeros to a multiple of the microkernel's rows. */
static int64_t batch_width(int64_t size, int64_t slice) {
    const int64_t width = ff_min(BATCH_SLICE, size - slice * BATCH_SLICE);
    return ff_ceil_div(width, FF_ROWS) * FF_ROWS;
}
static int64_t batch_padded(int64_t size) { return batch_slices(size) * BATCH_SLICE; }
static size_t batch_tile_values(int64_t size) { return BATCH_TILE * (size_t)batch_padded(size); }
#endif

#define LANES NAME_T(LANES)

/* Elements of a tile, laid out [slice][point][BATCH_SLICE]. */
typedef FF_TT NAME_ST(batch_value);

/* Queries in the state are in panels of this many. */
enum { NAME_ST(STATE_LANES) = LANES };

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

/* What the points of a chunk are to both products, made once for it. */
static void NAME_ST(batch_make_tile)(const ff_points *points, int64_t start, int64_t count, FF_TT *tile) {
    const int64_t size = points->size, rows = ff_ceil_div(count, FF_ROWS) * FF_ROWS;
    /* Row by row, so that memory is read as one stream. */
    for (int64_t j = 0; j < rows; j++) {
        const FF_STORED *row = NAME_S(row)(points, start + ff_min(j, count - 1));
        for (int64_t slice = 0; slice < batch_slices(size); slice++) {
            const int64_t from = slice * BATCH_SLICE, filled = j < count ? ff_min(BATCH_SLICE, size - from) : 0;
            const FF_TT *centre = FF_CENTRE_T(points) + from;
            FF_TT *to = tile + (slice * BATCH_TILE + j) * BATCH_SLICE;
            int64_t k = 0;
            for (; k + FF_LANES_T <= filled; k += FF_LANES_T)
                T(store)(to + k, T(sub)(FF_LOAD_T(row + from + k), T(load)(centre + k)));
            for (; k < filled; k++) to[k] = (FF_TT)VALUE(row[from + k]) - centre[k];
            for (; k < batch_width(size, slice); k++) to[k] = 0;
        }
    }
}

/* logit[panel][point][lane] = mu'_point . q_lane of the points start..start+count-1. */
static void NAME_ST(batch_dots)(const ff_points *points, int64_t start, int64_t count, FF_TT *tile, const void *queries,
                                int64_t panels, FF_TT *logit) {
    (void)start;
    const int64_t size = points->size, padded = batch_padded(size);
    for (int64_t slice = 0; slice < batch_slices(size); slice++) {
        const int64_t width = ff_min(BATCH_SLICE, size - slice * BATCH_SLICE);
        for (int64_t panel = 0; panel < panels; panel++)
            NAME_T(multiply)(tile + slice * BATCH_TILE * BATCH_SLICE, BATCH_SLICE, 1,
                             (const FF_TT *)queries + (panel * padded + slice * BATCH_SLICE) * LANES, width,
                             logit + panel * BATCH_TILE * LANES, slice > 0, count);
    }
}

/* Where the sums of a panel begin: [k][lane]. */
static FF_TT *NAME_ST(batch_panel_sums)(FF_TT *sums, int64_t size, int64_t panel) {
    return sums + panel * batch_padded(size) * LANES;
}

/* Sums over the points of weights[panel][point][lane] times mu', or these added, for the panels that are `computed`. */
static void NAME_ST(batch_sums)(const ff_points *points, int64_t start, int64_t count, FF_TT *tile, int64_t panels,
                                const unsigned char *computed, const FF_TT *weights, FF_TT *sums, int add) {
    (void)start;
    const int64_t size = points->size;
    for (int64_t slice = 0; slice < batch_slices(size); slice++)
        for (int64_t panel = 0; panel < panels; panel++)
            if (computed[panel])
                NAME_T(multiply)(tile + slice * BATCH_TILE * BATCH_SLICE, 1, BATCH_SLICE,
                                 weights + panel * BATCH_TILE * LANES, count,
                                 NAME_ST(batch_panel_sums)(sums, size, panel) + slice * BATCH_SLICE * LANES, add,
                                 batch_width(size, slice));
}

/* Sums of a panel times a factor of each lane. */
static void NAME_ST(batch_scale_sums)(FF_TT *sums, int64_t size, const double *factors) {
    NAME_T(scale_lanes)(sums, size, factors, 0);
}

/* Add the sums of a panel to `rows` rows of the state, of which the first is `to`: to = keep to + add from, lane by lane. */
static void NAME_ST(batch_merge_panel)(const FF_TT *from, double *to, int64_t rows, int64_t size, int64_t lanes,
                                       const double *keep, const double *add, int is_first) {
    (void)rows, (void)lanes;
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
