/* Variances that differ between points or directions, and moments of the second order. Lanes hold queries, all arithmetic
   is in float64 by residuals. Where variances differ by direction, each point is met in the axes of its own covariance.
   Covariances are formed about the mean of the chunk, and chunks merge by the law of total covariance: nothing cancels
   from one to the next. Included once for each storage type. */

#ifndef FF_GENERAL
#define FF_GENERAL
#define GL FF_LOW_LANES
enum {
    GENERAL_CHUNK = 252,             /* points of a chunk at most, a multiple of FF_ROWS */
    GENERAL_PANELS = 4,              /* panels of queries in a block */
    GENERAL_BYTES = 1 << 20,         /* of what a chunk keeps of each pair of point and direction */
    GENERAL_POINTS = 4               /* points that meet a panel at once in the distances */
};

/* The state of a panel, and what a chunk adds to it: scalars in rows of lanes, then vectors of `size` rows of lanes. */
enum { GAIN, TRACE, CROSS, GAINED_TRACE, TILT, GENERAL_SCALARS };
enum { MEAN, GAINED, MEAN_PRODUCT, GAINED_PRODUCT, GAIN_PRODUCT, GENERAL_VECTORS };

/* What a job asks for. */
typedef struct {
    int pointwise, by_direction, mean, trace, tangent;
    int vectors;               /* how many vectors the state holds */
    int place[GENERAL_VECTORS]; /* which of them a vector is, or -1 */
} general_plan;

static general_plan general_planned(const ff_job *job) {
    general_plan p = {.pointwise = job->points->data.variance != NULL, .mean = job->want_mean};
    p.by_direction = p.pointwise && job->points->data.variance_columns > 1;
    p.trace = job->result->trace != NULL;
    p.tangent = job->queries->direction != NULL;
    const int wanted[GENERAL_VECTORS] = {p.mean, p.mean && p.pointwise, p.tangent, p.tangent && p.pointwise,
                                         p.tangent && p.by_direction};
    for (int v = 0; v < GENERAL_VECTORS; v++) p.place[v] = wanted[v] ? p.vectors++ : -1;
    return p;
}
static size_t general_values(const ff_job *job) {
    return GENERAL_SCALARS + (size_t)general_planned(job).vectors * (size_t)job->points->size;
}
static double *general_vector(const general_plan *plan, double *values, int vector, int64_t size) {
    return values + (GENERAL_SCALARS + plan->place[vector] * size) * GL;
}

/* Points are kept in rows filled up with zeros. */
static int64_t general_padded(int64_t size) { return ff_ceil_div(size, FF_ROWS) * FF_ROWS; }

static int64_t general_chunk(const ff_points *points) {
    int64_t most = GENERAL_CHUNK;
    if (points->data.variance && points->data.variance_columns > 1) {
        const int64_t padded = general_padded(points->size);
        const int64_t values = padded * GL + (points->data.rotation ? padded * padded : 0);
        most = ff_max(1, ff_min(most, GENERAL_BYTES / (8 * values)));
    }
    const int64_t even = ff_ceil_div(points->count, ff_ceil_div(points->count, most));
    return most < FF_ROWS ? most : ff_ceil_div(even, FF_ROWS) * FF_ROWS;
}

/* A panel of queries, packed: their numbers, then e and, with a tangent, u in rows of lanes. Idle lanes repeat the last
   query. */
typedef struct {
    double beta[GL], variance[GL], slope[GL], gain_constant[GL], gain_slope[GL], base[GL];
    double near[GL], far[GL];                 /* factors of e in the two factors of a distance */
    double excess[GL];                        /* |e|^2 / (widest D_j) of a far query, else 0 */
    double residual_factor[GL], gained_factor[GL], mean_factor[GL];
    double along[GL];                         /* u.e */
    double determinant[GL], gain[GL];         /* by direction and the same for all points: sum log D_k, mean gamma_k */
    int any_far;
} general_head;

static size_t general_panel_bytes(const ff_job *job) {
    const general_plan plan = general_planned(job);
    /* e, u, and 1/D_k and gamma_k where they are the same for all points */
    const size_t panels = 1 + (size_t)plan.tangent + 2 * (size_t)plan.by_direction;
    return ff_aligned(sizeof(general_head)) + panels * ff_aligned((size_t)general_padded(job->points->size) * GL * 8);
}
static general_head *general_panel(const ff_job *job, int64_t query) {
    return (general_head *)((char *)job->packed + (size_t)(query / GL) * general_panel_bytes(job));
}
enum { ROWS_E, ROWS_INVERSE, ROWS_GAMMA, ROWS_U };
static double *general_rows(const ff_job *job, general_head *head, int which) {
    const general_plan plan = general_planned(job);
    const int at = which == ROWS_U && !plan.by_direction ? 1 : which;
    return (double *)((char *)head + ff_aligned(sizeof *head) +
                      (size_t)at * ff_aligned((size_t)general_padded(job->points->size) * GL * 8));
}
static size_t general_packed_bytes(const ff_job *job) {
    return (size_t)ff_ceil_div(job->queries->count, GL) * general_panel_bytes(job);
}

/* Scratch of a worker. */
typedef struct {
    double *tile;        /* mu', [point][padded] */
    double *turned;      /* Q_j^T mu', where there are rotations */
    double *rotation;    /* Q_j, [point][padded][padded] */
    double *log_mass, *own, *determinant, *inverse; /* of each point; the last two where all queries share a time */
    double *logit;       /* then weights, [point][lane] */
    double *gamma;       /* [point][lane]: gamma_j, or by direction its mean */
    double *psi;         /* [point][lane], about their mean */
    double *family;      /* weights times something, [point][lane] */
    double *gained;      /* by direction: gamma_jk r_k in the axes of the point, [point][k][lane] */
    double *rows[4];     /* vectors by lanes, for one point at a time */
    double *e;           /* one query */
    double *values;      /* what the chunk adds to the state, [panel] */
    int64_t start;       /* first point of the chunk */
    int halves;          /* vectors of the panel at work that have queries: the lanes of the other are left as they are */
    partial partials[GENERAL_PANELS * GL];
} general_scratch;

