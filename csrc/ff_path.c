/* From moments to quantities, for callers without Python: the algebra of the first order (docs/theory.md).

   A quantity is the average over the posterior of a function of each component that is affine in its point and its
   residuals, so its coefficients are all that a path and a quantity amount to. */
#include <math.h>
#include <stdlib.h>

#include "ff_internal.h"

/* A component that is narrower has no finite reciprocals left of it (SMALLEST_COMPONENT of the Python side). */
static const double SMALLEST_COMPONENT = 1e-115;
/* Stands in for the source's part of the variance where alpha is zero, as the kernels divide by it. */
static const double NO_VARIANCE = 1e-120;
static const double LOG_2PI = 1.8378770664093454836;

int ff_best_isa(void) {
    int best = 0;
    for (int isa = 0; ff_isa_name(isa); isa++)
        if (ff_isa_runs(isa)) best = isa;
    return best;
}

int ff_linear_path(ff_path *path, double t, double source_variance, double target_variance) {
    if (!path || !(t >= 0.0 && t <= 1.0) || !(source_variance >= 0.0 && source_variance < INFINITY) ||
        !(target_variance >= 0.0 && target_variance < INFINITY))
        return FF_BAD_ARGUMENT;
    *path = (ff_path){1.0 - t, t, -1.0, 1.0, t - 1.0, source_variance, target_variance};
    return FF_OK;
}

/* A factor of r_j: residual + gained gamma_j. */
typedef struct {
    double residual, gained;
} factor;

/* mean mu_j + (residual + gained gamma_j) r_j + source m_i */
typedef struct {
    double mean;
    factor of;
    double source;
} affine;

/* What the kernels take of a path, in the order of ff_queries. */
enum { ALPHA, BETA, VARIANCE, SLOPE, GAIN_CONSTANT, GAIN_SLOPE, COEFFICIENTS };

static int is_finite_path(const ff_path *p) {
    return isfinite(p->alpha) && isfinite(p->beta) && !isnan(p->d_alpha) && isfinite(p->d_beta) &&
           isfinite(p->alpha_d_alpha) && p->source_variance >= 0.0 && isfinite(p->source_variance);
}

/* Three functions of D_j make all quantities: 1/D_j, s_fj/D_j and (alpha alpha' s_i + beta beta' s_fj)/D_j. */
typedef struct {
    factor inverse, share, rate;
} functions;

static int common_variance(const ff_path *p, double *coefficients, functions *result) {
    const double target = p->target_variance;
    const double variance = p->alpha * p->alpha * p->source_variance + p->beta * p->beta * target;
    if (!(target >= 0.0) || !(variance >= SMALLEST_COMPONENT && variance < INFINITY)) return FF_BAD_ARGUMENT;
    coefficients[VARIANCE] = variance;
    const double drift = p->alpha_d_alpha * p->source_variance + p->beta * p->d_beta * target;
    *result = (functions){{1.0 / variance, 0.0}, {target / variance, 0.0}, {drift / variance, 0.0}};
    return FF_OK;
}

/* Where points differ in variance the three are combinations of 1 and gamma_j, which is s_fj/D_j while all of the
   variance that the points add is at most the source's, and else 1/D_j: what is divided by is then never small. */
static int own_variances(const ff_path *p, double smallest, double largest, double *coefficients, functions *result) {
    const double source = p->alpha * p->alpha * p->source_variance, slope = p->beta * p->beta;
    if (!(source + slope * smallest >= SMALLEST_COMPONENT && source + slope * largest < INFINITY))
        return FF_BAD_ARGUMENT;
    const double drift = p->alpha_d_alpha * p->source_variance, growth = p->beta * p->d_beta;
    const int by_share = slope * largest <= source;
    coefficients[VARIANCE] = fmax(source, NO_VARIANCE);
    coefficients[SLOPE] = slope;
    coefficients[GAIN_CONSTANT] = by_share ? 0.0 : 1.0;
    coefficients[GAIN_SLOPE] = by_share ? 1.0 : 0.0;
    if (by_share)
        *result = (functions){{1.0 / source, -slope / source}, {0.0, 1.0},
                              {drift / source, growth - drift * slope / source}};
    else
        *result = (functions){{0.0, 1.0}, {1.0 / slope, -source / slope},
                              {growth / slope, drift - growth * source / slope}};
    return FF_OK;
}

static factor times(double number, factor f) { return (factor){number * f.residual, number * f.gained}; }

static affine form_of(ff_quantity quantity, const ff_path *p, const functions *f) {
    switch (quantity) {
        case FF_VELOCITY: return (affine){p->d_beta, f->rate, p->d_alpha};                       /* Fan 46 */
        case FF_TARGET_MEAN: return (affine){1.0, times(p->beta, f->share), 0.0};                /* Fan 19, 21 */
        case FF_SOURCE_MEAN: return (affine){0.0, times(p->alpha * p->source_variance, f->inverse), 1.0};
        default: return (affine){0.0, times(-1.0, f->inverse), 0.0};                             /* FF_SCORE */
    }
}

static int is_vector(ff_quantity quantity) { return quantity != FF_LOG_DENSITY && quantity != FF_DENSITY; }

static double value_at(const void *values, ff_dtype dtype, int64_t i) {
    return dtype == FF_FLOAT32 ? (double)((const float *)values)[i] : ((const double *)values)[i];
}

/* One call of ff_points_evaluate: per-path coefficients, and moments on the way to the result. */
typedef struct {
    double *coefficients; /* COEFFICIENTS rows of one value for each path */
    affine *forms;
    void *residual, *gained;
    double *number; /* log_total, or what is not used of it, and gain */
} workspace;

