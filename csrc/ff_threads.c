/* A pool of threads, started when first needed and kept for later calls.

   One job runs on the pool at a time; a caller that finds it taken does its work alone, which gives the same result
   and cannot deadlock. A forked child starts with an empty pool: threads do not survive a fork. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

#include "ff_internal.h"

enum { MAX_WORKERS = 1024 };

/* Rounds that a thread watches for work, or for the end of it, before it sleeps: some 50 to 100 microseconds. Waking a
   sleeping thread takes about as long, and calls of a solver follow each other more closely than that. */
enum { WATCH_ROUNDS = 2000 };

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int started;  /* threads alive beside the callers */
    int taken;    /* a job is on the pool */
    atomic_int wanted;  /* workers that the job still asks for; written under the lock */
    atomic_int running; /* workers inside the body; written under the lock */
    int next;     /* number of the next worker */
    void (*body)(void *, int);
    void *context;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static pthread_once_t handlers = PTHREAD_ONCE_INIT;

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&pool.lock); }

static void after_fork_child(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.started = pool.taken = pool.wanted = pool.running = 0;
}

static void install_handlers(void) { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }

static void *worker_main(void *unused) {
    (void)unused;
    for (;;) {
        for (int i = 0; i < WATCH_ROUNDS && pool.wanted == 0; i++) pause_briefly();
        pthread_mutex_lock(&pool.lock);
        while (pool.wanted == 0) pthread_cond_wait(&pool.wake, &pool.lock);
        pool.wanted--;
        pool.running++;
        int number = pool.next++;
        void (*body)(void *, int) = pool.body;
        void *context = pool.context;
        pthread_mutex_unlock(&pool.lock);
        body(context, number);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0) pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* Start threads until `count` are alive, or as many as the system gives. They take no signals: those are the program's.
   Called with the lock held. */
static void start_workers(int count) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.started < count) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker_main, NULL) != 0) break;
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

void ff_parallel(int num_threads, void (*body)(void *context, int worker), void *context) {
    int helpers = num_threads - 1 < MAX_WORKERS ? num_threads - 1 : MAX_WORKERS;
    if (helpers <= 0) {
        body(context, 0);
        return;
    }
    pthread_once(&handlers, install_handlers);
    pthread_mutex_lock(&pool.lock);
    if (pool.taken) {
        pthread_mutex_unlock(&pool.lock);
        body(context, 0);
        return;
    }
    start_workers(helpers);
    pool.taken = 1;
    pool.body = body;
    pool.context = context;
    pool.next = 1;
    pool.wanted = helpers < pool.started ? helpers : pool.started;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);

    body(context, 0);

    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0; /* the work is shared out already: who has not started is not needed */
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < WATCH_ROUNDS && pool.running > 0; i++) pause_briefly();
    pthread_mutex_lock(&pool.lock);
    while (pool.running > 0) pthread_cond_wait(&pool.done, &pool.lock);
    pool.taken = 0;
    pthread_mutex_unlock(&pool.lock);
}
