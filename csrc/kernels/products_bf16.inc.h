/* The two products of the batch kernel by matrices of bfloat16, for points that are stored as bfloat16 around zero.

   A float32 factor, a query or a weight, is the exact sum of three bfloat16 pieces of 8 bits each, cut off from the top.
   So each product of pieces and points is exact in float32, and what rounds are sums alone: at every step each matrix
   unit sums 16 pairs and adds them to what it has, in float32. Of `size` dimensions, with u = 2^-24, a dot product is
   off by at most (size/32 PIECES + 18) u sum |q_k mu'_k|, less than the (size + 4) u that treatment.inc.h takes as the
   bound of vectors. Numbers below 2^-126 count as zero there.

   Included once, for the storage type FF_S and the compute type f32. */

enum {
    MATRIX_DEPTH = 32, /* bfloat16 in a row, which a step contracts over */
    MATRIX = MATRIX_ROWS * MATRIX_DEPTH
};

/* Two blocks of 16 rows of one factor, the points, times two of the other, its pieces: out[i][j] is the sum over `steps`
   steps. The pieces are rows of the result, or else its columns; a constant in the calls. */
static inline __attribute__((always_inline)) void multiply_matrices(const ff_bf16 *y, const ff_bf16 *pieces,
                                                                      int64_t steps, float *out, int64_t stride,
                                                                      int pieces_are_rows) {
    MATRIX_MEMORY_BARRIER();
    MATRIX_ZERO(0);
    MATRIX_ZERO(1);
    MATRIX_ZERO(2);
    MATRIX_ZERO(3);
    for (int64_t step = 0; step < steps; step++, y += 2 * MATRIX) {
        MATRIX_LOAD(4, y, 64);
        MATRIX_LOAD(5, y + MATRIX, 64);
        matrix_fetch(y + 2 * MATRIX);
        matrix_fetch(y + 3 * MATRIX);
        for (int piece = 0; piece < PIECES; piece++, pieces += 2 * MATRIX) {
            MATRIX_LOAD(6, pieces, 64);
            MATRIX_LOAD(7, pieces + MATRIX, 64);
            matrix_fetch(pieces + PIECES * 2 * MATRIX);
            matrix_fetch(pieces + (PIECES * 2 + 1) * MATRIX);
            if (pieces_are_rows) {
                MATRIX_bf16_bf16(0, 6, 4);
                MATRIX_bf16_bf16(1, 6, 5);
                MATRIX_bf16_bf16(2, 7, 4);
                MATRIX_bf16_bf16(3, 7, 5);
            } else {
                MATRIX_bf16_bf16(0, 4, 6);
                MATRIX_bf16_bf16(1, 4, 7);
                MATRIX_bf16_bf16(2, 5, 6);
                MATRIX_bf16_bf16(3, 5, 7);
            }
        }
    }
    MATRIX_STORE(0, out, stride * 4);
    MATRIX_STORE(1, out + MATRIX_ROWS, stride * 4);
    MATRIX_STORE(2, out + MATRIX_ROWS * stride, stride * 4);
    MATRIX_STORE(3, out + MATRIX_ROWS * stride + MATRIX_ROWS, stride * 4);
    MATRIX_MEMORY_BARRIER();
}

/* The q of a panel of queries, laid out [step][piece][half of the lanes][k % 16][lane][k of a step / 16]. */
static size_t NAME_ST(batch_panel_bytes)(int64_t size) {
    return LANES * (size_t)batch_padded(size) * PIECES * sizeof(ff_bf16);
}