static size_t general_lay_out(const ff_job *job, general_scratch *s, char *base) {
    const ff_points *points = job->points;
    const general_plan plan = general_planned(job);
    const size_t chunk = (size_t)ff_ceil_div(general_chunk(points), FF_ROWS) * FF_ROWS;
    const size_t padded = (size_t)general_padded(points->size);
    const int turned = points->data.rotation != NULL;
    size_t at = ff_aligned(sizeof *s);
#define PART(field, count)                                \
    s->field = (double *)(base ? base + at : NULL);       \
    at += ff_aligned((size_t)(count) * sizeof(double))
    PART(tile, chunk * padded);
    PART(turned, turned ? chunk * padded : 0);
    PART(rotation, turned ? chunk * padded * padded : 0);
    PART(log_mass, chunk);
    PART(own, chunk);
    PART(determinant, chunk);
    PART(inverse, chunk);
    PART(logit, chunk * GL);
    PART(gamma, plan.pointwise ? chunk * GL : 0);
    PART(psi, plan.tangent ? chunk * GL : 0);
    PART(family, chunk * GL);
    PART(gained, plan.by_direction ? chunk * padded * GL : 0);
    for (int i = 0; i < 4; i++) {
        PART(rows[i], padded * GL);
    }
    PART(e, points->size);
    PART(values, GENERAL_PANELS * GL * general_values(job));
#undef PART
    return at;
}
static size_t general_scratch_bytes(const ff_points *points, const ff_job *job) {
    (void)points;
    general_scratch s;
    return general_lay_out(job, &s, NULL);
}

/* Whether all directions and points that vary are seen in one frame of axes: then far queries have a form of their own. */
static int general_one_frame(const ff_data *data) {
    return !data->rotation && (data->variance_columns <= 1 || data->variance_rows == 1);
}

/* Whether a query is far, as in centred_query, measured by the widest component in each direction; `terms` is
   sum_k e_k^2 / (2 D_k) of that. */
static int general_is_far(const ff_points *points, const double *e, double beta, double variance, double slope,
                          double *terms) {
    const ff_data *data = &points->data;
    double square = 0.0;
    *terms = 0.0;
    for (int64_t k = 0; k < points->size; k++) {
        const double widest = data->variance ? points->widest[data->variance_columns > 1 ? k : 0] : 0.0;
        *terms += 0.5 * e[k] * e[k] / (variance + slope * widest);
        square += e[k] * e[k];
    }
    return general_one_frame(data) && square > 4.0 * beta * beta * points->largest_square &&
           *terms > 10.0 * (double)points->size;
}

static void general_pack(const ff_job *job, int64_t query, int64_t count, void *scratch) {
    general_scratch *s = scratch;
    general_lay_out(job, s, scratch);
    const ff_points *points = job->points;
    const ff_queries *queries = job->queries;
    const ff_data *data = &points->data;
    const general_plan plan = general_planned(job);
    const int64_t size = points->size, padded = general_padded(size);
    for (int64_t q = query; q < query + ff_ceil_div(count, GL) * GL; q++) {
        const int64_t lane = q % GL, real = ff_min(q, query + count - 1), i = real * queries->stride;
        general_head *head = general_panel(job, q);
        double *e = general_rows(job, head, ROWS_E);
        if (lane == 0) head->any_far = 0;
        const coefficients c = centred_query(points, queries, real, s->e);
        head->beta[lane] = queries->beta[i];
        head->variance[lane] = queries->variance[i];
        head->slope[lane] = plan.pointwise ? queries->slope[i] : 0.0;
        head->gain_constant[lane] = plan.pointwise ? queries->gain_constant[i] : 0.0;
        head->gain_slope[lane] = plan.pointwise ? queries->gain_slope[i] : 0.0;
        for (int64_t k = 0; k < padded; k++) e[k * GL + lane] = k < size ? s->e[k] : 0.0;
        double terms;
        const int far = general_is_far(points, s->e, c.beta, head->variance[lane], head->slope[lane], &terms);
        head->any_far |= far;
        head->near[lane] = far ? 0.0 : 1.0;
        head->far[lane] = far ? 2.0 : 1.0;
        head->base[lane] = far ? -terms : 0.0;
        head->excess[lane] = far && !plan.by_direction ? 2.0 * terms : 0.0;
        if (plan.by_direction && general_one_frame(data)) {
            double *inverse = general_rows(job, head, ROWS_INVERSE), *gamma = general_rows(job, head, ROWS_GAMMA);
            head->determinant[lane] = head->gain[lane] = 0.0;
            for (int64_t k = 0; k < padded; k++) {
                const double own = data->variance[ff_min(k, size - 1)];
                const double variance = head->variance[lane] + head->slope[lane] * own;
                inverse[k * GL + lane] = 1.0 / variance;
                gamma[k * GL + lane] = (head->gain_constant[lane] + head->gain_slope[lane] * own) / variance;
                if (k >= size) continue;
                head->determinant[lane] += log(variance);
                head->gain[lane] += gamma[k * GL + lane] / (double)size;
            }
        }
        if (!plan.tangent) continue;
        double *u = general_rows(job, head, ROWS_U);
        head->along[lane] = 0.0;
        for (int64_t k = 0; k < padded; k++) {
            u[k * GL + lane] = k < size ? query_value(queries, queries->direction, real * size + k) : 0.0;
            if (k < size) head->along[lane] += u[k * GL + lane] * s->e[k];
        }
        head->residual_factor[lane] = queries->residual_factor[real];
        head->gained_factor[lane] = queries->gained_factor[real];
        head->mean_factor[lane] = queries->mean_factor[real];
    }
}

