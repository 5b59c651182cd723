/* The two products of the batch kernel by matrices of bytes, for points that are stored as bytes.

   A factor in float32, a query or a weight, becomes a whole number of 24 bits times a scale of its own query, the largest
   of its values over 2^23 or 2^24; three bytes of it, the pieces, meet the stored bytes as they are, in sums of 32 bits
   that do not round. The centre enters these as a whole number too. So all that rounds is the factor, and three
   conversions: with u = 2^-24, a dot product is off by at most u (max |q_k| sum |mu'_k| + 4 |q . mu'|), less than the
   (size + 4) u |q| |mu'| that treatment.inc.h takes as the bound of vectors. Of weights w, each is off by at most u max w,
   and their total by no more.

   Sums of 32 bits hold 65,536 dimensions (MATRIX_LARGEST in ff_driver.c). Included once for each type of bytes FF_S. */

enum {
    NAME_ST(DEPTH) = 64, /* bytes in a row, which a step contracts over */
    NAME_ST(AHEAD) = 4   /* fours of points that are fetched before they are needed */
};
#define DEPTH NAME_ST(DEPTH)
#define AHEAD NAME_ST(AHEAD)

/* Two blocks of 16 rows of one factor, the points, times two pieces of the other: of piece i and block b it puts
   16 x 16 products at products[i] + b PIECES 256, of `steps` steps, the pieces' PIECES matrices apart. Pieces are rows of the
   result, or else its columns; a constant in the calls. Products begin at from[i], the same for every row, or at zero.

   Four registers of products and only two of factors, though one factor is then loaded again: two threads of a core share
   the registers behind those that programs name, and the fewer each holds, the more loads and products are under way at once.
   Ticks of a product, of such loops alone, all 16 threads of 8 cores at work (Xeon, 2.1 GHz; 28 without any loads, and 15 to
   22 for all of these where a core has one thread): by four and four registers 64 to 72, 53 to 57 where they also fetch the
   next step; by four and two 46 to 55, fetching 39 to 44; by six and two 62 and more; three products of one matrix
   with three others 43 to 46. */
static inline __attribute__((always_inline)) void NAME_S(multiply_two)(const unsigned char *y, const unsigned char *const pieces[2],
                                                                         int64_t steps, const int32_t *const from[2],
                                                                         int32_t *const products[2], int pieces_are_rows) {
    MATRIX_MEMORY_BARRIER();
    if (from) {
        MATRIX_LOAD(0, from[0], 0);
        MATRIX_LOAD(1, from[0], 0);
        MATRIX_LOAD(2, from[1], 0);
        MATRIX_LOAD(3, from[1], 0);
    } else {
        MATRIX_ZERO(0);
        MATRIX_ZERO(1);
        MATRIX_ZERO(2);
        MATRIX_ZERO(3);
    }
#define STEP(sum, block, piece)                                             \
    if (pieces_are_rows) FF_PASTE(MATRIX_u8_, FF_S)(sum, piece, block);     \
    else FF_PASTE(FF_PASTE(MATRIX_, FF_S), _i8)(sum, block, piece)
    const unsigned char *first = pieces[0], *second = pieces[1];
    for (int64_t step = 0; step < steps; step++) {
        MATRIX_LOAD(4, y, 64);
        MATRIX_LOAD(5, first, 64);
        STEP(0, 4, 5);
        matrix_fetch(y + 2 * MATRIX_BYTES);
        MATRIX_LOAD(4, y + MATRIX_BYTES, 64);
        STEP(1, 4, 5);
        matrix_fetch(y + 3 * MATRIX_BYTES);
        MATRIX_LOAD(5, second, 64);
        STEP(3, 4, 5);
        matrix_fetch(first + PIECES * MATRIX_BYTES);
        MATRIX_LOAD(4, y, 64);
        STEP(2, 4, 5);
        matrix_fetch(second + PIECES * MATRIX_BYTES);
        y += 2 * MATRIX_BYTES;
        first += PIECES * MATRIX_BYTES;
        second += PIECES * MATRIX_BYTES;
    }
#undef STEP
    MATRIX_STORE(0, products[0], 64);
    MATRIX_STORE(1, products[0] + PIECES * 256, 64);
    MATRIX_STORE(2, products[1], 64);
    MATRIX_STORE(3, products[1] + PIECES * 256, 64);
    MATRIX_MEMORY_BARRIER();
}

