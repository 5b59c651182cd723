/* The driver: cuts an evaluation in tasks, shares them out to threads, and merges in a fixed order.

   A task is one chunk of points for one group of blocks of queries. Tasks are handed out chunk by chunk, and the
   partial sums of a block are merged in the order of the chunks, whoever computed them: so results do not depend on
   the number of threads, and each point is read from memory once. A thread whose sums are early leaves them, and goes on
   in its second slot; whoever merges the chunk before takes them along. */
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "ff_internal.h"

int ff_abi_version(void) { return FF_ABI_VERSION; }

const char *ff_status_text(int status) {
    switch (status) {
        case FF_OK: return "success";
#define FF_ERROR(name, exception, text) \
    case FF_##name: return text;
#include "ff_errors.def"
#undef FF_ERROR
    }
    return "unknown status";
}

static const ff_target *const targets[] = {
#define FF_TARGET(isa) &ff_target_##isa,
#include FF_TARGETS
#undef FF_TARGET
};
enum { TARGETS = sizeof targets / sizeof targets[0] };

const char *ff_isa_name(int isa) { return isa >= 0 && isa < TARGETS ? targets[isa]->name : NULL; }
int ff_isa_runs(int isa) { return isa >= 0 && isa < TARGETS && ff_cpu_runs(targets[isa]->name); }

/* Points of up to this size go to the kernels for few dimensions: there the product with the points is cheaper than the
   exponential, and residuals in float64 cost little. Of 4,000 points in float32 on Zen 3, one thread, ms by these and by
   the batch kernel, 1,024 queries: d = 8 7.5 and 13.3, 10 12.6 and 13.3, 12 18.4 and 14.2, 16 27.3 and 13.4; 64 queries cross
   at the same place, one query at 12. At most LOW_SIZE, the size of their scratch arrays. */
enum { LOW_DIMENSIONS = 10 };
/* Dimensions of bytes, up to 255 times 127, whose products a sum of 32 bits holds. */
enum { MATRIX_LARGEST = 65536 };
/* The kernel of matrices that serves batches of these points in float32 arithmetic, or NULL. Matrices hold bytes as they
   are, in sums long enough for so many dimensions, and what is stored as bfloat16, but not its differences from a centre. */
static const ff_kernel *matrix_kernel(const ff_points *points) {
    const int exact = ff_is_byte(points->dtype) ? points->size <= MATRIX_LARGEST : points->centre_is_zero;
    return exact && points->matrix && points->matrix[points->dtype].compute ? &points->matrix[points->dtype] : NULL;
}

/* Few queries of many dimensions have a kernel of their own. It serves as many as take it no longer than half a panel of
   the batch kernel, or a full one if there are more: a number that grows with the dimensions. Time by it over time by half a
   panel, 4,000 to 60,000 points, 1 and 2 threads of Zen 5, AVX-512 and AVX2:
     float32, t = 0.1: 2 queries of 48 dimensions 1, of 64 0.8; 3 of 64 1.2, of 128 0.8 to 1; 4 of 128 1.0 to 1.3, of 192
     0.9 to 1.1, of 256 0.8 to 1.05; 5 of 384 1, of 784 and 3,072 0.75 to 0.9; 6 of these 0.9 to 1.2;
     float16: 5 of 784 0.6 and 0.8, 6 0.7 and 0.95;
     bytes: 3 of 100 0.8, of 127 0.6 to 0.7; 4 of 127 0.8 to 0.9, of 191 0.7 to 0.8; 5 of 256 1.0 and 1.25; 6 of 784 and
     3,072 0.6 to 0.7 and 0.7 to 0.95, 8 of them 0.8 to 0.9 and 1.0 to 1.25;
     float64: 2 of 24 to 127 0.7 to 1 for t = 0.1, and 0.5 to 0.6 for t = 0.9 and 0.99, when few points have weight and the
     few sum no others; 3 of 128 0.9 to 1.3, of 256 0.8 to 1.2; 4 of 384 1.0 and 1.6, of 3,072 0.9 and 1.1.
   Where matrices serve the batches, 4 are as far as it goes: of 60,000 x 784 bytes and 16 threads 4 queries took 0.95 of the
   time of 5, and of 20,000 x 3,072 0.67. */
