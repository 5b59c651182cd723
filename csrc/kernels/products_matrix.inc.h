/* What the two products of the batch kernel by matrices share: products_bytes.inc.h and products_bf16.inc.h. */
#ifndef FF_PRODUCTS
#define FF_PRODUCTS
enum {
    MATRIX_ROWS = 16,           /* rows of a matrix, and columns of a result; of 64 bytes each */
    MATRIX_BYTES = 64 * MATRIX_ROWS,
    PIECES = 3,                 /* of a float32 factor */
    BATCH_TILE = 1088,          /* points of a tile at most: the state is read and written once for each */
    BATCH_TILES = 1,            /* tiles of a chunk */
    BATCH_LEAST = 256,          /* points that a chunk has at least, where there are as many */
    BATCH_ROWS = 64,            /* which numbers of points and of dimensions are filled up to multiples of */
    BATCH_PANELS = 4,           /* panels of queries in a block */
    /* On 16 threads of a Xeon, of which two share a second-level cache of 2 MB, ms of 50,000 x 3,072 bytes and 64 queries, and
       of 60,000 x 784 and 128: 256 and 2^17 17.3 and 9.8; 128 and 2^17 18.0 and 10.1; 256 and 2^19 18.0 and 11.3. */
    MATRIX_COLUMNS = 256,       /* dimensions that are converted at a time for the sums */
    MATRIX_TILE_BYTES = 1 << 17 /* bytes that are converted at a time for the dot products */
};

static int64_t batch_padded(int64_t size) { return ff_ceil_div(size, BATCH_ROWS) * BATCH_ROWS; }

/* Points, a multiple of 32, of `bytes` each that are converted at a time for the dot products. */
static int64_t matrix_group(int64_t bytes) {
    return ff_min(BATCH_TILE, ff_max(1, MATRIX_TILE_BYTES / (2 * MATRIX_ROWS * bytes)) * 2 * MATRIX_ROWS);
}

/* A tile, in bytes: points as either product takes them, then the pieces of the weights of a block. */
static int64_t matrix_points_bytes(int64_t size) {
    const int64_t widest = 2 * batch_padded(size); /* of a point in bfloat16 */
    return ff_max(ff_max(matrix_group(widest) * widest, MATRIX_TILE_BYTES), BATCH_TILE * MATRIX_COLUMNS * 2);
}
static size_t batch_tile_values(int64_t size) {
    return (size_t)(matrix_points_bytes(size) + BATCH_TILE * PIECES * BATCH_PANELS * 2 * MATRIX_ROWS * 2);
}
#endif

#define LANES NAME_T(LANES)

typedef unsigned char NAME_ST(batch_value);

/* Each query is on its own in the state, so few are merged together; those are packed together whose pieces share lines. */
enum { NAME_ST(STATE_LANES) = 1, NAME_ST(PACKED) = MATRIX_ROWS, NAME_ST(MERGED) = 4 };

/* Nothing is made of the points before the products: each converts what it is about to use. */
static void NAME_ST(batch_make_tile)(const ff_points *points, int64_t start, int64_t count, unsigned char *tile) {
    (void)points, (void)start, (void)count, (void)tile;
}

/* Nor is a tile fetched ahead: a chunk has but one. */
static ff_ahead NAME_ST(batch_ahead)(const ff_points *points, int64_t start, int64_t stop, int64_t panels,
                                     int64_t families) {
    (void)points, (void)start, (void)stop, (void)panels, (void)families;
    return (ff_ahead){NULL, NULL, 0};
}

/* Where the sums of a panel begin: [lane][k]. */
static float *NAME_ST(batch_panel_sums)(float *sums, int64_t size, int64_t panel) {
    return sums + panel * batch_padded(size) * LANES;
}

/* A chunk is one tile, so the sums of its tiles are never brought to one scale. */
static void NAME_ST(batch_scale_sums)(float *sums, int64_t size, const double *factors) {
    (void)sums, (void)size, (void)factors;
}

/* Add the sums of some lanes of a panel to the state, of `rows` values for each query: to = keep to + add from. */
static void NAME_ST(batch_merge_part)(const float *from, double *to, int64_t rows, int64_t size, int64_t first, int64_t lanes,
                                      const double *keep, const double *add, int is_first) {
    from += first * batch_padded(size);
    for (int64_t lane = 0; lane < lanes; lane++, from += batch_padded(size), to += rows) {
        const f64v a = f64_set1(add[lane]), b = f64_set1(keep[lane]);
        int64_t k = 0;
        for (; k + F64_LANES <= size; k += F64_LANES) {
            const f64v part = f64_mul(a, f64_load_f32(from + k));
            f64_store(to + k, is_first ? part : f64_fma(b, f64_load(to + k), part));
        }
        for (; k < size; k++) to[k] = (is_first ? 0.0 : keep[lane] * to[k]) + add[lane] * (double)from[k];
    }
}

#if FF_PASTE(FF_IS_BYTE_, FF_S)
#include "products_bytes.inc.h"
#else
#include "products_bf16.inc.h"
#endif

#undef LANES