/* Two blocks of points times the three pieces of both halves of a panel: products[half][block][piece], 16 x 16 each. */
static inline __attribute__((always_inline)) void NAME_S(multiply_bytes)(const unsigned char *y,
                                                                           const unsigned char *const halves[2], int64_t steps,
                                                                           const int32_t *const from[2], int32_t *products,
                                                                           int pieces_are_rows) {
    for (int i = 0; i < 2 * PIECES; i += 2) {
        const unsigned char *pieces[2];
        const int32_t *begin[2];
        int32_t *to[2];
        for (int n = 0; n < 2; n++) {
            const int half = (i + n) / PIECES, piece = (i + n) % PIECES;
            pieces[n] = halves[half] + piece * MATRIX_BYTES;
            begin[n] = from ? from[half] + piece * MATRIX_ROWS : NULL;
            to[n] = products + (half * 2 * PIECES + piece) * 256;
        }
        NAME_S(multiply_two)(y, pieces, steps, from ? begin : NULL, to, pieces_are_rows);
    }
}

/* The q of a panel of queries: for each half of the lanes its scales, what its products begin at, -centre . q of each piece,
   and [step][piece][k of a step / 4][lane][k % 4]. */
typedef struct {
    float scale[MATRIX_ROWS];
    int32_t begin[PIECES][MATRIX_ROWS];
} NAME_ST(half_head);
static size_t NAME_ST(half_bytes)(int64_t size) {
    return sizeof(NAME_ST(half_head)) + (size_t)(batch_padded(size) / DEPTH) * PIECES * MATRIX_BYTES;
}
static size_t NAME_ST(batch_panel_bytes)(int64_t size) { return 2 * NAME_ST(half_bytes)(size); }

/* One lane of a panel: q = factor e. Returns the largest |q_k|, by which q rounds. */
static double NAME_ST(batch_put)(const ff_points *points, void *panel, int64_t lane, double factor, const double *e) {
    const int64_t size = points->size;
    unsigned char *half = (unsigned char *)panel + (size_t)(lane / MATRIX_ROWS) * NAME_ST(half_bytes)(size);
    NAME_ST(half_head) *head = (void *)half;
    const double most = 127.0 * 65536.0 + 127.0 * 256.0 + 127.0; /* which has pieces from -128 to 127 */
    double largest = 0.0;
    for (int64_t k = 0; k < size; k++) largest = fmax(largest, fabs(factor * e[k]));
    lane %= MATRIX_ROWS;
    head->scale[lane] = (float)(largest / most * (1.0 + 0x1p-23)); /* not below it when rounded */
    if (head->scale[lane] < 1e-37f) head->scale[lane] = 0.0f;
    const double unit = head->scale[lane] > 0.0f ? factor / (double)head->scale[lane] : 0.0;
    int32_t begin[PIECES] = {0};
    half += sizeof *head + (size_t)lane * 4;
    for (int64_t first = 0; first < size; first += DEPTH, half += PIECES * MATRIX_BYTES) {
        int32_t whole[DEPTH] = {0}, centre[DEPTH] = {0};
        int8_t digits[PIECES][DEPTH];
        const int64_t there = ff_min(DEPTH, size - first);
        for (int64_t k = 0; k < there; k++) {
            const double value = unit * e[first + k];
            whole[k] = (int32_t)(value + copysign(0.5, value));
            centre[k] = (int32_t)points->narrow_centre[first + k];
        }
        for (int k = 0; k < DEPTH; k++) { /* each from -128 to 127 */
            const int32_t rest = (whole[k] + 128) >> 8, high = (rest + 128) >> 8;
            digits[2][k] = (int8_t)(whole[k] - rest * 256);
            digits[1][k] = (int8_t)(rest - high * 256);
            digits[0][k] = (int8_t)high;
        }
        for (int piece = 0; piece < PIECES; piece++) {
            for (int k = 0; k < DEPTH; k++) begin[piece] -= digits[piece][k] * centre[k];
            for (int four = 0; four < DEPTH / 4; four++)
                memcpy(half + piece * MATRIX_BYTES + four * 64, digits[piece] + four * 4, 4);
        }
    }
    for (int piece = 0; piece < PIECES; piece++) head->begin[piece][lane] = begin[piece];
    return largest;
}

/* Points in rows: [point / 32][step][half of the 32][point][dimension], zeros beyond the last dimension. */
static void NAME_S(points_in_rows)(const ff_points *points, int64_t start, int64_t count, int64_t stop, unsigned char *tile) {
    const int64_t size = points->size, steps = batch_padded(size) / DEPTH;
    for (int64_t j = 0; j < ff_ceil_div(count, 2 * MATRIX_ROWS) * 2 * MATRIX_ROWS; j++) {
        unsigned char *to = tile + (j / 32 * steps * 2 + j / 16 % 2) * MATRIX_BYTES + j % 16 * 64;
        const FF_STORED *row = NAME_S(row)(points, ff_min(start + j, stop - 1));
        int64_t k = 0;
        for (; k + DEPTH <= size; k += DEPTH, to += 2 * MATRIX_BYTES) memcpy(to, row + k, 64);
        if (k == size) continue;
        memset(to, 0, 64);
        memcpy(to, row + k, (size_t)(size - k));
    }
}

