/* Reads a problem from standard input and writes what the library makes of it, all in binary:
     int64  count, size, queries, paths (1 or one for each query), rows and columns of variances (0 where all share one)
     double data (count, size), masses as logs (count), source mean (size), variances (rows, columns),
            paths (paths, 7), x (queries, size)
   out: double velocity, target mean, source mean, score (queries, size); log density, density (queries);
        log_total of the moments (queries), where all points share one variance. */
#include <ff.h>
#include <stdio.h>
#include <stdlib.h>

static double *numbers(int64_t count) {
    double *values = malloc((size_t)(count + 1) * sizeof *values);
    if (!values || fread(values, sizeof *values, (size_t)count, stdin) != (size_t)count) exit(2);
    return values;
}

static void write_all(const double *values, int64_t count) {
    if (fwrite(values, sizeof *values, (size_t)count, stdout) != (size_t)count) exit(2);
}

static void require(int status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ff_status_text(status));
    exit(1);
}

int main(void) {
    int64_t head[6];
    if (ff_abi_version() != FF_ABI_VERSION || fread(head, sizeof *head, 6, stdin) != 6) return 2;
    const int64_t count = head[0], size = head[1], queries = head[2], paths = head[3];
    ff_data data = {.dtype = FF_FLOAT64, .scale = 1.0, .count = count, .size = size};
    data.data = numbers(count * size);
    data.log_mass = numbers(count);
    data.source_mean = numbers(size);
    if (head[4]) {
        data.variance_rows = head[4];
        data.variance_columns = head[5];
        data.variance = numbers(head[4] * head[5]);
    }
    ff_path *path = (ff_path *)numbers(paths * 7);
    const double *x = numbers(queries * size);

    ff_points *points = NULL;
    require(ff_points_create(&points, &data, ff_best_isa(), 2));
    double *result = malloc((size_t)(queries * size) * sizeof *result);
    if (!result) return 2;
    for (int quantity = FF_VELOCITY; quantity <= FF_DENSITY; quantity++) {
        require(ff_points_evaluate(points, path, paths > 1, x, FF_FLOAT64, queries, (ff_quantity)quantity, result, 2));
        write_all(result, quantity < FF_LOG_DENSITY ? queries * size : queries);
    }
    if (!head[4]) { /* the layer below, at the first path */
        const double variance =
            path->alpha * path->alpha * path->source_variance + path->beta * path->beta * path->target_variance;
        const ff_queries all = {.x = x, .dtype = FF_FLOAT64, .count = queries, .alpha = &path->alpha,
                                .beta = &path->beta, .variance = &variance};
        const ff_moments moments = {.log_total = result};
        require(ff_points_moments(points, &all, &moments, 2));
        write_all(result, queries);
    }
    ff_points_destroy(points);
    return 0;
}
