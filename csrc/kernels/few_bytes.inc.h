/* The dot products and sums of few queries against points that are stored as bytes, in whole numbers: half the instructions
   that float32 takes.

   Dot products. q becomes whole numbers of 29 bits and a sign, in units of the largest |q_k| over 2^29 - 2^15. The two digits
   of each meet the stored bytes in sums of 32 bits that do not round: all that rounds is q, by half a unit.

   Sums. Weights become whole numbers of units, in such a way that the running sum of weights is never off by more than half
   a unit: what one is rounded by, the next makes up for. Where weights do not follow the points in step, what n of them are
   rounded by is in the sum some 0.4 unit sqrt(n) times the spread of the points, and the sum itself is no less than some
   sqrt(sum of w^2) times that, where weights are nearly equal: the unit is FEW_UNIT of this root or half of that, for a
   relative error of 1e-6 to 2e-6 in a chunk of 1,024. Points are listed once for each of the two digits of their number that is
   not zero: most of them once where weights differ, those without weight not at all. FEW_TOGETHER listed points are summed
   without rounding before the sum goes to float32 and the centre is taken off. Those that do not fill such a group are
   pending until the next strip.

   The even bytes of a vector and the odd ones are vectors of 16 bits; the digits of q are in that order, and the sums in
   another one, as in them pairs of points are interleaved in each half of these. The last vector of a row ends where the
   row does, and has some dimensions that the one before has too: there the digits of q are zero, and the sums are the same.
   Included once for each type of bytes FF_S. */

#ifndef FF_FEW_BYTES
#define FF_FEW_BYTES
enum {
    FEW_BITS = 15,             /* of a digit */
    FEW_LONGEST = 120,         /* vectors in a sum of 32 bits: four products of 255 and 2^14 each, together below 2^31 */
    FEW_FETCHED = FF_LINE / FEW_BYTES /* vectors of a row in what is fetched at a time */
};

static const double FEW_UNIT = 0x1.8p-23;

static int64_t few_vectors(int64_t size) { return ff_ceil_div(size, FEW_BYTES); }
/* Where a vector of a row begins. */
static inline int64_t few_begin(int64_t vector, int64_t size) { return ff_min(vector * FEW_BYTES, size - FEW_BYTES); }
/* Which of its bytes has a place in the order of the sums, and in that of the digits of q. */
static inline int64_t few_sum_byte(int64_t place) {
    const int64_t quarter = place / F32_LANES, at = place % F32_LANES;
    return at / 4 * 16 + quarter % 2 * 8 + at % 4 * 2 + quarter / 2;
}
static inline int64_t few_digit_byte(int64_t place) {
    return place % (FEW_BYTES / 2) * 2 + place / (FEW_BYTES / 2);
}

/* The largest |e_k|. */
static double few_largest(const double *e, int64_t size) {
    double largest = 0.0;
    for (int64_t k = 0; k < size; k++) largest = fmax(largest, fabs(e[k]));
    return largest;
}

/* Instead of float32's: dot products are off by half a unit in each dimension, of |q|, and sums are a few times more exact. */
static roundoff few_whole_roundoff(roundoff u, const coefficients *c, const double *e, int64_t size) {
    u.dot = u.unit = c->norm > 0.0 ? 0x1p-30 * sqrt((double)size) * few_largest(e, size) / c->norm : 0x1p-30;
    u.close = 0.5;
    return u;
}

/* List the pending points of a query by the digits of their weights in units. */
static void few_list_pending(few_query *query, few_list *digit, double unit) {
    few_list *low = digit, *high = digit + 1;
    const double inverse = 1.0 / unit;
    double sum = query->rest * inverse;
    int64_t lows = 0, highs = 0;
    int before = 0;
    for (int64_t i = 0; i < query->pending; i++) {
        sum += query->weight[i] * inverse;
        const int rounded = (int)(sum + 0.5), weight = rounded - before;
        const int16_t digits[2] = {(int16_t)(weight & ((1 << FEW_BITS) - 1)), (int16_t)(weight >> FEW_BITS)};
        before = rounded;
        low->index[lows] = high->index[highs] = query->index[i];
        low->weight[lows] = digits[0];
        high->weight[highs] = digits[1];
        lows += digits[0] != 0;
        highs += digits[1] != 0;
    }
    low->count = lows;
    high->count = highs;
    query->rest = (sum - before) * unit;
    query->pending = 0;
}

/* Fetch `count` rows while twice as many are at work, vector by vector. The sums of a strip take about as long as its dot
   products, and each fetches half of the next strip: to the second-level cache, as the first does not hold two. */