/* logit[panel][point][lane] = mu'_point . q_lane of the points start..start+count-1. */
static void NAME_ST(batch_dots)(const ff_points *points, int64_t start, int64_t count, unsigned char *tile,
                                const void *queries, int64_t halves, float *logit, ff_ahead *ahead) {
    (void)ahead;
    const int64_t padded = batch_padded(points->size), steps = padded / DEPTH, most = matrix_group(padded);
    int32_t products[4 * PIECES * 256] __attribute__((aligned(64)));
    MATRIX_BEGIN();
    for (int64_t group = 0; group < count; group += most) {
        const int64_t rows = ff_min(most, count - group);
        NAME_S(points_in_rows)(points, start + group, rows, start + count, tile);
        for (int64_t panel = 0; 2 * panel < halves; panel++) {
            const unsigned char *q = (const unsigned char *)queries + (size_t)panel * NAME_ST(batch_panel_bytes)(points->size);
            const NAME_ST(half_head) *heads[2] = {(const void *)q, (const void *)(q + NAME_ST(half_bytes)(points->size))};
            const unsigned char *const pieces[2] = {(const void *)(heads[0] + 1), (const void *)(heads[1] + 1)};
            const int32_t *const begin[2] = {heads[0]->begin[0], heads[1]->begin[0]};
            for (int64_t j = 0; j < rows; j += 2 * MATRIX_ROWS) {
                NAME_S(multiply_bytes)(tile + j * padded, pieces, steps, begin, products, 0);
                float *to = logit + (panel * BATCH_TILE + group + j) * LANES;
                for (int half = 0; half < 2; half++) {
                    const f32v scale = f32_load(heads[half]->scale);
                    const int32_t *from = products + half * 2 * PIECES * 256;
                    for (int i = 0; i < 2 * MATRIX_ROWS; i++)
                        f32_store(to + i * LANES + half * MATRIX_ROWS,
                                  f32_mul(scale, f32_of_pieces(from + i / 16 * PIECES * 256 + i % 16 * 16)));
                }
            }
        }
    }
    MATRIX_END();
}

/* The pieces of half a panel's weights [point][lane], as rows: [step][piece][lane][point]; the scales of the lanes; and the
   totals of the pieces, [piece][lane]. */
static void NAME_ST(weight_pieces)(const float *weights, int64_t count, unsigned char *pieces, float *scales,
                                   int32_t *totals) {
    f32v largest = f32_set1(0.0f);
    for (int64_t j = 0; j < count; j++) largest = f32_max(largest, f32_load(weights + j * LANES));
    const f32v scale = f32_mul(largest, f32_set1(1.0f / 16777215.0f));
    f32_store(scales, scale);
    const f32v inverse = f32_where_above(f32_div(f32_set1(16777215.0f), largest), largest, f32_set1(1e-30f));
    i32v total[PIECES] = {i32_set1(0), i32_set1(0), i32_set1(0)};
    /* What rounding leaves of a weight goes to the next point that has one: many small weights are not lost together. */
    f32v carry = f32_set1(0.0f);
    for (int64_t first = 0; first < count; first += DEPTH, pieces += PIECES * MATRIX_BYTES) {
        i32v fours[PIECES][MATRIX_ROWS]; /* each lane's bytes of four points */
        for (int i = 0; i < MATRIX_ROWS; i++) {
            i32v whole[4];
            for (int point = 0; point < 4; point++) {
                const int64_t j = first + 4 * i + point;
                whole[point] = i32_set1(0);
                if (j >= count) continue;
                const f32v weight = f32_load(weights + j * LANES), due = f32_fma(inverse, weight, carry);
                whole[point] = i32_least(i32_rounded(f32_where_above(due, weight, f32_set1(0.0f))), 0xffffff);
                carry = f32_sub(due, f32_of_i32(whole[point]));
            }
            for (int piece = 0; piece < PIECES; piece++) {
                fours[piece][i] = i32_bytes(whole, 16 - 8 * piece);
                total[piece] = i32_add_bytes(total[piece], fours[piece][i]);
            }
        }
        for (int piece = 0; piece < PIECES; piece++) {
            i32_transpose(fours[piece]);
            for (int lane = 0; lane < MATRIX_ROWS; lane++)
                i32_store(pieces + piece * MATRIX_BYTES + lane * 64, fours[piece][lane]);
        }
    }
    for (int piece = 0; piece < PIECES; piece++) i32_store(totals + piece * MATRIX_ROWS, total[piece]);
}

/* Points in fours: [dimension / 64][half of the four blocks][step][block][point / 4][dimension of the block][point % 4]. Block b
   of 64 dimensions has those k with k % 16 / 4 = b. */