/* The vectors of a row of lanes that have queries, `halves` of them. */
#define FOR_HALVES for (int h = 0; h < halves; h++)
enum { GH = F64_LANES };

/* out[point][lane] = sum_k (near_k - beta mu'_k) (far_k - beta mu'_k). The last two arguments are constants in the
   calls. */
static inline __attribute__((always_inline)) void general_distances(const general_head *head, const double *e,
                                                                    const double *tile, int64_t points, int64_t size,
                                                                    double *out, int halves, int far) {
    const int64_t padded = general_padded(size);
    f64v beta[2], near[2], other[2];
    FF_UNROLL FOR_HALVES {
        beta[h] = f64_load(head->beta + h * GH);
        near[h] = f64_load(head->near + h * GH);
        other[h] = f64_load(head->far + h * GH);
    }
    for (int64_t j = 0; j < points; j += GENERAL_POINTS) {
        f64v sum[GENERAL_POINTS][2];
        const double *row[GENERAL_POINTS];
        FF_UNROLL
        for (int i = 0; i < GENERAL_POINTS; i++) {
            row[i] = tile + ff_min(j + i, points - 1) * padded;
            FF_UNROLL FOR_HALVES sum[i][h] = f64_set1(0.0);
        }
        for (int64_t k = 0; k < size; k++) {
            f64v all[2];
            FF_UNROLL FOR_HALVES all[h] = f64_load(e + k * GL + h * GH);
            FF_UNROLL
            for (int i = 0; i < GENERAL_POINTS; i++) {
                const f64v mu = f64_set1(row[i][k]);
                FF_UNROLL FOR_HALVES {
                    const f64v ek = all[h], r = f64_fnma(beta[h], mu, far ? f64_mul(near[h], ek) : ek);
                    sum[i][h] = f64_fma(r, far ? f64_fnma(beta[h], mu, f64_mul(other[h], ek)) : r, sum[i][h]);
                }
            }
        }
        for (int i = 0; i < GENERAL_POINTS && j + i < points; i++)
            FF_UNROLL FOR_HALVES f64_store(out + (j + i) * GL + h * GH, sum[i][h]);
    }
}

/* out[k][lane] (+)= sum_j y[j][k] q[j][lane] */
static void general_sums(const double *tile, const double *q, int64_t points, int64_t padded, int halves, double *out) {
    FF_PASTE3(multiply, f64, FF_ISA)(tile, ff_evenly(1), ff_evenly(padded), q, points, out, 0, padded, halves, NULL);
}

/* y[k][lane] = sum_m Q[m][k] x[m][lane], or with Q's transpose; added where asked for. */
static void general_turn(const double *rotation, const double *x, int64_t padded, int halves, int transpose, double *y,
                         int add) {
    const ff_stride rows = ff_evenly(transpose ? padded : 1), columns = ff_evenly(transpose ? 1 : padded);
    FF_PASTE3(multiply, f64, FF_ISA)(rotation, rows, columns, x, padded, y, add, padded, halves, NULL);
}

/* Logits of a panel where each point has one variance, or all share one. */
static void general_scalar_logits(const ff_job *job, general_scratch *s, general_head *head, int64_t points) {
    const general_plan plan = general_planned(job);
    const double size = (double)job->points->size;
    const double *e = general_rows(job, head, ROWS_E);
    const int halves = s->halves;
#define DISTANCES(halves, far) general_distances(head, e, s->tile, points, job->points->size, s->logit, halves, far)
    if (halves == 2 && head->any_far) DISTANCES(2, 1);
    else if (halves == 2) DISTANCES(2, 0);
    else if (head->any_far) DISTANCES(1, 1);
    else DISTANCES(1, 0);
#undef DISTANCES
    const int one_time = job->queries->stride == 0;
    const double widest = plan.pointwise ? job->points->widest[0] : 0.0;
    FOR_HALVES {
        const f64v variance = f64_load(head->variance + h * GH), slope = f64_load(head->slope + h * GH);
        const f64v constant = f64_load(head->gain_constant + h * GH), gain = f64_load(head->gain_slope + h * GH);
        const f64v excess = f64_load(head->excess + h * GH), half = f64_set1(0.5), whole = f64_set1(0.5 * size);
        for (int64_t j = 0; j < points; j++) {
            double *at = s->logit + j * GL + h * GH;
            const f64v own = f64_set1(s->own[j]), component = f64_fma(slope, own, variance);
            const f64v inverse = one_time ? f64_set1(s->inverse[j]) : f64_div(f64_set1(1.0), component);
            const f64v determinant = one_time ? f64_set1(s->determinant[j]) : f64_mul(whole, f64_log(component));
            /* |e|^2 (1/D_j - 1/D) of far queries, D being the widest */
            const f64v beyond = f64_mul(excess, f64_mul(slope, f64_set1(widest - s->own[j])));
            const f64v distance = f64_add(f64_load(at), beyond);
            f64_store(at, f64_sub(f64_fnma(f64_mul(half, inverse), distance, f64_set1(s->log_mass[j])), determinant));
            if (plan.pointwise)
                f64_store(s->gamma + j * GL + h * GH, f64_mul(f64_fma(gain, own, constant), inverse));
        }
    }
}