INLINE void few_fetch(const void *const *rows, int count, int64_t vector) {
    FF_UNROLL
    for (int i = 0; i < count; i += FEW_FETCHED)
        __builtin_prefetch((const char *)rows[i + vector % FEW_FETCHED] + vector / FEW_FETCHED * FF_LINE, 0, 2);
}
#endif

#define LOAD_BYTES(p) FF_PASTE(bytes_load_, FF_S)(p)

/* The centre in the order of the sums, with what is added to a stored value as it is loaded. */
static void NAME_ST(few_whole_centre)(const ff_points *points, float *centre) {
    for (int64_t i = 0; i < few_vectors(points->size) * FEW_BYTES; i++) {
        const int64_t k = few_begin(i / FEW_BYTES, points->size) + few_sum_byte(i % FEW_BYTES);
        centre[i] = (float)(points->centre[k] + BYTES_BIAS(FF_S));
    }
}

/* q = factor e in digits, [vector][digit, low first][FEW_BYTES], and what its dot products begin at. */
static void NAME_ST(few_whole_put)(const ff_points *points, few_packed *p, double factor) {
    const int64_t size = points->size;
    const double largest = fabs(factor) * few_largest(p->e, size);
    int16_t *to = p->q;
    /* With room for the low digit to carry into the high one. A smaller q makes no difference to logits. */
    p->unit = largest > 1e-290 ? largest / (double)((1 << (2 * FEW_BITS - 1)) - (1 << FEW_BITS)) : 0.0;
    const double inverse = p->unit > 0.0 ? factor / p->unit : 0.0;
    int64_t begin = 0;
    for (int64_t vector = 0; vector < few_vectors(size); vector++, to += 2 * FEW_BYTES)
        for (int64_t place = 0; place < FEW_BYTES; place++) {
            const int64_t k = few_begin(vector, size) + few_digit_byte(place);
            const int64_t whole = k < vector * FEW_BYTES ? 0 : (int64_t)floor(p->e[k] * inverse + 0.5);
            const int64_t high = (whole + (1 << (FEW_BITS - 1))) >> FEW_BITS;
            to[place] = (int16_t)(whole - high * (1 << FEW_BITS));
            to[FEW_BYTES + place] = (int16_t)high;
            begin -= whole * ((int64_t)points->centre[k] + BYTES_BIAS(FF_S));
        }
    p->begin = (double)begin;
}

/* q.mu' of four points; meanwhile two rows are fetched. */
INLINE void NAME_ST(few_whole_dots)(const void *const row[4], const few_packed *p, int64_t size, const void *const ahead[2],
                                    double dots[4]) {
    const int16_t *q = p->q;
    const int64_t vectors = few_vectors(size);
    const f64v base = f64_set1(1 << FEW_BITS);
    f64v total[4];
    for (int i = 0; i < 4; i++) total[i] = f64_set1(0.0);
    for (int64_t vector = 0; vector < vectors;) {
        const int64_t stop = ff_min(vector + FEW_LONGEST, vectors);
        i32v low[4], high[4];
        for (int i = 0; i < 4; i++) low[i] = high[i] = i32_zero();
        for (; vector < stop; vector++, q += 2 * FEW_BYTES) {
            const int64_t k = few_begin(vector, size);
            i32v digit[4]; /* low of the even bytes and of the odd ones, high of these */
            FF_UNROLL
            for (int i = 0; i < 4; i++) digit[i] = i16_load(q + i * (FEW_BYTES / 2));
            few_fetch(ahead, 2, vector);
            FF_UNROLL
            for (int i = 0; i < 4; i++) {
                const i32v bytes = LOAD_BYTES((const FF_STORED *)row[i] + k), even = bytes_even(bytes), odd = bytes_odd(bytes);
                low[i] = i32_dot(i32_dot(low[i], even, digit[0]), odd, digit[1]);
                high[i] = i32_dot(i32_dot(high[i], even, digit[2]), odd, digit[3]);
            }
        }
        for (int i = 0; i < 4; i++)
            total[i] = f64_add(total[i], f64_add(f64_fma(base, f64_of_low_i32(high[i]), f64_of_low_i32(low[i])),
                                                 f64_fma(base, f64_of_high_i32(high[i]), f64_of_high_i32(low[i]))));
    }
    for (int i = 0; i < 4; i++) dots[i] = p->unit * (f64_sum(total[i]) + p->begin);
}

/* The dot products of points start..stop-1; meanwhile the second half of as many that follow is fetched. */
static void NAME_ST(few_whole_stream)(const ff_points *points, const few_packed *p, int64_t start, int64_t stop, double *dots) {
    const int64_t half = stop + (stop - start) / 2;
    for (int64_t j = start; j < stop; j += 4) {
        const void *row[4], *ahead[2];
        double four[4];
        NAME_ST(few_rows)(points, j, stop - 1, 4, row);
        NAME_ST(few_rows)(points, half + (j - start) / 2, points->count - 1, 2, ahead);
        NAME_ST(few_whole_dots)(row, p, points->size, ahead, four);
        for (int i = 0; i < 4 && j + i < stop; i++) dots[j + i - start] = four[i];
    }
}