static int prepare(const ff_points *points, const ff_path *paths, int64_t count, ff_quantity quantity, workspace *w) {
    const ff_data *data = &points->data;
    double largest = 0.0;
    for (int64_t k = 0; data->variance && k < data->variance_columns; k++) largest = fmax(largest, points->widest[k]);
    for (int64_t i = 0; i < count; i++) {
        double own[COEFFICIENTS] = {paths[i].alpha, paths[i].beta};
        functions found;
        if (!is_finite_path(&paths[i])) return FF_BAD_ARGUMENT;
        const int status = data->variance ? own_variances(&paths[i], points->narrowest, largest, own, &found)
                                          : common_variance(&paths[i], own, &found);
        if (status) return status;
        for (int row = 0; row < COEFFICIENTS; row++) w->coefficients[row * count + i] = own[row];
        w->forms[i] = form_of(quantity, &paths[i], &found);
    }
    return FF_OK;
}

/* result holds E[mu_j] and becomes the quantity. */
static void combine(const ff_points *points, const workspace *w, int64_t stride, ff_dtype dtype, int64_t count,
                    void *result) {
    const double *source_mean = points->data.source_mean;
    for (int64_t q = 0; q < count; q++) {
        const affine form = w->forms[q * stride];
        for (int64_t k = 0; k < points->size; k++) {
            const int64_t at = q * points->size + k;
            double value = form.of.residual * value_at(w->residual, dtype, at);
            if (form.mean != 0.0) value += form.mean * value_at(result, dtype, at);
            if (w->gained && form.of.gained != 0.0) value += form.of.gained * value_at(w->gained, dtype, at);
            if (source_mean && form.source != 0.0) value += form.source * source_mean[k];
            if (dtype == FF_FLOAT32) ((float *)result)[at] = (float)value;
            else ((double *)result)[at] = value;
        }
    }
}

static int valid(const ff_points *points, const ff_path *paths, int64_t stride, const void *x, ff_dtype dtype,
                 int64_t count, ff_quantity quantity, const void *result, int num_threads) {
    return points && paths && (stride == 0 || stride == 1) && x && (dtype == FF_FLOAT32 || dtype == FF_FLOAT64) &&
           count >= 0 && (int)quantity >= FF_VELOCITY && (int)quantity <= FF_DENSITY && result && num_threads >= 1;
}

int ff_points_evaluate(const ff_points *points, const ff_path *paths, int64_t stride, const void *x, ff_dtype dtype,
                       int64_t count, ff_quantity quantity, void *result, int num_threads) {
    if (!valid(points, paths, stride, x, dtype, count, quantity, result, num_threads)) return FF_BAD_ARGUMENT;
    if (count == 0) return FF_OK;
    if (count > (int64_t)(PTRDIFF_MAX / 16 / sizeof(double)) / points->size) return FF_NO_MEMORY;

    const int vector = is_vector(quantity), own = vector && points->data.variance != NULL;
    const size_t paths_given = stride ? (size_t)count : 1, values = (size_t)count * (size_t)points->size;
    const size_t bytes = values * (dtype == FF_FLOAT32 ? sizeof(float) : sizeof(double));
    workspace w = {.coefficients = malloc(paths_given * COEFFICIENTS * sizeof(double)),
                   .forms = malloc(paths_given * sizeof(affine)),
                   .residual = vector ? malloc(bytes) : NULL,
                   .gained = own ? malloc(bytes) : NULL,
                   .number = vector ? malloc(2 * (size_t)count * sizeof(double)) : result};
    int status = FF_NO_MEMORY;
    if (w.coefficients && w.forms && (!vector || w.residual) && (!own || w.gained) && w.number) {
        status = prepare(points, paths, (int64_t)paths_given, quantity, &w);
        const double *rows[COEFFICIENTS];
        for (size_t row = 0; row < COEFFICIENTS; row++) rows[row] = w.coefficients + row * paths_given;
        const ff_queries queries = {.x = x, .dtype = dtype, .count = count, .stride = stride,
                                    .alpha = rows[ALPHA], .beta = rows[BETA], .variance = rows[VARIANCE],
                                    .slope = rows[SLOPE], .gain_constant = rows[GAIN_CONSTANT],
                                    .gain_slope = rows[GAIN_SLOPE]};
        const ff_moments moments = {.log_total = w.number,
                                    .mean = vector ? result : NULL,
                                    .residual = w.residual,
                                    .gain = own ? w.number + count : NULL,
                                    .gained = w.gained};
        if (!status) status = ff_points_moments(points, &queries, &moments, num_threads);
        if (!status && vector) combine(points, &w, stride, dtype, count, result);
        for (int64_t q = 0; !status && !vector && q < count; q++) {
            w.number[q] -= 0.5 * (double)points->size * LOG_2PI;
            if (quantity == FF_DENSITY) w.number[q] = exp(w.number[q]);
        }
    }
    free(w.coefficients);
    free(w.forms);
    free(w.residual);
    free(w.gained);
    if (vector) free(w.number);
    return status;
}

double ff_integrand_value(int n, double *x, void *integrand) {
    const ff_integrand *f = integrand;
    if (!f || !f->points || n != f->points->size) return NAN;
    const int vector = is_vector(f->quantity);
    if (vector && (f->component < 0 || f->component >= n)) return NAN;
    double number = NAN, *result = vector ? malloc((size_t)n * sizeof *result) : &number;
    if (!result) return NAN;
    if (ff_points_evaluate(f->points, &f->path, 0, x, FF_FLOAT64, 1, f->quantity, result, 1) == FF_OK && vector)
        number = result[f->component];
    if (vector) free(result);
    return number;
}
