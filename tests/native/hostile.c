/* Arguments that no function may fall for, many threads on one handle, and a fork in the middle; with any argument of its own,
   the fork comes when the threads have ended. */
#include <ff.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            failures++; \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
        } \
    } while (0)
#define REFUSED(call) CHECK((call) == FF_BAD_ARGUMENT)

enum { COUNT = 3000, SIZE = 20, QUERIES = 40, THREADS = 8, ROUNDS = 20 };
static double data[COUNT][SIZE], x[QUERIES][SIZE], expected[QUERIES][SIZE];
static ff_points *points;
static ff_path path;

static int evaluate(double (*result)[SIZE], int num_threads) {
    return ff_points_evaluate(points, &path, 0, x, FF_FLOAT64, QUERIES, FF_VELOCITY, result, num_threads);
}

static void *caller(void *wrong) {
    double result[QUERIES][SIZE];
    for (int i = 0; i < ROUNDS; i++)
        if (evaluate(result, 2) || memcmp(result, expected, sizeof result)) *(int *)wrong = 1;
    return NULL;
}

static void join(const pthread_t *threads) {
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

static void many_threads(int is_amid) {
    pthread_t threads[THREADS];
    int wrong[THREADS] = {0};
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, caller, &wrong[i]) == 0);
    if (!is_amid) join(threads);
    const pid_t child = fork();
    if (child == 0) {
        int bad = 0;
        caller(&bad);
        _exit(bad);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    if (is_amid) join(threads);
    for (int i = 0; i < THREADS; i++) CHECK(!wrong[i]);
}

static void bad_handles(const ff_data good) {
    ff_points *made = NULL;
    ff_data bad = good;
    REFUSED(ff_points_create(NULL, &good, 0, 1));
    REFUSED(ff_points_create(&made, NULL, 0, 1));
    REFUSED(ff_points_create(&made, &good, -1, 1));
    REFUSED(ff_points_create(&made, &good, 1000, 1));
    REFUSED(ff_points_create(&made, &good, 0, 0));
    REFUSED(ff_points_create(&made, (bad = good, bad.data = NULL, &bad), 0, 1));
    REFUSED(ff_points_create(&made, (bad = good, bad.count = 0, &bad), 0, 1));
    REFUSED(ff_points_create(&made, (bad = good, bad.size = -1, &bad), 0, 1));
    REFUSED(ff_points_create(&made, (bad = good, bad.dtype = (ff_dtype)99, &bad), 0, 1));
    REFUSED(ff_points_create(&made, (bad = good, bad.scale = 0.0, &bad), 0, 1));
    REFUSED(ff_points_create(&made, (bad = good, bad.scale = NAN, &bad), 0, 1));
    CHECK(made == NULL);
    ff_points_destroy(NULL);
    CHECK(ff_points_small_batch(NULL) == 0);
}

static void bad_paths(void) {
    double result[QUERIES][SIZE], value = 7.0;
    result[0][0] = value;
    REFUSED(ff_linear_path(NULL, 0.5, 1.0, 0.0));
    REFUSED(ff_linear_path(&path, -0.1, 1.0, 0.0));
    REFUSED(ff_linear_path(&path, NAN, 1.0, 0.0));
    REFUSED(ff_linear_path(&path, 0.5, -1.0, 0.0));
    REFUSED(ff_linear_path(&path, 0.5, 1.0, INFINITY));
    const ff_path good = path;
    for (int i = 0; i < 7; i++) {
        double *numbers = (double *)&path;
        numbers[i] = NAN;
        REFUSED(evaluate(result, 1));
        path = good;
    }
    CHECK(ff_linear_path(&path, 1.0, 1.0, 0.0) == FF_OK);
    REFUSED(evaluate(result, 1));
    path = good;
    CHECK(result[0][0] == value);
}

static void bad_evaluations(void) {
    double r[QUERIES][SIZE];
    const ff_dtype f64 = FF_FLOAT64;
    REFUSED(ff_points_evaluate(NULL, &path, 0, x, f64, QUERIES, FF_VELOCITY, r, 1));
    REFUSED(ff_points_evaluate(points, NULL, 0, x, f64, QUERIES, FF_VELOCITY, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 2, x, f64, QUERIES, FF_VELOCITY, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, NULL, f64, QUERIES, FF_VELOCITY, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, x, FF_UINT8, QUERIES, FF_VELOCITY, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, x, f64, -1, FF_VELOCITY, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, x, f64, QUERIES, (ff_quantity)99, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, x, f64, QUERIES, (ff_quantity)-1, r, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, x, f64, QUERIES, FF_VELOCITY, NULL, 1));
    REFUSED(ff_points_evaluate(points, &path, 0, x, f64, QUERIES, FF_VELOCITY, r, 0));
    CHECK(ff_points_evaluate(points, &path, 0, x, f64, INT64_MAX, FF_VELOCITY, r, 1) == FF_NO_MEMORY);
    CHECK(ff_points_evaluate(points, &path, 0, x, f64, 0, FF_VELOCITY, r, 1) == FF_OK);

    ff_integrand f = {.points = points, .path = path, .quantity = FF_SCORE, .component = SIZE - 1};
    CHECK(isfinite(ff_integrand_value(SIZE, x[0], &f)));
    CHECK(isnan(ff_integrand_value(SIZE - 1, x[0], &f)));
    CHECK(isnan(ff_integrand_value(SIZE, NULL, &f)));
    CHECK(isnan(ff_integrand_value(SIZE, x[0], NULL)));
    f.component = SIZE;
    CHECK(isnan(ff_integrand_value(SIZE, x[0], &f)));
    f = (ff_integrand){.path = path};
    CHECK(isnan(ff_integrand_value(SIZE, x[0], &f)));
}

