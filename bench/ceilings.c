/* What a processor can do at best: multiply-adds in registers, and reading memory, by several threads at once.
   Compiled when a benchmark runs, for the processor it runs on; see ceilings.py. */

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

#if defined(__AVX512F__)
#define BYTES 64
#define CHAINS 24 /* of 32 registers */
#elif defined(__AVX__)
#define BYTES 32
#define CHAINS 12 /* of 16 */
#elif defined(__ARM_NEON)
#define BYTES 16
#define CHAINS 24 /* of 32 */
#else
#define BYTES 16
#define CHAINS 12
#endif

#define LANES (BYTES / 4)

typedef float vector __attribute__((vector_size(BYTES)));

typedef struct {
    const vector *data; /* NULL: multiply-adds */
    size_t count;       /* vectors to read, or steps of the loop */
    size_t passes;
    float result;
} job;

/* `count` steps of CHAINS independent multiply-adds, enough of them under way to hide their latency. */
static float multiply_add(size_t count)
{
    vector sums[CHAINS], factor, term, all;
    volatile float from_memory = 0.999f; /* nothing is known when this is compiled */
    for (int i = 0; i < LANES; i++) {
        factor[i] = from_memory;
        term[i] = 1.0f - from_memory;
    }
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; c++)
        sums[c] = term * (float)c;
    for (size_t step = 0; step < count; step++) {
#pragma GCC unroll 32
        for (int c = 0; c < CHAINS; c++)
            sums[c] = sums[c] * factor + term;
    }
    all = sums[0];
#pragma GCC unroll 32
    for (int c = 1; c < CHAINS; c++)
        all += sums[c];
    return all[0] + all[LANES - 1];
}

static float read_all(const vector *data, size_t count)
{
    vector sums[8] = {{0.0f}};
    for (size_t i = 0; i + 8 <= count; i += 8) {
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++)
            sums[c] += data[i + c];
    }
    vector all = sums[0];
#pragma GCC unroll 8
    for (int c = 1; c < 8; c++)
        all += sums[c];
    return all[0] + all[LANES - 1];
}

static void *work(void *argument)
{
    job *mine = argument;
    for (size_t pass = 0; pass < mine->passes; pass++)
        mine->result += mine->data ? read_all(mine->data, mine->count) : multiply_add(mine->count);
    return NULL;
}

/* Run the jobs, one thread each. 0, or an error number. */
static int run(job *jobs, int threads)
{
    pthread_t *ids = malloc((size_t)threads * sizeof *ids);
    int started = 0, error = ids ? 0 : 12;
    for (; !error && started < threads - 1; started += !error)
        error = pthread_create(&ids[started], NULL, work, &jobs[started + 1]);
    if (!error)
        work(&jobs[0]);
    for (int i = 0; i < started; i++)
        pthread_join(ids[i], NULL);
    free(ids);
    return error;
}

/* Floating-point operations of one step of one thread. */
int ceiling_flop_per_step(void) { return 2 * CHAINS * LANES; }

int ceiling_vector_bytes(void) { return BYTES; }

/* `steps` steps in each of `threads` threads. 0, or an error number. */
int ceiling_multiply_add(int threads, size_t steps)
{
    job *jobs = calloc((size_t)threads, sizeof *jobs);
    if (!jobs)
        return 12;
    for (int i = 0; i < threads; i++)
        jobs[i] = (job){NULL, steps, 1, 0.0f};
    int error = run(jobs, threads);
    free(jobs);
    return error;
}

/* Read `bytes` bytes, aligned to 64, `passes` times, each thread its own part. 0, or an error number. */
int ceiling_read(int threads, const void *data, size_t bytes, size_t passes)
{
    job *jobs = calloc((size_t)threads, sizeof *jobs);
    if (!jobs)
        return 12;
    const vector *all = data;
    size_t each = bytes / BYTES / (size_t)threads / 8 * 8;
    for (int i = 0; i < threads; i++)
        jobs[i] = (job){all + (size_t)i * each, each, passes, 0.0f};
    int error = run(jobs, threads);
    free(jobs);
    return error;
}