/* The same where variances differ by direction; keeps gamma_jk r_k in the axes of each point. */
static void general_directed_logits(const ff_job *job, general_scratch *s, general_head *head, int64_t points) {
    const ff_data *data = &job->points->data;
    const int64_t size = job->points->size, padded = general_padded(size);
    const int same = general_one_frame(data), halves = s->halves;
    const double *inverses = general_rows(job, head, ROWS_INVERSE), *gammas = general_rows(job, head, ROWS_GAMMA);
    for (int64_t j = 0; j < points; j++) {
        const double *e = general_rows(job, head, ROWS_E), *point = s->tile + j * padded;
        if (data->rotation) {
            general_turn(s->rotation + j * padded * padded, e, padded, halves, 0, s->rows[0], 0);
            e = s->rows[0];
            point = s->turned + j * padded;
        }
        const double *own = data->variance + (same ? 0 : (s->start + j) * size);
        double *gained = s->gained + j * padded * GL;
        memset(gained + size * GL, 0, (size_t)((padded - size) * GL) * sizeof *gained);
        FOR_HALVES {
            const f64v beta = f64_load(head->beta + h * GH), near = f64_load(head->near + h * GH);
            const f64v far = f64_load(head->far + h * GH);
            const f64v variance = f64_load(head->variance + h * GH), slope = f64_load(head->slope + h * GH);
            const f64v constant = f64_load(head->gain_constant + h * GH), gain = f64_load(head->gain_slope + h * GH);
            f64v distance = f64_set1(0.0), determinant = distance, total = distance;
            for (int64_t k = 0; k < size; k++) {
                const f64v ek = f64_load(e + k * GL + h * GH), mu = f64_set1(point[k]);
                const f64v r = f64_fnma(beta, mu, ek);
                const f64v square = f64_mul(f64_fnma(beta, mu, f64_mul(near, ek)), f64_fnma(beta, mu, f64_mul(far, ek)));
                f64v inverse, gamma;
                if (same) {
                    inverse = f64_load(inverses + k * GL + h * GH);
                    gamma = f64_load(gammas + k * GL + h * GH);
                } else {
                    const f64v component = f64_fma(slope, f64_set1(own[k]), variance);
                    inverse = f64_div(f64_set1(1.0), component);
                    gamma = f64_mul(f64_fma(gain, f64_set1(own[k]), constant), inverse);
                    determinant = f64_add(determinant, f64_log(component));
                    total = f64_add(total, gamma);
                }
                distance = f64_fma(square, inverse, distance);
                f64_store(gained + k * GL + h * GH, f64_mul(gamma, r));
            }
            if (same) determinant = f64_load(head->determinant + h * GH);
            const f64v mean = same ? f64_load(head->gain + h * GH) : f64_mul(total, f64_set1(1.0 / (double)size));
            f64_store(s->gamma + j * GL + h * GH, mean);
            f64_store(s->logit + j * GL + h * GH,
                      f64_fnma(f64_set1(0.5), f64_add(distance, determinant), f64_set1(s->log_mass[j])));
        }
    }
}

/* psi_j of a panel, short of the part of the centre. */
static void general_tilts(const ff_job *job, general_scratch *s, general_head *head, int64_t points) {
    const general_plan plan = general_planned(job);
    const int64_t size = job->points->size, padded = general_padded(size);
    const double *u = general_rows(job, head, ROWS_U);
    const int halves = s->halves;
    /* u.mu'; the tile is filled up with zero points */
    FF_PASTE3(multiply, f64, FF_ISA)(s->tile, ff_evenly(padded), ff_evenly(1), u, size, s->psi, 0, points, halves, NULL);
    for (int64_t j = 0; j < points; j++) {
        const double *turned = u;
        if (plan.by_direction && job->points->data.rotation) {
            general_turn(s->rotation + j * padded * padded, u, padded, halves, 0, s->rows[0], 0);
            turned = s->rows[0];
        }
        FOR_HALVES {
            double *at = s->psi + j * GL + h * GH;
            const f64v a = f64_load(head->residual_factor + h * GH), b = f64_load(head->gained_factor + h * GH);
            const f64v z = f64_load(at), r = f64_fnma(f64_load(head->beta + h * GH), z, f64_load(head->along + h * GH));
            f64v psi = f64_fma(f64_load(head->mean_factor + h * GH), z, f64_mul(a, r));
            if (plan.by_direction) {
                f64v gained = f64_set1(0.0);
                for (int64_t k = 0; k < size; k++)
                    gained = f64_fma(f64_load(turned + k * GL + h * GH),
                                     f64_load(s->gained + (j * padded + k) * GL + h * GH), gained);
                psi = f64_fma(b, gained, psi);
            } else if (plan.pointwise) {
                psi = f64_fma(b, f64_mul(f64_load(s->gamma + j * GL + h * GH), r), psi);
            }
            f64_store(at, psi);
        }
    }
}

/* average[lane] = sum_j weight_j values_j / total */
static void general_average(const double *weights, const double *values, const double *totals, int64_t points, int halves,
                            double *average) {
    FOR_HALVES {
        f64v sum = f64_set1(0.0);
        for (int64_t j = 0; j < points; j++)
            sum = f64_fma(f64_load(weights + j * GL + h * GH), f64_load(values + j * GL + h * GH), sum);
        f64_store(average + h * GH, f64_div(sum, f64_load(totals + h * GH)));
    }
}

static void general_scale(double *rows, int64_t count, const double *totals, int halves) {
    FOR_HALVES {
        const f64v inverse = f64_div(f64_set1(1.0), f64_load(totals + h * GH));
        for (int64_t k = 0; k < count; k++) f64_store(rows + k * GL + h * GH, f64_mul(inverse, f64_load(rows + k * GL + h * GH)));
    }
}

/* Averages by weights w_j of mu'_j and gamma_j r_j over the chunk, into vectors `mean` and `gained` of the values; the
   weights need not add up to one. */