static void bad_moments(void) {
    double one = 0.5, total[QUERIES];
    const ff_queries good = {.x = x, .dtype = FF_FLOAT64, .count = QUERIES, .alpha = &one, .beta = &one,
                             .variance = &one};
    const ff_moments moments = {.log_total = total}, none = {0}, half = {.log_total = total, .mean = expected};
    ff_queries bad = good;
    CHECK(ff_points_moments(points, &good, &moments, 1) == FF_OK);
    REFUSED(ff_points_moments(NULL, &good, &moments, 1));
    REFUSED(ff_points_moments(points, NULL, &moments, 1));
    REFUSED(ff_points_moments(points, &good, NULL, 1));
    REFUSED(ff_points_moments(points, &good, &none, 1));
    REFUSED(ff_points_moments(points, &good, &half, 1));
    REFUSED(ff_points_moments(points, (bad = good, bad.x = NULL, &bad), &moments, 1));
    REFUSED(ff_points_moments(points, (bad = good, bad.alpha = NULL, &bad), &moments, 1));
    REFUSED(ff_points_moments(points, (bad = good, bad.stride = 3, &bad), &moments, 1));
    static double combination[QUERIES][SIZE];
    const ff_moments combined = {.log_total = total, .combination = combination, .of_mean = &one, .of_residual = &one};
    ff_moments wrong = combined;
    CHECK(ff_points_moments(points, &good, &combined, 1) == FF_OK);
    CHECK(ff_points_moments(points, &good, (wrong = combined, wrong.of_mean = NULL, &wrong), 1) == FF_OK);
    REFUSED(ff_points_moments(points, &good, (wrong = combined, wrong.of_residual = NULL, &wrong), 1));
    static double mean[QUERIES][SIZE], residual[QUERIES][SIZE], product[QUERIES][SIZE];
    wrong = combined, wrong.mean = mean, wrong.residual = residual;
    CHECK(ff_points_moments(points, &good, &wrong, 1) == FF_OK);
    wrong.trace = total;
    REFUSED(ff_points_moments(points, &good, &wrong, 1));
    wrong.combination = NULL;
    CHECK(ff_points_moments(points, &good, &wrong, 1) == FF_OK);
    static double factors[QUERIES];
    bad = good, bad.direction = x, bad.residual_factor = bad.gained_factor = bad.mean_factor = factors;
    wrong.trace = NULL, wrong.tilt = total, wrong.mean_product = product;
    CHECK(ff_points_moments(points, &bad, &wrong, 1) == FF_OK);
    wrong.combination = combination;
    REFUSED(ff_points_moments(points, &bad, &wrong, 1));
    REFUSED(ff_points_logits(points, &good, 0, 1, NULL, 1));
    REFUSED(ff_points_logits(points, &good, 0, COUNT + 1, total, 1));
    REFUSED(ff_points_logits(NULL, &good, 0, 1, total, 1));
}

int main(int count, char **arguments) {
    (void)arguments;
    CHECK(ff_abi_version() == FF_ABI_VERSION);
    CHECK(ff_isa_name(-1) == NULL && ff_isa_name(1000) == NULL && !ff_isa_runs(-1) && ff_isa_runs(ff_best_isa()));
    CHECK(ff_status_text(FF_OK) && ff_status_text(-1) && ff_status_text(1000));
    for (int i = 0; i < COUNT * SIZE; i++) data[0][i] = sin(i * 0.7) + cos(i * 0.013);
    for (int i = 0; i < QUERIES * SIZE; i++) x[0][i] = sin(i * 1.3);
    const ff_data description = {.data = data, .dtype = FF_FLOAT64, .scale = 1.0, .count = COUNT, .size = SIZE};
    bad_handles(description);
    CHECK(ff_linear_path(&path, 0.4, 1.0, 0.0) == FF_OK);
    CHECK(ff_points_create(&points, &description, ff_best_isa(), 2) == FF_OK);
    if (failures) return 1;
    CHECK(evaluate(expected, 1) == FF_OK);
    bad_paths();
    bad_evaluations();
    bad_moments();
    many_threads(count == 1);
    ff_points_destroy(points);
    return failures != 0;
}