/* One lane of a panel: q = factor e. */
static double NAME_ST(batch_put)(const ff_points *points, void *panel, int64_t lane, double factor, const double *e) {
    const int64_t size = points->size;
    for (int64_t k = 0; k < batch_padded(size); k++) {
        const int64_t step = k / MATRIX_DEPTH, in_step = k % MATRIX_DEPTH;
        ff_bf16 *to = (ff_bf16 *)panel + (step * PIECES * 2 + lane / MATRIX_ROWS) * MATRIX +
                      (in_step % MATRIX_ROWS * MATRIX_ROWS + lane % MATRIX_ROWS) * 2 + in_step / MATRIX_ROWS;
        float rest = k < size ? (float)(factor * e[k]) : 0.0f;
        for (int piece = 0; piece < PIECES; piece++) {
            uint32_t bits;
            memcpy(&bits, &rest, sizeof bits);
            to[piece * 2 * MATRIX] = (ff_bf16)(bits >> 16);
            rest -= ff_float_of_bits(bits & 0xffff0000u);
        }
    }
    return 0.0;
}

/* mu' of 16 dimensions from k on; zeros beyond the last. */
static inline f32v NAME_S(sixteen)(const ff_points *points, const FF_STORED *row, int64_t k) {
    const float *centre = points->narrow_centre + k;
    if (k + F32_LANES <= points->size) return f32_sub(FF_LOAD_T(row + k), f32_load(centre));
    float values[F32_LANES] = {0};
    for (int64_t i = 0; k + i < points->size; i++) values[i] = VALUE(row[k + i]) - centre[i];
    return f32_load(values);
}

/* Points in rows: [point / 32][step][half of the 32][point][dimension, in pairs (k, k + 16)], zeros beyond the last. */
static void NAME_S(points_in_rows)(const ff_points *points, int64_t start, int64_t count, ff_bf16 *tile) {
    const int64_t steps = batch_padded(points->size) / MATRIX_DEPTH;
    const int64_t rows = ff_ceil_div(count, 2 * MATRIX_ROWS) * 2 * MATRIX_ROWS;
    for (int64_t j = 0; j < rows; j++) {
        ff_bf16 *to = tile + (j / 32 * steps * 2 + j / 16 % 2) * MATRIX + j % 16 * MATRIX_DEPTH;
        if (j >= count) {
            for (int64_t step = 0; step < steps; step++) memset(to + step * 2 * MATRIX, 0, MATRIX_DEPTH * sizeof *to);
            continue;
        }
        const FF_STORED *row = NAME_S(row)(points, start + j);
        for (int64_t step = 0, k = 0; step < steps; step++, k += MATRIX_DEPTH)
            f32_store_upper_halves(to + step * 2 * MATRIX, NAME_S(sixteen)(points, row, k),
                        NAME_S(sixteen)(points, row, k + MATRIX_ROWS));
    }
}

/* Points in pairs (j, j + 16) of rows: [dimension / 32][step][half of the 32][j][dimension][of the pair]. */
static void NAME_S(points_in_pairs)(const ff_points *points, int64_t start, int64_t count, int64_t from, int64_t width,
                                    ff_bf16 *tile) {
    const int64_t steps = ff_ceil_div(count, MATRIX_DEPTH);
    const f32v zero = f32_set1(0.0f);
    for (int64_t step = 0; step < steps; step++)
        for (int64_t i = 0; i < MATRIX_ROWS; i++) {
            const int64_t j = step * MATRIX_DEPTH + i, other = j + MATRIX_ROWS;
            const FF_STORED *low = NAME_S(row)(points, start + ff_min(j, count - 1));
            const FF_STORED *high = NAME_S(row)(points, start + ff_min(other, count - 1));
            for (int64_t k = 0; k < width; k += MATRIX_ROWS)
                f32_store_upper_halves(tile + ((k / 32 * steps + step) * 2 + k / 16 % 2) * MATRIX + i * MATRIX_DEPTH,
                            j < count ? NAME_S(sixteen)(points, low, from + k) : zero,
                            other < count ? NAME_S(sixteen)(points, high, from + k) : zero);
        }
}