static void NAME_S(points_in_fours)(const ff_points *points, int64_t start, int64_t count, int64_t from, int64_t width,
                                    unsigned char *tile) {
    const int64_t steps = ff_ceil_div(count, DEPTH);
    for (int64_t j = 0; j < steps * DEPTH; j += 4) {
        const FF_STORED *row[4];
        for (int i = 0; i < 4; i++) row[i] = NAME_S(row)(points, start + ff_min(j + i, count - 1)) + from;
        unsigned char *to = tile + j / DEPTH * 2 * MATRIX_BYTES + j % DEPTH * 16;
        /* Rows lie too far apart for the processor to fetch the next ones by itself. */
        for (int i = 0; i < 4 && j + 4 * AHEAD < count - 4; i++) {
            const FF_STORED *next = NAME_S(row)(points, start + j + 4 * AHEAD + i) + from;
            for (int64_t k = 0; k < width; k += 64) __builtin_prefetch(next + ff_min(k, points->size - from - 1));
        }
        for (int64_t k = 0; k < width; k += DEPTH, to += 4 * steps * MATRIX_BYTES) {
            unsigned char ends[4][64];
            const void *at[4];
            const int64_t there = ff_min(DEPTH, points->size - from - k);
            for (int i = 0; i < 4; i++) {
                at[i] = there == DEPTH ? (const void *)(row[i] + k) : ends[i];
                if (there == DEPTH) continue;
                memset(ends[i], 0, 64);
                memcpy(ends[i], row[i] + k, (size_t)there);
            }
            store_fours(to, MATRIX_BYTES, 2 * steps * MATRIX_BYTES, at);
        }
    }
}

/* Sums over the points of weights[panel][point][lane] times mu', for the panels that are `computed`. */
static void NAME_ST(batch_sums)(const ff_points *points, int64_t start, int64_t count, unsigned char *tile, int64_t halves,
                                const unsigned char *computed, const float *weights, float *sums, int add,
                                ff_ahead *ahead) {
    (void)add, (void)ahead;
    const int64_t padded = batch_padded(points->size), steps = ff_ceil_div(count, DEPTH);
    unsigned char *pieces = tile + matrix_points_bytes(points->size);
    float scales[2 * BATCH_PANELS][MATRIX_ROWS];
    int32_t totals[2 * BATCH_PANELS][PIECES][MATRIX_ROWS], products[4 * PIECES * 256] __attribute__((aligned(64)));
    for (int64_t half = 0; half < ff_ceil_div(halves, 2) * 2; half++)
        if (computed[half / 2])
            NAME_ST(weight_pieces)(weights + half / 2 * BATCH_TILE * LANES + half % 2 * MATRIX_ROWS, count,
                                   pieces + half * steps * PIECES * MATRIX_BYTES, scales[half], totals[half][0]);
    MATRIX_BEGIN();
    for (int64_t from = 0; from < padded; from += MATRIX_COLUMNS) {
        const int64_t width = ff_min(MATRIX_COLUMNS, padded - from);
        NAME_S(points_in_fours)(points, start, count, from, width, tile);
        int32_t centre[MATRIX_COLUMNS / 16][16] = {{0}}; /* of the blocks of dimensions */
        for (int64_t k = 0; k < ff_min(width, points->size - from); k++)
            centre[k / 64 * 4 + k % 16 / 4][k % 64 / 16 * 4 + k % 4] = (int32_t)points->narrow_centre[from + k];
        for (int64_t panel = 0; 2 * panel < halves; panel++) {
            if (!computed[panel]) continue;
            const unsigned char *const own = pieces + panel * 2 * steps * PIECES * MATRIX_BYTES;
            const unsigned char *const both[2] = {own, own + steps * PIECES * MATRIX_BYTES};
            float *to = NAME_ST(batch_panel_sums)(sums, points->size, panel) + from;
            for (int64_t k = 0; k < width; k += DEPTH / 2) {
                NAME_S(multiply_bytes)(tile + k * steps * DEPTH, both, steps, NULL, products, 1);
                for (int i = 0; i < 4; i++) {
                    const int half = i / 2, block = i % 2;
                    const int64_t first = k / DEPTH * DEPTH + (k % DEPTH / 32 * 2 + block) * 4; /* of the block's dimensions */
                    const int32_t *own_centre = centre[k / 16 + block];
                    for (int lane = 0; lane < MATRIX_ROWS; lane++) {
                        const int32_t *at = products + i * PIECES * 256 + lane * 16;
                        const f32v sum = f32_of_pieces_less(at, own_centre, &totals[2 * panel + half][0][lane]);
                        f32_store_fours(to + (half * MATRIX_ROWS + lane) * padded + first,
                                        f32_mul(f32_set1(scales[2 * panel + half][lane]), sum));
                    }
                }
            }
        }
    }
    MATRIX_END();
}
#undef DEPTH
#undef AHEAD