/* Add listed points, FEW_TOGETHER of them, to the sums; meanwhile half as many rows are fetched. */
INLINE void NAME_ST(few_whole_add)(const ff_points *points, const int64_t *index, const int16_t *weight, double unit,
                                   const float *centre, const void *const *ahead, float *sums) {
    const int64_t size = points->size, vectors = few_vectors(size);
    const FF_STORED *row[FEW_TOGETHER];
    i32v pair[FEW_TOGETHER / 2]; /* the weights of two points */
    int all = 0;
    for (int i = 0; i < FEW_TOGETHER; i++) {
        row[i] = NAME_S(row)(points, index[i]);
        all += weight[i];
    }
    for (int i = 0; i < FEW_TOGETHER / 2; i++) pair[i] = i32_set1(weight[2 * i] | weight[2 * i + 1] << 16);
    const f32v total = f32_set1((float)all), units = f32_set1((float)unit);
    for (int64_t vector = 0; vector < vectors; vector++) {
        const int64_t k = few_begin(vector, size);
        i32v sum[4] = {i32_zero(), i32_zero(), i32_zero(), i32_zero()};
        few_fetch(ahead, FEW_TOGETHER / 2, vector);
        FF_UNROLL
        for (int i = 0; i < FEW_TOGETHER; i += 2) {
            const i32v one = LOAD_BYTES(row[i] + k), two = LOAD_BYTES(row[i + 1] + k), w = pair[i / 2];
            const i32v low = i16_pairs_low(one, two), high = i16_pairs_high(one, two);
            sum[0] = i32_dot(sum[0], bytes_even(low), w);
            sum[1] = i32_dot(sum[1], bytes_even(high), w);
            sum[2] = i32_dot(sum[2], bytes_odd(low), w);
            sum[3] = i32_dot(sum[3], bytes_odd(high), w);
        }
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            const int64_t at = vector * FEW_BYTES + i * F32_LANES;
            const f32v offset = f32_fnma(total, f32_load(centre + at), f32_of_i32(sum[i]));
            f32_store(sums + at, f32_fma(units, offset, f32_load(sums + at)));
        }
    }
}

/* Add the pending points of a query to its sums, as many of them as fill groups; meanwhile points from `next` on are fetched.
   If it is the end, all the same. */
static void NAME_ST(few_whole_sums)(const ff_points *points, const few_packed *p, few_query *query, few_list *lists,
                                    int64_t next, int is_end) {
    if (query->pending == 0) return;
    int exponent; /* a power of two: those that are pending again need not round again */
    frexp(FEW_UNIT * sqrt(query->part.second), &exponent);
    const double units[2] = {ldexp(1.0, exponent - 1), ldexp(1.0, exponent - 1 + FEW_BITS)};
    few_list_pending(query, lists, units[0]);
    for (int digit = 0; digit < 2; digit++) {
        few_list *list = lists + digit;
        for (; is_end && list->count % FEW_TOGETHER != 0; list->count++) {
            list->index[list->count] = list->index[list->count - 1];
            list->weight[list->count] = 0;
        }
        int64_t done = 0;
        for (; done + FEW_TOGETHER <= list->count; done += FEW_TOGETHER, next += FEW_TOGETHER / 2) {
            const void *ahead[FEW_TOGETHER / 2];
            NAME_ST(few_rows)(points, next, points->count - 1, FEW_TOGETHER / 2, ahead);
            NAME_ST(few_whole_add)(points, list->index + done, list->weight + done, units[digit], p->centre, ahead,
                                   query->narrow_sum);
        }
        for (; done < list->count; done++) {
            query->index[query->pending] = list->index[done];
            query->weight[query->pending++] = list->weight[done] * units[digit];
        }
    }
}

/* The last points of a query, and its sums in the order of the dimensions. */
static void NAME_ST(few_whole_end)(const ff_points *points, const few_packed *p, few_query *query, few_list *lists) {
    const float *sums = query->narrow_sum;
    NAME_ST(few_whole_sums)(points, p, query, lists, points->count, 1);
    for (int64_t vector = 0; vector < few_vectors(points->size); vector++, sums += FEW_BYTES) {
        double *to = query->sum + few_begin(vector, points->size);
        FF_UNROLL
        for (int place = 0; place < FEW_BYTES; place++) to[few_sum_byte(place)] = (double)sums[place];
    }
}
#undef LOAD_BYTES