enum { FEW_LONG = 512 };
static int64_t few_queries(const ff_points *points, ff_dtype compute) {
    const ff_target *target = points->target;
    const int64_t size = points->size;
    if (size <= LOW_DIMENSIONS) return target->low_few[points->dtype].block;
    if (compute == FF_FLOAT64) return ff_min(4, 2 + size / 128);
    if (size < FEW_LONG || matrix_kernel(points)) return ff_min(4, 1 + size / (ff_is_byte(points->dtype) ? 32 : 64));
    return points->dtype == FF_FLOAT32 ? 5 : target->few[points->dtype][compute].block;
}

int64_t ff_points_small_batch(const ff_points *points) {
    if (!points) return 0;
    const int64_t wide = few_queries(points, FF_FLOAT64);
    return points->dtype == FF_FLOAT64 ? wide : ff_max(wide, few_queries(points, FF_FLOAT32));
}

/* Arithmetic worth one more thread: about 20 microseconds, several times what waking one costs. */
static const double WORK_PER_THREAD = 2e5;

/* Packing a query, or writing its result, takes as long as PASSES multiply-adds for each value, and for PER_QUERY values more
   (digits: 3.7 ns a value, Xeon). It is shared out to AT_ONCE times as many threads as would be worth waking for it: those of
   the tasks between are. */
static const double PASSES = 32.0, PER_QUERY = 32.0, AT_ONCE = 4.0;

static int64_t threads_for(double work, int num_threads) {
    const double worth = work / WORK_PER_THREAD;
    return worth < 1.0 ? 1 : worth < num_threads ? (int64_t)worth : num_threads;
}

/* Preparation of a data set -------------------------------------------------------------------------------------- */

enum { PREPARE_ROWS = 256 };

typedef struct {
    ff_points *points;
    atomic_llong next;
} preparation;

/* The centre is the median, in each dimension, of points sampled evenly by mass: a few points far from all others do not
   move it, as they would the mean, and it needs no pass over the data. Of two in the middle it is the one nearer to zero:
   a cluster there has the smaller velocities, in which the rounding of offsets shows more. Where the data lie around
   zero, it is zero, which spares the kernels a subtraction: half their interquartile range, more robust than a standard
   deviation, is twice as long as the centre at least. */
enum { CENTRE_SAMPLE = 64 };

static int sample_points(const ff_points *points, int64_t *sample) {
    const double *log_mass = points->data.log_mass;
    double sum = 0.0;
    int count = 0;
    for (int64_t j = 0; j < points->count && count < CENTRE_SAMPLE; j++) {
        sum += log_mass ? exp(log_mass[j]) : 1.0 / (double)points->count;
        /* the next is wanted where the masses pass (count + 1/2) / 64 */
        while (count < CENTRE_SAMPLE && sum * CENTRE_SAMPLE > count + 0.5) sample[count++] = j;
    }
    if (count == 0) sample[count++] = 0; /* masses that round to less than 1/128 in all */
    return count;
}

