/* Moments by one instruction set, named as the argument, for machines that only an emulator has.
   Standard input, in binary:
     int64  storage, dtype of x, count, size, queries, times (1 or one for each query), whether points have variances of
            their own, whether there is a direction
     double scale, offset
     data (count, size) as stored; with variances: double (count); double coefficients (3, or with variances 6, times)
     x (queries, size); with a direction: u (queries, size), double factors (3, queries)
   out, all as double: log_total, entropy, collision, trace, mean, residual; gain, gained; tilt, mean_product. */
#include <ff.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *values(int64_t count, size_t size) {
    void *read = malloc((size_t)count * size + 1);
    if (!read || fread(read, size, (size_t)count, stdin) != (size_t)count) exit(2);
    return read;
}

static void *room(int64_t count) {
    void *made = calloc((size_t)count + 1, sizeof(double));
    if (!made) exit(2);
    return made;
}

static void show(const void *result, ff_dtype dtype, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const double value = dtype == FF_FLOAT32 ? (double)((const float *)result)[i] : ((const double *)result)[i];
        if (fwrite(&value, sizeof value, 1, stdout) != 1) exit(2);
    }
}

int main(int arguments, char **argument) {
    static const size_t bytes[] = {4, 8, 2, 2, 1, 1};
    int isa = 0;
    while (arguments == 2 && ff_isa_name(isa) && strcmp(ff_isa_name(isa), argument[1]) != 0) isa++;
    if (arguments != 2 || !ff_isa_name(isa)) return 3;
    if (ff_best_isa() < isa) return 4;
    const int64_t *head = values(8, sizeof(int64_t));
    const double *affine = values(2, sizeof(double));
    const ff_dtype dtype = (ff_dtype)head[1];
    const int64_t count = head[2], size = head[3], queries = head[4], times = head[5];
    ff_data data = {.dtype = (ff_dtype)head[0], .scale = affine[0], .offset = affine[1], .count = count, .size = size};
    data.data = values(count * size, bytes[head[0]]);
    if (head[6]) {
        data.variance = values(count, sizeof(double));
        data.variance_rows = count;
        data.variance_columns = 1;
    }
    const double *coefficients = values((head[6] ? 6 : 3) * times, sizeof(double));
    ff_queries all = {.dtype = dtype, .count = queries, .stride = times > 1, .alpha = coefficients,
                      .beta = coefficients + times, .variance = coefficients + 2 * times};
    ff_moments moments = {.log_total = room(queries), .entropy = room(queries), .collision = room(queries),
                          .mean = room(queries * size), .residual = room(queries * size)};
    if (head[6]) {
        all.slope = coefficients + 3 * times;
        all.gain_constant = coefficients + 4 * times;
        all.gain_slope = coefficients + 5 * times;
        moments.gain = room(queries);
        moments.gained = room(queries * size);
    }
    all.x = values(queries * size, bytes[dtype]);
    if (head[7]) {
        all.direction = values(queries * size, bytes[dtype]);
        all.residual_factor = values(3 * queries, sizeof(double));
        all.gained_factor = all.residual_factor + queries;
        all.mean_factor = all.gained_factor + queries;
        moments.tilt = room(queries);
        moments.mean_product = room(queries * size);
        moments.trace = room(queries);
        if (head[6]) {
            moments.cross = room(queries);
            moments.gained_trace = room(queries);
            moments.gained_product = room(queries * size);
            moments.gain_product = room(queries * size);
        }
    }
    ff_points *points = NULL;
    int status = ff_points_create(&points, &data, isa, 2);
    if (!status) status = ff_points_moments(points, &all, &moments, 2);
    ff_points_destroy(points);
    if (status) {
        fprintf(stderr, "%s\n", ff_status_text(status));
        return 1;
    }
    show(moments.log_total, FF_FLOAT64, queries);
    show(moments.entropy, FF_FLOAT64, queries);
    show(moments.collision, FF_FLOAT64, queries);
    if (moments.trace) show(moments.trace, FF_FLOAT64, queries);
    show(moments.mean, dtype, queries * size);
    show(moments.residual, dtype, queries * size);
    if (moments.gain) show(moments.gain, FF_FLOAT64, queries);
    if (moments.gained) show(moments.gained, dtype, queries * size);
    if (moments.tilt) show(moments.tilt, FF_FLOAT64, queries);
    if (moments.mean_product) show(moments.mean_product, dtype, queries * size);
    return 0;
}