static void general_vectors(const ff_job *job, general_scratch *s, general_head *head, const double *weights,
                            int64_t points, double *mean, double *gained) {
    const general_plan plan = general_planned(job);
    const int64_t size = job->points->size, padded = general_padded(size);
    const int halves = s->halves;
    general_sums(s->tile, weights, points, padded, halves, s->rows[0]);
    memcpy(mean, s->rows[0], (size_t)(size * GL) * sizeof *mean);
    if (!plan.pointwise) return;
    if (plan.by_direction) {
        memset(s->rows[1], 0, (size_t)(padded * GL) * sizeof(double));
        for (int64_t j = 0; j < points; j++) {
            const double *from = s->gained + j * padded * GL;
            double *to = job->points->data.rotation ? s->rows[2] : s->rows[1];
            FOR_HALVES {
                const f64v w = f64_load(weights + j * GL + h * GH);
                for (int64_t k = 0; k < padded; k++) {
                    const f64v part = f64_mul(w, f64_load(from + k * GL + h * GH));
                    double *at = to + k * GL + h * GH;
                    f64_store(at, job->points->data.rotation ? part : f64_add(part, f64_load(at)));
                }
            }
            if (job->points->data.rotation)
                general_turn(s->rotation + j * padded * padded, s->rows[2], padded, halves, 1, s->rows[1], 1);
        }
        memcpy(gained, s->rows[1], (size_t)(size * GL) * sizeof *gained);
        return;
    }
    /* sum w gamma (e - beta mu') */
    double total[GL];
    const double *e = general_rows(job, head, ROWS_E);
    FOR_HALVES {
        f64v sum = f64_set1(0.0);
        for (int64_t j = 0; j < points; j++) {
            const f64v w = f64_mul(f64_load(weights + j * GL + h * GH), f64_load(s->gamma + j * GL + h * GH));
            f64_store(s->family + j * GL + h * GH, w);
            sum = f64_add(sum, w);
        }
        f64_store(total + h * GH, sum);
    }
    general_sums(s->tile, s->family, points, padded, halves, s->rows[0]);
    FOR_HALVES {
        const f64v beta = f64_load(head->beta + h * GH), sum = f64_load(total + h * GH);
        for (int64_t k = 0; k < size; k++)
            f64_store(gained + k * GL + h * GH,
                      f64_fnma(beta, f64_load(s->rows[0] + k * GL + h * GH), f64_mul(sum, f64_load(e + k * GL + h * GH))));
    }
}

/* Traces of the covariances of mu'_j and gamma_j r_j about their averages over the chunk. */
static void general_traces(const ff_job *job, general_scratch *s, general_head *head, int64_t points,
                           const double *totals, double *values) {
    const general_plan plan = general_planned(job);
    const int64_t size = job->points->size, padded = general_padded(size);
    const int turned = plan.by_direction && job->points->data.rotation, halves = s->halves;
    const double *means = general_vector(&plan, values, MEAN, size), *e = general_rows(job, head, ROWS_E);
    const double *gains = plan.pointwise ? general_vector(&plan, values, GAINED, size) : NULL;
    f64v sums[3][2];
    for (int i = 0; i < 3; i++) FOR_HALVES sums[i][h] = f64_set1(0.0);
    if (turned) { /* copies filled up with zeros, for the rotations */
        memset(s->rows[2], 0, (size_t)(padded * GL) * sizeof(double));
        memset(s->rows[3], 0, (size_t)(padded * GL) * sizeof(double));
        memcpy(s->rows[2], means, (size_t)(size * GL) * sizeof(double));
        memcpy(s->rows[3], gains, (size_t)(size * GL) * sizeof(double));
    }
    for (int64_t j = 0; j < points; j++) {
        const double *mean = means, *gain = gains, *point = s->tile + j * padded;
        if (turned) {
            general_turn(s->rotation + j * padded * padded, s->rows[2], padded, halves, 0, s->rows[0], 0);
            general_turn(s->rotation + j * padded * padded, s->rows[3], padded, halves, 0, s->rows[1], 0);
            mean = s->rows[0];
            gain = s->rows[1];
            point = s->turned + j * padded;
        }
        FOR_HALVES {
            const f64v beta = f64_load(head->beta + h * GH);
            const f64v gamma = plan.pointwise ? f64_load(s->gamma + j * GL + h * GH) : f64_set1(0.0);
            f64v own = f64_set1(0.0), cross = own, gained = own;
            for (int64_t k = 0; k < size; k++) {
                const int64_t at = k * GL + h * GH;
                const f64v mu = f64_set1(point[k]), m = f64_sub(mu, f64_load(mean + at));
                own = f64_fma(m, m, own);
                if (!plan.pointwise) continue;
                const f64v r = plan.by_direction ? f64_load(s->gained + j * padded * GL + at)
                                                 : f64_mul(gamma, f64_fnma(beta, mu, f64_load(e + at)));
                const f64v g = f64_sub(r, f64_load(gain + at));
                cross = f64_fma(m, g, cross);
                gained = f64_fma(g, g, gained);
            }
            const f64v w = f64_load(s->logit + j * GL + h * GH);
            sums[0][h] = f64_fma(w, own, sums[0][h]);
            sums[1][h] = f64_fma(w, cross, sums[1][h]);
            sums[2][h] = f64_fma(w, gained, sums[2][h]);
        }
    }
    FOR_HALVES {
        const f64v total = f64_load(totals + h * GH);
        f64_store(values + TRACE * GL + h * GH, f64_div(sums[0][h], total));
        f64_store(values + CROSS * GL + h * GH, f64_div(sums[1][h], total));
        f64_store(values + GAINED_TRACE * GL + h * GH, f64_div(sums[2][h], total));
    }
}