static double stored_value(const ff_data *data, int64_t at) {
    switch (data->dtype) {
#define VALUE_OF(dtype, s) \
    case dtype: return (double)ff_value_##s(((const ff_##s *)data->data)[at]);
        VALUE_OF(FF_FLOAT32, f32)
        VALUE_OF(FF_FLOAT64, f64)
        VALUE_OF(FF_FLOAT16, f16)
        VALUE_OF(FF_BFLOAT16, bf16)
        VALUE_OF(FF_UINT8, u8)
        VALUE_OF(FF_INT8, i8)
#undef VALUE_OF
    }
    return NAN;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void find_centre(ff_points *points) {
    int64_t sample[CENTRE_SAMPLE];
    double values[CENTRE_SAMPLE];
    const int count = sample_points(points, sample);
    double square = 0.0, spread = 0.0;
    for (int64_t k = 0; k < points->size; k++) {
        for (int i = 0; i < count; i++) {
            values[i] = stored_value(&points->data, ff_place(points, sample[i]) * points->size + k);
        }
        qsort(values, (size_t)count, sizeof *values, ascending);
        const double low = values[(count - 1) / 2], high = values[count / 2];
        const double range = values[(3 * count) / 4] - values[count / 4];
        points->centre[k] = fabs(low) < fabs(high) ? low : high;
        square += points->centre[k] * points->centre[k];
        spread += 0.25 * range * range;
    }
    points->centre_is_zero = square <= 0.25 * spread;
    for (int64_t k = 0; k < points->size; k++) {
        if (points->centre_is_zero) points->centre[k] = 0.0;
        points->narrow_centre[k] = (float)points->centre[k];
        points->origin[k] = fma(points->data.scale, points->centre[k], points->data.offset);
    }
}

static void compute_squares(void *context, int worker) {
    (void)worker;
    preparation *p = context;
    const int64_t count = p->points->count;
    for (int64_t group; (group = atomic_fetch_add(&p->next, 1)) * PREPARE_ROWS < count;) {
        const int64_t start = group * PREPARE_ROWS, stop = ff_min(count, start + PREPARE_ROWS);
        p->points->target->squares[p->points->dtype](p->points, start, stop, p->points->square + start);
    }
}

static void prepare(ff_points *points, int num_threads) {
    const int threads = (int)threads_for((double)points->count * (double)points->size, num_threads);
    preparation p = {.points = points};
    find_centre(points);
    ff_parallel(threads, compute_squares, &p);
    double total = 0.0;
    for (int64_t j = 0; j < points->count; j++) {
        total += points->square[j];
        points->largest_square = fmax(points->largest_square, points->square[j]);
    }
    points->mean_square = total / (double)points->count;
    const ff_data *data = &points->data;
    for (int64_t i = 0; data->variance && i < data->variance_rows * data->variance_columns; i++) {
        double *widest = points->widest + i % data->variance_columns;
        *widest = fmax(*widest, data->variance[i]);
        points->narrowest = i == 0 ? data->variance[i] : fmin(points->narrowest, data->variance[i]);
    }
}

static int valid_data(const ff_data *data) {
    if (!data || !data->data || data->count < 1 || data->size < 1) return 0;
    if (data->dtype < FF_FLOAT32 || data->dtype > FF_INT8) return 0;
    if (!(fabs(data->scale) > 0.0 && fabs(data->scale) < INFINITY && fabs(data->offset) < INFINITY)) return 0;
    if (!data->variance) return !data->rotation;
    const int by_direction = data->variance_columns > 1;
    return (data->variance_rows == 1 || data->variance_rows == data->count) &&
           (data->variance_columns == 1 || data->variance_columns == data->size) && (by_direction || !data->rotation) &&
           (by_direction || data->variance_rows == data->count) && (!data->rotation || data->variance_rows == data->count);
}

int ff_points_create(ff_points **result, const ff_data *data, int isa, int num_threads) {
    if (!result || !valid_data(data) || num_threads < 1 || isa < 0 || isa >= TARGETS) return FF_BAD_ARGUMENT;
    if (!ff_isa_runs(isa)) return FF_UNSUPPORTED_ISA;
    ff_points *points = calloc(1, sizeof *points);
    if (!points) return FF_NO_MEMORY;
    *points = (ff_points){.data = *data,
                          .equal_log_mass = -log((double)data->count),
                          .centre = aligned_alloc(FF_ALIGN, ff_aligned((size_t)data->size * sizeof(double))),
                          .origin = aligned_alloc(FF_ALIGN, ff_aligned((size_t)data->size * sizeof(double))),
                          .narrow_centre = aligned_alloc(FF_ALIGN, ff_aligned((size_t)data->size * sizeof(float))),
                          .square = aligned_alloc(FF_ALIGN, ff_aligned((size_t)data->count * sizeof(double))),
                          .widest = calloc((size_t)data->size, sizeof(double)),
                          .count = data->count,
                          .size = data->size,
                          .dtype = data->dtype,
                          .target = targets[isa]->base ? targets[isa]->base : targets[isa],
                          .matrix = targets[isa]->base ? targets[isa]->matrix : NULL};
    if (!points->centre || !points->origin || !points->narrow_centre || !points->square || !points->widest) {
        ff_points_destroy(points);
        return FF_NO_MEMORY;
    }
    prepare(points, num_threads);
    *result = points;
    return FF_OK;
}

void ff_points_destroy(ff_points *points) {
    if (!points) return;
    free(points->centre);
    free(points->origin);
    free(points->narrow_centre);
    free(points->square);
    free(points->widest);
    free(points);
}

/* Evaluation ------------------------------------------------------------------------------------------------------ */

/* Data of such sizes have squares and products that float32 holds. */
static const double NARROWEST = 1e-30, WIDEST = 1e30;

static const ff_kernel *kernel_for(const ff_points *points, const ff_queries *queries, const ff_moments *result) {
    const ff_target *target = points->target;
    const int pointwise = points->data.variance != NULL;
    if ((pointwise && points->data.variance_columns > 1) || result->trace || queries->direction)
        return &target->general[points->dtype];
    if (points->size <= LOW_DIMENSIONS)
        return queries->count <= few_queries(points, FF_FLOAT64) ? &target->low_few[points->dtype] : &target->low[points->dtype];
    const int narrow = points->dtype != FF_FLOAT64 && queries->dtype == FF_FLOAT32 &&
                       points->largest_square < WIDEST && points->largest_square > NARROWEST;
    const ff_dtype compute = narrow ? FF_FLOAT32 : FF_FLOAT64;
    if (queries->count <= few_queries(points, compute)) return &target->few[points->dtype][compute];
    const ff_kernel *matrix = narrow ? matrix_kernel(points) : NULL;
    return matrix ? matrix : &target->batch[points->dtype][compute];
}

/* A thread's scratch, which is taken from the beginning of a chunk's computation until all of it is merged. Two for each
   thread, but one where there is nobody to wait for, or where two for all would be more than SLOTS_BYTES. On a line of its
   own, as a turn is: threads meet here. */
enum { SLOTS = 2 };
static const size_t SLOTS_BYTES = (size_t)1 << 29;
typedef struct {
    _Alignas(FF_LINE) atomic_int taken; /* parts of the block that are not yet merged */
    char *scratch;
} slot;

/* How far the chunks of a part of the queries have come. Sums wait for their turn at their chunk modulo the length of the
   queue: no more chunks of a block are begun and not yet merged than there are slots and threads. Threads that finish
   together merge different parts: of 64 queries, 3,072 dimensions and 16 threads, the last chunks cost a fifth of the call
   where each was merged as a whole. */
typedef struct {
    _Alignas(FF_LINE) atomic_int locked;
    atomic_llong merged; /* chunks in the state */
    _Atomic(slot *) *early;
} turn;

typedef struct {
    ff_job job;
    const ff_kernel *kernel;
    int64_t chunk, blocks, groups, tasks, units, part, parts, threads, queue;
    atomic_llong next_pack, next_task, next_write;
    turn *turns;
    int slots_each; /* for each thread */
    slot *slots;
} evaluation;

/* The memory that a call works in is kept for the next one: fresh pages, for 16 threads, cost the kernel as much time as a
   third of a call. One block at most, of up to KEPT_BYTES for each thread of the call that made it; most of that is never
   touched. It is freed when the process ends. */
enum { KEPT_BYTES = 32 << 20 };
typedef struct {
    size_t bytes, most; /* its own, and those that may be kept of it */
} work_space;
static _Atomic(work_space *) kept_space;

static char *take_space(size_t bytes, int64_t threads) {
    bytes += FF_ALIGN;
    work_space *space = atomic_exchange(&kept_space, NULL);
    if (!space || space->bytes < bytes) {
        free(space);
        space = aligned_alloc(FF_ALIGN, bytes);
        if (!space) return NULL;
        *space = (work_space){bytes, (size_t)threads * KEPT_BYTES};
    }
    return (char *)space + FF_ALIGN;
}

static void leave_space(char *taken) {
    work_space *space = (work_space *)(taken - FF_ALIGN);
    if (space->bytes <= space->most) space = atomic_exchange(&kept_space, space);
    free(space);
}

/* Queries of piece number i of `length` each. */
static int64_t count_of(const evaluation *e, int64_t length, int64_t i) {
    return ff_min(length, e->job.queries->count - i * length);
}

static void run_packing(void *context, int worker) {
    evaluation *e = context;
    for (int64_t unit; (unit = atomic_fetch_add(&e->next_pack, 1)) < e->units;)
        e->kernel->pack(&e->job, unit * e->kernel->unit, count_of(e, e->kernel->unit, unit),
                        e->slots[worker * e->slots_each].scratch);
}

/* Merge what is there of a part, in the order of its chunks. Whoever finds it locked leaves that to the one who holds it,
   and who looks again after unlocking it. */
static void merge_early(evaluation *e, int64_t part) {
    const ff_kernel *kernel = e->kernel;
    turn *at = e->turns + part;
    slot *next;
    do {
        if (atomic_exchange(&at->locked, 1)) return;
        int64_t chunk = atomic_load(&at->merged);
        while ((next = atomic_exchange(&at->early[chunk % e->queue], NULL))) {
            const int64_t start = chunk * e->chunk, stop = ff_min(start + e->chunk, e->job.points->count);
            kernel->merge(&e->job, start, stop, part * e->part, count_of(e, e->part, part), next->scratch);
            atomic_store(&at->merged, ++chunk);
            atomic_fetch_sub(&next->taken, 1);
        }
        atomic_store(&at->locked, 0);
        next = atomic_load(&at->early[chunk % e->queue]);
    } while (next);
}

/* Hand over what a thread has computed of a chunk and a block, and merge what can be. Threads begin with different parts, each
   always with the same, which stay in its cache. */
static void hand_over(evaluation *e, int64_t chunk, int64_t block, slot *done, int worker) {
    const int64_t parts = e->job.block / e->part, first = block * parts;
    const int64_t count = ff_min(parts, e->parts - first), begin = worker * count / e->threads;
    atomic_store(&done->taken, (int)count);
    for (int64_t i = 0; i < count; i++) atomic_store(&e->turns[first + i].early[chunk % e->queue], done);
    for (int64_t i = 0; i < count; i++) merge_early(e, first + (begin + i) % count);
}

static slot *free_slot(const evaluation *e, int worker) {
    slot *own = e->slots + worker * e->slots_each;
    for (;; sched_yield())
        for (int i = 0; i < e->slots_each; i++)
            if (!atomic_load(&own[i].taken)) return own + i;
}

static void run_tasks(void *context, int worker) {
    evaluation *e = context;
    const ff_kernel *kernel = e->kernel;
    for (int64_t task; (task = atomic_fetch_add(&e->next_task, 1)) < e->tasks;) {
        const int64_t chunk = task / e->groups, group = task % e->groups;
        const int64_t start = chunk * e->chunk, stop = ff_min(start + e->chunk, e->job.points->count);
        const slot *begun = NULL;
        for (int64_t block = group * e->blocks / e->groups; block < (group + 1) * e->blocks / e->groups; block++) {
            slot *at = free_slot(e, worker);
            if (kernel->begin && at != begun) kernel->begin(&e->job, start, stop, at->scratch);
            begun = at;
            kernel->compute(&e->job, start, stop, block * e->job.block, count_of(e, e->job.block, block), at->scratch);
            hand_over(e, chunk, block, at, worker);
        }
    }
}

static void run_writing(void *context, int worker) {
    evaluation *e = context;
    for (int64_t part; (part = atomic_fetch_add(&e->next_write, 1)) < e->parts;) {
        const int64_t query = part * e->part, count = count_of(e, e->part, part);
        if (e->kernel->write) e->kernel->write(&e->job, query, count, e->slots[worker * e->slots_each].scratch);
        else
            e->job.points->target->write(&e->job, e->kernel->lanes, query, count);
    }
}

static int valid(const ff_points *points, const ff_queries *queries, int num_threads) {
    if (points && queries && points->data.variance &&
        !(queries->slope && queries->gain_constant && queries->gain_slope))
        return 0;
    return points && queries && queries->x && queries->alpha && queries->beta && queries->variance &&
           queries->count >= 0 && (queries->stride == 0 || queries->stride == 1) &&
           (queries->dtype == FF_FLOAT32 || queries->dtype == FF_FLOAT64) && num_threads >= 1;
}

/* Whether what comes together was given together (see ff_moments). */
static int valid_results(const ff_points *points, const ff_queries *queries, const ff_moments *result) {
    if (!result || !result->log_total || !result->mean != !result->residual || !result->entropy != !result->collision)
        return 0;
    const int differ = points->data.variance != NULL, tangent = queries->direction != NULL;
    if ((result->trace || tangent) && !result->mean) return 0;
    if (tangent && !(queries->residual_factor && queries->gained_factor && queries->mean_factor)) return 0;
    /* Only what the kernels of the first order write is combined, and only where residuals are alike. */
    if (result->combination && (!result->of_residual || differ || tangent || result->trace)) return 0;
    const int gain = differ && result->mean, traces = differ && result->trace, products = differ && tangent;
    return gain == !!result->gain && gain == !!result->gained && traces == !!result->cross &&
           traces == !!result->gained_trace && tangent == !!result->tilt && tangent == !!result->mean_product &&
           products == !!result->gained_product && products == !!result->gain_product;
}

int ff_points_moments(const ff_points *points, const ff_queries *queries, const ff_moments *result, int num_threads) {
    if (!valid(points, queries, num_threads) || !valid_results(points, queries, result)) return FF_BAD_ARGUMENT;
    if (queries->count == 0) return FF_OK;

    evaluation e = {.kernel = kernel_for(points, queries, result)};
    const ff_kernel *kernel = e.kernel;
    e.job = (ff_job){.points = points,
                     .queries = queries,
                     .result = result,
                     .block = kernel->block,
                     .want_mean = result->mean || result->combination,
                     .want_spread = result->entropy != NULL,
                     .pointwise = points->data.variance != NULL};
    e.chunk = kernel->chunk(points);
    const int64_t chunks = ff_ceil_div(points->count, e.chunk);
    const double turns_of_points = points->data.rotation ? (double)points->size : 1.0;
    const double work = (double)points->count * (double)queries->count * (double)(points->size + 8) * turns_of_points;
    int64_t threads = threads_for(work, num_threads);
    /* Small sets have few chunks, and then all queries of a batch would be one task of each: of 4,000 points in 8
       dimensions, 64 queries took twice as long with 16 threads as in 16 dimensions, which have more chunks. */
    while (e.job.block > kernel->panel && chunks * ff_ceil_div(queries->count, e.job.block) < threads) e.job.block /= 2;
    e.blocks = ff_ceil_div(queries->count, e.job.block);
    /* Four tasks for each thread even out their lengths; a chunk is cut by queries only where that gives them. */
    e.groups = ff_max(1, ff_min(e.blocks, threads == 1 ? 1 : ff_ceil_div(4 * threads, chunks)));
    e.tasks = chunks * e.groups;
    e.units = ff_ceil_div(queries->count, kernel->unit);
    e.part = ff_min(kernel->part, e.job.block);
    e.parts = ff_ceil_div(queries->count, e.part);
    e.threads = threads = ff_min(threads, e.tasks);
    const int64_t padded = ff_ceil_div(queries->count, kernel->lanes) * kernel->lanes;
    const size_t scalars = ff_aligned((size_t)padded * sizeof(double));
    const size_t sums = ff_aligned((size_t)padded * kernel->state_values(&e.job) * sizeof(double));
    const size_t packed = ff_aligned(kernel->packed_bytes(&e.job));
    const size_t scratch = ff_aligned(kernel->scratch_bytes(points, &e.job));
    e.slots_each = threads == 1 || (size_t)(SLOTS * threads) * scratch > SLOTS_BYTES ? 1 : SLOTS;
    const int64_t slots = e.slots_each * threads;
    e.queue = ff_min(chunks, slots + threads);
    const size_t queue = ff_aligned((size_t)e.queue * sizeof(_Atomic(slot *)));
    const size_t turns = ff_aligned((size_t)e.parts * sizeof(turn)), table = ff_aligned((size_t)slots * sizeof(slot));

    char *const space =
        take_space(5 * scalars + sums + packed + (size_t)slots * scratch + turns + table + (size_t)e.parts * queue, threads);
    if (!space) return FF_NO_MEMORY;
    char *at = space;
    double **const state[5] = {&e.job.state.largest, &e.job.state.total, &e.job.state.first, &e.job.state.second,
                               &e.job.state.base};
    for (int i = 0; i < 5; i++, at += scalars) *state[i] = (double *)at;
    e.job.state.sum = (double *)at;
    e.job.packed = at += sums;
    e.slots = (slot *)(at += packed);
    e.turns = (turn *)(at += table);
    at += turns;
    for (int64_t i = 0; i < slots; i++, at += scratch) {
        atomic_init(&e.slots[i].taken, 0);
        e.slots[i].scratch = at;
    }
    for (int64_t part = 0; part < e.parts; part++, at += queue) {
        atomic_init(&e.turns[part].locked, 0);
        atomic_init(&e.turns[part].merged, 0);
        e.turns[part].early = (_Atomic(slot *) *)at;
        for (int64_t i = 0; i < e.queue; i++) atomic_init(&e.turns[part].early[i], NULL);
    }
    const int64_t few = threads_for(AT_ONCE * PASSES * (double)queries->count * ((double)points->size + PER_QUERY), (int)threads);
    if (kernel->pack) ff_parallel((int)ff_min(few, e.units), run_packing, &e);
    ff_parallel((int)threads, run_tasks, &e);
    ff_parallel((int)ff_min(few, e.parts), run_writing, &e);
    leave_space(space);
    return FF_OK;
}

/* Logits ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    const ff_points *points;
    const ff_queries *queries;
    int64_t start, stop, strips;
    double *logits, *scratch;
    atomic_llong next;
} listing;

enum { LOGIT_STRIP = 256, LOGIT_SCRATCH = 3 };

static void run_listing(void *context, int worker) {
    listing *l = context;
    const ff_points *points = l->points;
    const ff_target *target = points->target;
    ff_logits *const logits = points->data.variance ? target->general_logits[points->dtype] : target->logits[points->dtype];
    double *scratch = l->scratch + LOGIT_SCRATCH * worker * points->size;
    /* Strip by strip: the points of a strip stay in cache for all queries. */
    for (int64_t strip; (strip = atomic_fetch_add(&l->next, 1)) < l->strips;) {
        const int64_t from = l->start + strip * LOGIT_STRIP, to = ff_min(from + LOGIT_STRIP, l->stop);
        for (int64_t q = 0; q < l->queries->count; q++)
            logits(points, l->queries, q, from, to, l->logits + q * (l->stop - l->start) + (from - l->start), scratch);
    }
}

int ff_points_logits(const ff_points *points, const ff_queries *queries, int64_t start, int64_t stop, double *logits,
                     int num_threads) {
    if (!valid(points, queries, num_threads) || !logits || start < 0 || stop > points->count || start > stop)
        return FF_BAD_ARGUMENT;
    const double work = (double)(stop - start) * (double)queries->count * (double)(points->size + 8);
    const int64_t strips = ff_ceil_div(stop - start, LOGIT_STRIP);
    const int64_t threads = ff_max(1, ff_min(strips, threads_for(work, num_threads)));
    listing l = {.points = points, .queries = queries, .start = start, .stop = stop, .strips = strips, .logits = logits};
    l.scratch = malloc((size_t)(LOGIT_SCRATCH * threads * points->size) * sizeof *l.scratch);
    if (!l.scratch) return FF_NO_MEMORY;
    ff_parallel((int)threads, run_listing, &l);
    free(l.scratch);
    return FF_OK;
}
