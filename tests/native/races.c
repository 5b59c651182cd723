/* Every kernel by many threads of several callers at once, for ThreadSanitizer to watch; results must be those of one
   thread, bit for bit. */
#include <ff.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = 1300, SIZE = 19, LONG = 131, QUERIES = 75, CALLERS = 3, ROUNDS = 1, THREADS = 4 };

/* size and queries choose the kernel: for few dimensions and many, few queries and many; own variances the general one,
   where a trace is asked for. */
typedef struct {
    const char *name;
    ff_dtype stored, dtype;
    int64_t size, queries;
    int own, trace;
} problem;
static const problem problems[] = {
    {"low", FF_FLOAT32, FF_FLOAT32, 3, QUERIES, 0, 0},    {"low_few", FF_FLOAT64, FF_FLOAT64, 3, 2, 0, 0},
    {"few", FF_FLOAT32, FF_FLOAT32, LONG, 3, 0, 0},       {"batch", FF_FLOAT32, FF_FLOAT32, SIZE, QUERIES, 0, 0},
    {"batch", FF_UINT8, FF_FLOAT64, SIZE, QUERIES, 0, 0}, {"batch", FF_FLOAT32, FF_FLOAT32, SIZE, QUERIES, 1, 0},
    {"general", FF_FLOAT64, FF_FLOAT64, SIZE, QUERIES, 1, 1},
};
enum { PROBLEMS = sizeof problems / sizeof problems[0] };

typedef struct {
    double log_total[QUERIES], entropy[QUERIES], collision[QUERIES], gain[QUERIES], trace[QUERIES], cross[QUERIES],
        gained_trace[QUERIES];
    double mean[QUERIES * LONG], residual[QUERIES * LONG], gained[QUERIES * LONG];
} results;

static double stored[COUNT * LONG], variance[COUNT], x[QUERIES * LONG];
static float narrow_x[QUERIES * LONG];
static ff_points *points[PROBLEMS];
static results expected[PROBLEMS];
static const double alpha = 0.4, beta = 0.6, width = 0.2, slope = 0.36, one = 1.0, zero = 0.0;

static int evaluate(int number, results *to, int num_threads) {
    const problem *p = problems + number;
    const ff_queries queries = {.x = p->dtype == FF_FLOAT32 ? (void *)narrow_x : x, .dtype = p->dtype, .count = p->queries,
                                .alpha = &alpha, .beta = &beta, .variance = &width, .slope = &slope, .gain_constant = &one,
                                .gain_slope = &zero};
    memset(to, 0, sizeof *to);
    const ff_moments moments = {.log_total = to->log_total, .mean = to->mean, .residual = to->residual,
                                .entropy = to->entropy, .collision = to->collision, .gain = p->own ? to->gain : NULL,
                                .gained = p->own ? to->gained : NULL, .trace = p->trace ? to->trace : NULL,
                                .cross = p->trace ? to->cross : NULL, .gained_trace = p->trace ? to->gained_trace : NULL};
    return ff_points_moments(points[number], &queries, &moments, num_threads);
}

static void *caller(void *wrong) {
    results *own = malloc(sizeof *own);
    for (int i = 0; own && i < ROUNDS * PROBLEMS; i++)
        if (evaluate(i % PROBLEMS, own, THREADS) || memcmp(own, expected + i % PROBLEMS, sizeof *own)) {
            fprintf(stderr, "%s: not what one thread gives\n", problems[i % PROBLEMS].name);
            *(int *)wrong = 1;
        }
    *(int *)wrong |= !own;
    free(own);
    return NULL;
}

int main(void) {
    uint32_t state = 1; /* Knuth's generator, for numbers between -1 and 1 */
    for (int i = 0; i < QUERIES * LONG; i++) x[i] = narrow_x[i] = (float)((state = state * 1664525u + 1013904223u) / 0x1p31 - 1);
    for (int i = 0; i < COUNT; i++) variance[i] = 0.1 + i % 7 * 0.05;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = problems + i;
        void *values = malloc(sizeof stored); /* lives as long as the points */
        if (!values) return 2;
        for (int64_t k = 0; k < COUNT * p->size; k++) {
            const uint32_t bits = state = state * 1664525u + 1013904223u;
            if (p->stored == FF_FLOAT32) ((float *)values)[k] = (float)(bits / 0x1p31 - 1);
            else if (p->stored == FF_FLOAT64) ((double *)values)[k] = bits / 0x1p31 - 1;
            else ((uint8_t *)values)[k] = (uint8_t)(bits >> 24);
        }
        const ff_data data = {.data = values, .dtype = p->stored, .scale = p->stored == FF_UINT8 ? 1.0 / 128 : 1.0,
                              .count = COUNT, .size = p->size, .variance = p->own ? variance : NULL,
                              .variance_rows = p->own ? COUNT : 0, .variance_columns = p->own};
        if (ff_points_create(points + i, &data, 0, THREADS) || evaluate(i, expected + i, 1)) return 3;
    }
    pthread_t threads[CALLERS];
    int wrong[CALLERS] = {0}, any = 0;
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(threads + i, NULL, caller, wrong + i)) return 4;
    for (int i = 0; i < CALLERS; i++) any |= pthread_join(threads[i], NULL) || wrong[i];
    for (int i = 0; i < PROBLEMS; i++) ff_points_destroy(points[i]);
    return any;
}