/* Cov(mu', psi) and Cov(gamma r, psi), and E[gamma] u, of a chunk. psi becomes its weight times psi about its mean. */
static void general_products(const ff_job *job, general_scratch *s, general_head *head, int64_t points,
                             const double *totals, double *values) {
    const general_plan plan = general_planned(job);
    const int64_t size = job->points->size, padded = general_padded(size);
    const int halves = s->halves;
    general_average(s->logit, s->psi, totals, points, halves, values + TILT * GL);
    FOR_HALVES {
        const f64v tilt = f64_load(values + TILT * GL + h * GH);
        for (int64_t j = 0; j < points; j++) {
            double *at = s->psi + j * GL + h * GH;
            f64_store(at, f64_mul(f64_load(s->logit + j * GL + h * GH), f64_sub(f64_load(at), tilt)));
        }
    }
    double *mean = general_vector(&plan, values, MEAN_PRODUCT, size);
    double *gained = plan.pointwise ? general_vector(&plan, values, GAINED_PRODUCT, size) : NULL;
    general_vectors(job, s, head, s->psi, points, mean, gained);
    general_scale(mean, size, totals, halves);
    if (gained) general_scale(gained, size, totals, halves);
    /* What the weighted psi sum up to, zero but for rounding, times the averages. */
    for (int v = MEAN; v <= (plan.pointwise ? GAINED : MEAN); v++) {
        const double *average = general_vector(&plan, values, v, size);
        double *product = v == MEAN ? mean : gained;
        FOR_HALVES {
            f64v sum = f64_set1(0.0);
            for (int64_t j = 0; j < points; j++) sum = f64_add(sum, f64_load(s->psi + j * GL + h * GH));
            const f64v drift = f64_div(sum, f64_load(totals + h * GH));
            for (int64_t k = 0; k < size; k++) {
                const int64_t at = k * GL + h * GH;
                f64_store(product + at, f64_fnma(drift, f64_load(average + at), f64_load(product + at)));
            }
        }
    }
    if (!plan.by_direction) return;
    const ff_data *data = &job->points->data;
    const double *u = general_rows(job, head, ROWS_U), *gammas = general_rows(job, head, ROWS_GAMMA);
    double *product = general_vector(&plan, values, GAIN_PRODUCT, size);
    if (general_one_frame(data)) {
        for (int64_t i = 0; i < size * GL; i++) product[i] = gammas[i] * u[i];
        return;
    }
    memset(s->rows[1], 0, (size_t)(padded * GL) * sizeof(double));
    for (int64_t j = 0; j < points; j++) {
        const double *own = data->variance + (s->start + j) * size, *along = u;
        if (data->rotation) {
            general_turn(s->rotation + j * padded * padded, u, padded, halves, 0, s->rows[0], 0);
            along = s->rows[0];
        }
        double *to = data->rotation ? s->rows[2] : s->rows[1];
        if (data->rotation) memset(to, 0, (size_t)(padded * GL) * sizeof *to);
        FOR_HALVES {
            const f64v variance = f64_load(head->variance + h * GH), slope = f64_load(head->slope + h * GH);
            const f64v constant = f64_load(head->gain_constant + h * GH), gain = f64_load(head->gain_slope + h * GH);
            const f64v w = f64_load(s->logit + j * GL + h * GH);
            for (int64_t k = 0; k < size; k++) {
                const f64v lambda = f64_set1(own[k]);
                const f64v gamma = f64_div(f64_fma(gain, lambda, constant), f64_fma(slope, lambda, variance));
                double *at = to + k * GL + h * GH;
                f64_store(at, f64_fma(f64_mul(w, gamma), f64_load(along + k * GL + h * GH), f64_load(at)));
            }
        }
        if (data->rotation) general_turn(s->rotation + j * padded * padded, to, padded, halves, 1, s->rows[1], 1);
    }
    memcpy(product, s->rows[1], (size_t)(size * GL) * sizeof *product);
    general_scale(product, size, totals, halves);
}

static void general_panel_compute(const ff_job *job, general_scratch *s, int64_t start, int64_t points, int64_t query,
                                  int64_t lanes, double *values, partial *partials) {
    const general_plan plan = general_planned(job);
    const int64_t size = job->points->size;
    general_head *head = general_panel(job, query);
    const int halves = s->halves = lanes > GH ? 2 : 1;
    if (plan.by_direction) general_directed_logits(job, s, head, points);
    else general_scalar_logits(job, s, head, points);
    double largest[GL], totals[GL], first[GL], second[GL];
    for (int lane = 0; lane < lanes; lane++) {
        const int64_t without = left_out(job, query + lane, start, start + points);
        if (without >= 0) s->logit[(without - start) * GL + lane] = FF_LEFT_OUT;
    }
    if (plan.tangent) general_tilts(job, s, head, points);
    FOR_HALVES {
        f64v most = f64_set1(-1.7e308), total = f64_set1(0.0), one = total, two = total;
        for (int64_t j = 0; j < points; j++) most = f64_max(most, f64_load(s->logit + j * GL + h * GH));
        for (int64_t j = 0; j < points; j++) {
            double *at = s->logit + j * GL + h * GH;
            /* bounded, so that a weight of zero times it is zero */
            const f64v below = f64_max(f64_sub(f64_load(at), most), f64_set1(-1e4)), weight = f64_exp(below);
            f64_store(at, weight);
            total = f64_add(total, weight);
            one = f64_fma(weight, below, one);
            two = f64_fma(weight, weight, two);
        }
        f64_store(largest + h * GH, most);
        f64_store(totals + h * GH, total);
        f64_store(first + h * GH, one);
        f64_store(second + h * GH, two);
    }
    for (int lane = 0; lane < lanes; lane++)
        partials[lane] = (partial){largest[lane], totals[lane], first[lane], second[lane], head->base[lane]};
    if (!plan.mean) return;
    double *mean = general_vector(&plan, values, MEAN, size);
    double *gained = plan.pointwise ? general_vector(&plan, values, GAINED, size) : NULL;
    general_vectors(job, s, head, s->logit, points, mean, gained);
    general_scale(mean, size, totals, halves);
    if (gained) {
        general_scale(gained, size, totals, halves);
        general_average(s->logit, s->gamma, totals, points, halves, values + GAIN * GL);
    }
    if (plan.trace) general_traces(job, s, head, points, totals, values);
    if (plan.tangent) general_products(job, s, head, points, totals, values);
}

