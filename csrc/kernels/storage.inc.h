/* What every kernel does with points of one storage type, in float64: load mu', and the exact logit of one pair.
   Included once for each storage type, with FF_S its token (f32, f64). */

#define FF_STORED FF_PASTE(FF_S, _t)
#define LOAD_F64 FF_PASTE3(f64, load, FF_S)

/* mu'_k = mu_k - centre_k of row `row`, for one vector of k. Exact for float32 data near their centre. */
static inline f64v NAME_S(offset)(const FF_STORED *row, const double *centre, int64_t k) {
    return f64_sub(LOAD_F64(row + k), f64_load(centre + k));
}

static inline const FF_STORED *NAME_S(row)(const ff_points *points, int64_t j) {
    return (const FF_STORED *)points->data + j * points->size;
}

/* |e - beta mu'_j|^2 by residuals: relative accuracy of a few roundings, however small the distance. */
static inline double NAME_S(distance)(const ff_points *points, const double *e, double beta, int64_t j) {
    const FF_STORED *row = NAME_S(row)(points, j);
    const double *centre = points->centre;
    const int64_t size = points->size;
    const f64v b = f64_set1(beta);
    f64v sum0 = f64_set1(0.0), sum1 = f64_set1(0.0);
    int64_t k = 0;
    for (; k + 2 * F64_LANES <= size; k += 2 * F64_LANES) {
        f64v r0 = f64_fnma(b, NAME_S(offset)(row, centre, k), f64_load(e + k));
        f64v r1 = f64_fnma(b, NAME_S(offset)(row, centre, k + F64_LANES), f64_load(e + k + F64_LANES));
        sum0 = f64_fma(r0, r0, sum0);
        sum1 = f64_fma(r1, r1, sum1);
    }
    double sum = f64_sum(f64_add(sum0, sum1));
    for (; k < size; k++) {
        double r = e[k] - beta * ((double)row[k] - centre[k]);
        sum += r * r;
    }
    return sum;
}

/* The same for four points at once: e and the centre are loaded once for all, and four sums hide the latency. */
static inline void NAME_S(distance4)(const ff_points *points, const double *e, double beta, const int64_t *j,
                                     double *distances) {
    const FF_STORED *row[4];
    for (int i = 0; i < 4; i++) row[i] = NAME_S(row)(points, j[i]);
    const double *centre = points->centre;
    const int64_t size = points->size;
    const f64v b = f64_set1(beta);
    f64v sum[4] = {f64_set1(0.0), f64_set1(0.0), f64_set1(0.0), f64_set1(0.0)};
    int64_t k = 0;
    for (; k + F64_LANES <= size; k += F64_LANES) {
        f64v ek = f64_load(e + k), ck = f64_load(centre + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++) {
            f64v r = f64_fnma(b, f64_sub(LOAD_F64(row[i] + k), ck), ek);
            sum[i] = f64_fma(r, r, sum[i]);
        }
    }
    for (int i = 0; i < 4; i++) {
        distances[i] = f64_sum(sum[i]);
        for (int64_t l = k; l < size; l++) {
            double r = e[l] - beta * ((double)row[i][l] - centre[l]);
            distances[i] += r * r;
        }
    }
}

/* sum[k] += weight[i] mu'_k(j[i]) for four points. */
static inline void NAME_S(accumulate4)(const ff_points *points, const int64_t *j, const double *weight, double *sum) {
    const FF_STORED *row[4];
    for (int i = 0; i < 4; i++) row[i] = NAME_S(row)(points, j[i]);
    const double *centre = points->centre;
    const int64_t size = points->size;
    const f64v w[4] = {f64_set1(weight[0]), f64_set1(weight[1]), f64_set1(weight[2]), f64_set1(weight[3])};
    int64_t k = 0;
    for (; k + F64_LANES <= size; k += F64_LANES) {
        f64v ck = f64_load(centre + k), s = f64_load(sum + k);
        FF_UNROLL
        for (int i = 0; i < 4; i++) s = f64_fma(w[i], f64_sub(LOAD_F64(row[i] + k), ck), s);
        f64_store(sum + k, s);
    }
    for (; k < size; k++)
        for (int i = 0; i < 4; i++) sum[k] += weight[i] * ((double)row[i][k] - centre[k]);
}

/* sum[k] += sum_i weight[i] mu'_k(j[i]) for any number of points. */
static void NAME_S(accumulate)(const ff_points *points, int64_t count, const int64_t *j, const double *weight,
                               double *sum) {
    for (int64_t i = 0; i < count; i += 4) {
        int64_t index[4];
        double w[4];
        for (int l = 0; l < 4; l++) { /* the last group is filled up with zero weights */
            int64_t at = ff_min(i + l, count - 1);
            index[l] = j[at];
            w[l] = i + l < count ? weight[at] : 0.0;
        }
        NAME_S(accumulate4)(points, index, w, sum);
    }
}

/* distances[i] = |e - beta mu'_j|^2 for j = start + i. */
static void NAME_S(distances)(const ff_points *points, const double *e, double beta, int64_t start, int64_t stop,
                              double *distances) {
    int64_t j = start;
    for (; j + 4 <= stop; j += 4) {
        const int64_t index[4] = {j, j + 1, j + 2, j + 3};
        NAME_S(distance4)(points, e, beta, index, distances + (j - start));
    }
    for (; j < stop; j++) distances[j - start] = NAME_S(distance)(points, e, beta, j);
}

static void NAME_S(squares)(const ff_points *points, int64_t start, int64_t stop, double *squares) {
    for (int64_t j = start; j < stop; j++) {
        const FF_STORED *row = NAME_S(row)(points, j);
        double sum = 0.0;
        for (int64_t k = 0; k < points->size; k++) {
            double offset = (double)row[k] - points->centre[k];
            sum += offset * offset;
        }
        squares[j - start] = sum;
    }
}

/* Logits of one query for the points start..stop-1; scratch holds `size` values. */
static void NAME_S(logits)(const ff_points *points, const ff_queries *queries, int64_t query, int64_t start,
                           int64_t stop, double *logits, double *scratch) {
    const coefficients c = coefficients_of(points, queries, query);
    centred_query(points, queries, query, scratch);
    NAME_S(distances)(points, scratch, c.beta, start, stop, logits);
    for (int64_t j = start; j < stop; j++) {
        double *logit = logits + (j - start);
        *logit = log_mass(points, j) + c.log_scale - c.precision * *logit;
    }
}
#undef FF_STORED
#undef LOAD_F64
