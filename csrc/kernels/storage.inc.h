/* What every kernel does with points of one storage type, in float64: load mu', and the exact logit of one pair.
   Included once for each storage type, with FF_S its token. */

#define LOAD_F64 FF_PASTE3(f64, load, FF_S)

/* mu'_k = mu_k - centre_k of row `row`, for one vector of k. Exact for float32 data near their centre. */
static inline f64v NAME_S(offset)(const FF_STORED *row, const double *centre, int64_t k) {
    return f64_sub(LOAD_F64(row + k), f64_load(centre + k));
}

static inline const FF_STORED *NAME_S(row)(const ff_points *points, int64_t j) {
    return (const FF_STORED *)points->data.data + ff_place(points, j) * points->size;
}

/* The part of d_j from dimensions from..to-1: relative accuracy of a few roundings, however small it is. */
static inline double NAME_S(distance_part)(const ff_points *points, const double *e, const coefficients *c, int64_t j,
                                           int64_t from, int64_t to) {
    enum { L = F64_LANES };
    const FF_STORED *row = NAME_S(row)(points, j);
    const double *centre = points->centre;
    const f64v beta = f64_set1(c->beta);
    f64v sum[4] = {f64_set1(0.0), f64_set1(0.0), f64_set1(0.0), f64_set1(0.0)};
    double total = 0.0;
    int64_t k = from;
    if (!c->is_far) {
        for (; k + 4 * L <= to; k += 4 * L) {
            FF_UNROLL
            for (int i = 0; i < 4; i++) {
                const f64v r = f64_fnma(beta, NAME_S(offset)(row, centre, k + i * L), f64_load(e + k + i * L));
                sum[i] = f64_fma(r, r, sum[i]);
            }
        }
        for (; k + L <= to; k += L) {
            const f64v r = f64_fnma(beta, NAME_S(offset)(row, centre, k), f64_load(e + k));
            sum[0] = f64_fma(r, r, sum[0]);
        }
        for (; k < to; k++) {
            const double r = e[k] - c->beta * ((double)VALUE(row[k]) - centre[k]);
            total += r * r;
        }
    } else {
        for (; k + L <= to; k += L) {
            const f64v b = f64_mul(beta, NAME_S(offset)(row, centre, k)), ek = f64_load(e + k);
            sum[0] = f64_fma(b, f64_sub(b, f64_add(ek, ek)), sum[0]);
        }
        for (; k < to; k++) {
            const double b = c->beta * ((double)VALUE(row[k]) - centre[k]);
            total += b * (b - 2.0 * e[k]);
        }
    }
    return total + f64_sum(f64_add(f64_add(sum[0], sum[1]), f64_add(sum[2], sum[3])));
}

static inline double NAME_S(distance)(const ff_points *points, const double *e, const coefficients *c, int64_t j) {
    return NAME_S(distance_part)(points, e, c, j, 0, points->size);
}

/* sum[k] += weight[i] mu'_k(j[i]) for four points and k = from..to-1. */
static inline void NAME_S(accumulate4)(const ff_points *points, const int64_t *j, const double *weight, double *sum,
                                       int64_t from, int64_t to) {
    const FF_STORED *row[4];
    for (int i = 0; i < 4; i++) row[i] = NAME_S(row)(points, j[i]);
    const double *centre = points->centre;
    const f64v w[4] = {f64_set1(weight[0]), f64_set1(weight[1]), f64_set1(weight[2]), f64_set1(weight[3])};
    int64_t k = from;
    for (; k + F64_LANES <= to; k += F64_LANES) {
        f64v ck = f64_load(centre + k), s = f64_load(sum + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++) s = f64_fma(w[i], f64_sub(LOAD_F64(row[i] + k), ck), s);
        f64_store(sum + k, s);
    }
    for (; k < to; k++)
        for (int i = 0; i < 4; i++) sum[k] += weight[i] * ((double)VALUE(row[i][k]) - centre[k]);
}

/* sum[k] += sum_i weight[i] mu'_k(j[i]) for any number of points; j and weight have room for a multiple of four. */
static void NAME_S(accumulate)(const ff_points *points, int64_t count, int64_t *j, double *weight, double *sum) {
    count = fill_up_to_four(count, j, weight);
    for (int64_t from = 0; from < points->size; from += FF_SEGMENT)
        for (int64_t i = 0; i < count; i += 4)
            NAME_S(accumulate4)(points, j + i, weight + i, sum, from, ff_min(from + FF_SEGMENT, points->size));
}

static void NAME_S(squares)(const ff_points *points, int64_t start, int64_t stop, double *squares) {
    for (int64_t j = start; j < stop; j++) {
        const FF_STORED *row = NAME_S(row)(points, j);
        double sum = 0.0;
        for (int64_t k = 0; k < points->size; k++) {
            double offset = (double)VALUE(row[k]) - points->centre[k];
            sum += offset * offset;
        }
        squares[j - start] = sum;
    }
}

/* Logits of one query for the points start..stop-1, short of a constant of the query; scratch holds `size` values. */
static void NAME_S(logits)(const ff_points *points, const ff_queries *queries, int64_t query, int64_t start,
                           int64_t stop, double *logits, double *scratch) {
    const coefficients c = centred_query(points, queries, query, scratch);
    for (int64_t j = start; j < stop; j++)
        logits[j - start] = log_mass(points, j) - c.precision * NAME_S(distance)(points, scratch, &c, j);
}
#undef LOAD_F64