/* logit[panel][point][lane] = mu'_point . q_lane of the points start..start+count-1. */
static void NAME_ST(batch_dots)(const ff_points *points, int64_t start, int64_t count, unsigned char *tile,
                                const void *queries, int64_t halves, float *logit, ff_ahead *ahead) {
    (void)ahead;
    const int64_t padded = batch_padded(points->size), steps = padded / MATRIX_DEPTH, most = matrix_group(2 * padded);
    ff_bf16 *const converted = (ff_bf16 *)tile;
    MATRIX_BEGIN();
    for (int64_t group = 0; group < count; group += most) {
        const int64_t rows = ff_min(most, count - group);
        NAME_S(points_in_rows)(points, start + group, rows, converted);
        for (int64_t panel = 0; 2 * panel < halves; panel++) {
            const ff_bf16 *q = (const ff_bf16 *)queries + panel * steps * PIECES * 2 * MATRIX;
            float *to = logit + (panel * BATCH_TILE + group) * LANES;
            for (int64_t j = 0; j < rows; j += 2 * MATRIX_ROWS)
                multiply_matrices(converted + j * padded, q, steps, to + j * LANES, LANES, 0);
        }
    }
    MATRIX_END();
}

/* The pieces of a panel's weights [point][lane], as rows: [step][piece][half of the lanes][lane][point, in pairs]. */
static void NAME_ST(weight_pieces)(const float *weights, int64_t count, ff_bf16 *pieces) {
    for (int64_t first = 0; first < count; first += MATRIX_DEPTH, pieces += PIECES * 2 * MATRIX)
        for (int half = 0; half < 2; half++) {
            f32v low[MATRIX_ROWS], high[MATRIX_ROWS];
            for (int i = 0; i < MATRIX_ROWS; i++) {
                const float *at = weights + (first + i) * LANES + half * F32_LANES;
                low[i] = first + i < count ? f32_load(at) : f32_set1(0.0f);
                high[i] = first + i + MATRIX_ROWS < count ? f32_load(at + MATRIX_ROWS * LANES) : f32_set1(0.0f);
            }
            f32_transpose(low);
            f32_transpose(high);
            for (int lane = 0; lane < MATRIX_ROWS; lane++)
                for (int piece = 0; piece < PIECES; piece++) {
                    f32_store_upper_halves(pieces + (piece * 2 + half) * MATRIX + lane * MATRIX_DEPTH, low[lane], high[lane]);
                    low[lane] = f32_sub(low[lane], f32_upper_halves(low[lane]));
                    high[lane] = f32_sub(high[lane], f32_upper_halves(high[lane]));
                }
        }
}

/* Sums over the points of weights[panel][point][lane] times mu', or these added, for the panels that are `computed`. */
static void NAME_ST(batch_sums)(const ff_points *points, int64_t start, int64_t count, unsigned char *tile, int64_t halves,
                                const unsigned char *computed, const float *weights, float *sums, int add,
                                ff_ahead *ahead) {
    const int64_t padded = batch_padded(points->size), steps = ff_ceil_div(count, MATRIX_DEPTH);
    ff_bf16 *const converted = (ff_bf16 *)tile, *pieces = (ff_bf16 *)(tile + matrix_points_bytes(points->size));
    (void)add, (void)ahead;
    for (int64_t panel = 0; 2 * panel < halves; panel++)
        if (computed[panel])
            NAME_ST(weight_pieces)(weights + panel * BATCH_TILE * LANES, count,
                                   pieces + panel * steps * PIECES * 2 * MATRIX);
    MATRIX_BEGIN();
    for (int64_t from = 0; from < padded; from += MATRIX_COLUMNS) {
        const int64_t width = ff_min(MATRIX_COLUMNS, padded - from);
        NAME_S(points_in_pairs)(points, start, count, from, width, converted);
        for (int64_t panel = 0; 2 * panel < halves; panel++) {
            float *to = NAME_ST(batch_panel_sums)(sums, points->size, panel) + from;
            for (int64_t k = 0; computed[panel] && k < width; k += 2 * MATRIX_ROWS)
                multiply_matrices(converted + k / 32 * steps * 2 * MATRIX, pieces + panel * steps * PIECES * 2 * MATRIX,
                                  steps, to + k, padded, 1);
        }
    }
    MATRIX_END();
}