static void general_compute(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count,
                            void *scratch) {
    general_scratch *s = scratch;
    const size_t values = general_values(job);
    for (int64_t q = 0; q < count; q += GL)
        general_panel_compute(job, s, start, stop - start, query + q, ff_min(GL, count - q),
                              s->values + (size_t)q * values, s->partials + q);
}

/* to = keep to + add from, lane by lane, with the law of total covariance for what are covariances. */
static void general_merge_panel(const general_plan *plan, int64_t size, double *to, double *from, const double *keep,
                                const double *add, int halves) {
    FOR_HALVES {
        const f64v old = f64_load(keep + h * GH), new = f64_load(add + h * GH), both = f64_mul(old, new);
        const f64v tilt = f64_sub(f64_load(from + TILT * GL + h * GH), f64_load(to + TILT * GL + h * GH));
        f64v traces[3] = {f64_set1(0.0), f64_set1(0.0), f64_set1(0.0)};
        for (int64_t k = 0; k < size; k++) {
            f64v apart[2] = {f64_set1(0.0), f64_set1(0.0)};
            for (int v = 0; v < GENERAL_VECTORS; v++) {
                if (plan->place[v] < 0) continue;
                const int64_t at = (GENERAL_SCALARS + plan->place[v] * size + k) * GL + h * GH;
                const f64v a = f64_load(to + at), b = f64_load(from + at);
                f64v whole = f64_fma(old, a, f64_mul(new, b));
                if (v == MEAN || v == GAINED) apart[v] = f64_sub(b, a);
                else if (v == MEAN_PRODUCT || v == GAINED_PRODUCT)
                    whole = f64_fma(f64_mul(both, tilt), apart[v - MEAN_PRODUCT], whole);
                f64_store(to + at, whole);
            }
            traces[0] = f64_fma(apart[0], apart[0], traces[0]);
            traces[1] = f64_fma(apart[0], apart[1], traces[1]);
            traces[2] = f64_fma(apart[1], apart[1], traces[2]);
        }
        for (int i = 0; i < GENERAL_SCALARS; i++) {
            const int64_t at = i * GL + h * GH;
            f64v whole = f64_fma(old, f64_load(to + at), f64_mul(new, f64_load(from + at)));
            if (i >= TRACE && i <= GAINED_TRACE) whole = f64_fma(both, traces[i - TRACE], whole);
            f64_store(to + at, whole);
        }
    }
}

static void general_merge(const ff_job *job, int64_t start, int64_t stop, int64_t query, int64_t count, void *scratch) {
    (void)stop;
    general_scratch *s = scratch;
    const general_plan plan = general_planned(job);
    const size_t values = general_values(job);
    const int64_t at = query % job->block;
    double keep[GL], add[GL], *to = job->state.sum + (size_t)query * values, *from = s->values + (size_t)at * values;
    for (int lane = 0; lane < GL; lane++) {
        keep[lane] = 1.0, add[lane] = 0.0;
        if (lane >= count) continue;
        const partial *p = s->partials + at + lane;
        const double before = start == 0 ? 0.0 : job->state.total[query + lane];
        merge_scalars(&job->state, query + lane, p, start == 0, keep + lane, add + lane);
        keep[lane] *= before / job->state.total[query + lane];
        add[lane] *= p->total / job->state.total[query + lane];
    }
    if (!plan.mean) return;
    if (start == 0) memcpy(to, from, values * GL * sizeof *to);
    else general_merge_panel(&plan, job->points->size, to, from, keep, add, count > GH ? 2 : 1);
}

static void general_write(const ff_job *job, int64_t query, int64_t count, void *scratch) {
    general_scratch *s = scratch;
    general_lay_out(job, s, scratch);
    const ff_points *points = job->points;
    const ff_queries *queries = job->queries;
    const ff_moments *result = job->result;
    const general_plan plan = general_planned(job);
    const int64_t size = points->size;
    for (int64_t q = query; q < query + count; q++) {
        const double total = job->state.total[q];
        result->log_total[q] = job->state.base[q] + job->state.largest[q] + log(total);
        if (result->entropy) {
            result->entropy[q] = log(total) - job->state.first[q] / total;
            result->collision[q] = job->state.second[q] / (total * total);
        }
        if (!plan.mean) continue;
        double *values = job->state.sum + (size_t)(q / GL * GL) * general_values(job);
        const int64_t lane = q % GL;
        query_offset(points, queries, q, s->e);
        const double beta = queries->beta[q * queries->stride];
        const double *mean = general_vector(&plan, values, MEAN, size);
        for (int64_t k = 0; k < size; k++) {
            store_result(queries, result->mean, q * size + k, points->origin[k] + mean[k * GL + lane]);
            store_result(queries, result->residual, q * size + k, minus_product(s->e[k], beta, mean[k * GL + lane]));
        }
        void *const to[GENERAL_VECTORS] = {NULL, result->gained, result->mean_product, result->gained_product,
                                           result->gain_product};
        for (int v = GAINED; v < GENERAL_VECTORS; v++) {
            if (plan.place[v] < 0) continue;
            const double *vector = general_vector(&plan, values, v, size);
            for (int64_t k = 0; k < size; k++) store_result(queries, to[v], q * size + k, vector[k * GL + lane]);
        }
        if (plan.pointwise) result->gain[q] = values[GAIN * GL + lane];
        if (plan.trace) result->trace[q] = values[TRACE * GL + lane];
        if (plan.trace && plan.pointwise) {
            result->cross[q] = values[CROSS * GL + lane];
            result->gained_trace[q] = values[GAINED_TRACE * GL + lane];
        }
        if (!plan.tangent) continue;
        double centre = 0.0; /* the part of the centre in psi */
        for (int64_t k = 0; k < size; k++)
            centre += points->origin[k] * query_value(queries, queries->direction, q * size + k);
        result->tilt[q] = values[TILT * GL + lane] + queries->mean_factor[q] * centre;
        if (plan.pointwise && !plan.by_direction)
            for (int64_t k = 0; k < size; k++)
                store_result(queries, result->gain_product, q * size + k,
                             result->gain[q] * query_value(queries, queries->direction, q * size + k));
    }
}
#endif

static void NAME_S(general_begin)(const ff_job *job, int64_t start, int64_t stop, void *scratch) {
    general_scratch *s = scratch;
    general_lay_out(job, s, scratch);
    const ff_points *points = job->points;
    const ff_data *data = &points->data;
    const general_plan plan = general_planned(job);
    const int64_t size = points->size, padded = general_padded(size), count = stop - start;
    memset(s->tile, 0, (size_t)(ff_ceil_div(count, FF_ROWS) * FF_ROWS * padded) * sizeof(double));
    for (int64_t j = 0; j < count; j++) {
        const FF_STORED *row = NAME_S(row)(points, start + j);
        for (int64_t k = 0; k < size; k++) s->tile[j * padded + k] = data->scale * ((double)VALUE(row[k]) - points->centre[k]);
        s->log_mass[j] = log_mass(points, start + j);
    }
    if (plan.by_direction) {
        s->start = start;
        if (!data->rotation) return;
        for (int64_t j = 0; j < count; j++) {
            const double *from = data->rotation + (start + j) * size * size;
            double *to = s->rotation + j * padded * padded, *turned = s->turned + j * padded;
            memset(to, 0, (size_t)(padded * padded) * sizeof *to);
            memset(turned, 0, (size_t)padded * sizeof *turned);
            for (int64_t m = 0; m < size; m++) {
                memcpy(to + m * padded, from + m * size, (size_t)size * sizeof *to);
                for (int64_t k = 0; k < size; k++) turned[k] += from[m * size + k] * s->tile[j * padded + m];
            }
        }
        return;
    }
    const ff_queries *queries = job->queries;
    for (int64_t j = 0; j < ff_ceil_div(count, GH) * GH; j++) /* there is room for whole vectors, as rows fill cache lines */
        s->own[j] = plan.pointwise ? data->variance[start + ff_min(j, count - 1)] : 0.0;
    if (queries->stride != 0) return;
    /* By the operations of general_scalar_logits, so that a query at a time of its own gets the same. */
    const f64v variance = f64_set1(queries->variance[0]), whole = f64_set1(0.5 * (double)size);
    const f64v slope = f64_set1(plan.pointwise ? queries->slope[0] : 0.0);
    for (int64_t j = 0; j < count; j += GH) {
        const f64v component = f64_fma(slope, f64_load(s->own + j), variance);
        f64_store(s->inverse + j, f64_div(f64_set1(1.0), component));
        f64_store(s->determinant + j, f64_mul(whole, f64_log(component)));
    }
}

/* Logits of one query for the points start..stop-1, short of a constant of the query, where variances differ; scratch
   holds 3 `size` values. */
static void NAME_S(general_logits)(const ff_points *points, const ff_queries *queries, int64_t query, int64_t start,
                                   int64_t stop, double *logits, double *scratch) {
    const ff_data *data = &points->data;
    const int64_t size = points->size, i = query * queries->stride;
    const int by_direction = data->variance_columns > 1;
    const coefficients c = centred_query(points, queries, query, scratch);
    double *r = scratch + size, *turned = r + size, terms;
    const double shared = queries->variance[i], slope = queries->slope[i];
    const int far = general_is_far(points, scratch, c.beta, shared, slope, &terms);
    for (int64_t j = start; j < stop; j++) {
        const FF_STORED *row = NAME_S(row)(points, j);
        for (int64_t k = 0; k < size; k++) r[k] = scratch[k] - c.beta * ((double)VALUE(row[k]) - points->centre[k]);
        if (data->rotation) {
            const double *rotation = data->rotation + j * size * size;
            memset(turned, 0, (size_t)size * sizeof *turned);
            for (int64_t m = 0; m < size; m++)
                for (int64_t k = 0; k < size; k++) turned[k] += rotation[m * size + k] * r[m];
        }
        const double *from = data->rotation ? turned : r, *own = data->variance;
        if (data->variance_rows > 1) own += j * data->variance_columns;
        double distance = 0.0, determinant = 0.0;
        for (int64_t k = 0; k < size; k++) {
            const double variance = shared + slope * own[by_direction ? k : 0];
            double square = from[k] * from[k];
            if (far) { /* less |e|^2 / (2 D) of the widest */
                const double widest = points->widest[by_direction ? k : 0];
                const double b = c.beta * ((double)VALUE(row[k]) - points->centre[k]);
                square = b * (b - 2.0 * scratch[k]);
                square += slope * (widest - own[by_direction ? k : 0]) * scratch[k] * scratch[k] / (shared + slope * widest);
            }
            distance += square / variance;
            if (by_direction) determinant += log(variance);
            else if (k == 0) determinant = (double)size * log(variance);
        }
        logits[j - start] = log_mass(points, j) - 0.5 * (distance + determinant);
    }
}
