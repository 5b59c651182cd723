/* The handlers of ff_xla.h: check what XLA hands over, and evaluate the field. */
#include "ff_xla.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The published fields. The lock is held for a few instructions at a time, never during an evaluation. */
typedef struct entry {
    struct entry *next;
    int64_t number;
    int users, num_threads;
    ff_field field;
} entry;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    entry *first;
} published = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL};

static void before_fork(void) { pthread_mutex_lock(&published.lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&published.lock); }
static void after_fork_child(void) { /* the threads that were at work do not exist here */
    pthread_mutex_init(&published.lock, NULL);
    pthread_cond_init(&published.idle, NULL);
    for (entry *e = published.first; e; e = e->next) e->users = 0;
}
static void install_handlers(void) { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }

int ff_xla_publish(int64_t number, const ff_field *field, int num_threads) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (!ff_program_valid(&field->schedule)) return FF_BAD_ARGUMENT;
    entry *added = malloc(sizeof *added);
    if (!added) return FF_NO_MEMORY;
    pthread_once(&once, install_handlers);
    pthread_mutex_lock(&published.lock);
    *added = (entry){published.first, number, 0, num_threads, *field};
    published.first = added;
    pthread_mutex_unlock(&published.lock);
    return FF_OK;
}

void ff_xla_withdraw(int64_t number) {
    pthread_mutex_lock(&published.lock);
    entry **link = &published.first;
    while (*link && (*link)->number != number) link = &(*link)->next;
    entry *found = *link;
    if (found) {
        *link = found->next;
        while (found->users) pthread_cond_wait(&published.idle, &published.lock);
    }
    pthread_mutex_unlock(&published.lock);
    free(found);
}

static entry *borrow(int64_t number) {
    pthread_mutex_lock(&published.lock);
    entry *e = published.first;
    while (e && e->number != number) e = e->next;
    if (e) e->users++;
    pthread_mutex_unlock(&published.lock);
    return e;
}

static void give_back(entry *e) {
    pthread_mutex_lock(&published.lock);
    if (--e->users == 0) pthread_cond_broadcast(&published.idle);
    pthread_mutex_unlock(&published.lock);
}

/* A failure: its code for XLA, and the message. */
typedef struct {
    int code;
    char message[256];
} failure;

/* Notes a failure, and returns 0. */
__attribute__((format(printf, 3, 4))) static int fail(failure *failed, int code, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(failed->message, sizeof failed->message, format, values);
    va_end(values);
    failed->code = code;
    return 0;
}

static ff_xla_error *reported(const ff_xla_call *call, const failure *failed) {
    if (!failed->code) return NULL;
    ff_xla_error_args args = {offsetof(ff_xla_error_args, code) + sizeof(int), NULL, failed->message, failed->code};
    return call->api->create_error(&args);
}

/* What a handler was given: x, t and u (where there are three arguments), and the result. */
typedef struct {
    int64_t count, size, times;
    ff_dtype dtype;
    const void *x, *u;
    const ff_xla_buffer *t;
    void *result;
} request;

static const ff_xla_buffer *buffer_of(const ff_xla_list *list, int64_t k) {
    return list->kinds[k] == FF_XLA_BUFFER ? list->values[k] : NULL;
}

static int is_matrix(const ff_xla_buffer *buffer, const ff_xla_buffer *like) {
    return buffer && buffer->rank == 2 && buffer->type == like->type && buffer->dims[0] == like->dims[0] &&
           buffer->dims[1] == like->dims[1];
}

static int parse(const ff_xla_call *call, int64_t arguments, const ff_field *field, request *r, failure *failed) {
    const ff_xla_list *in = &call->arguments, *out = &call->results;
    if (in->count != arguments || out->count != 1) {
        return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: the number of arguments is not accepted");
    }
    const ff_xla_buffer *x = buffer_of(in, 0), *t = buffer_of(in, 1), *result = buffer_of(out, 0);
    if (!x || x->rank != 2 || x->dims[1] != field->size || (x->type != FF_XLA_F32 && x->type != FF_XLA_F64)) {
        return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: x is not a matrix of float32 or float64, (B, %lld)",
                    (long long)field->size);
    }
    if (!t || t->rank != 1 || (t->dims[0] != 1 && t->dims[0] != x->dims[0]) ||
        (t->type != FF_XLA_F32 && t->type != FF_XLA_F64)) {
        return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: t is not a vector of float32 or float64, (B,) or (1,)");
    }
    const ff_xla_buffer *u = arguments > 2 ? buffer_of(in, 2) : x;
    if (!is_matrix(u, x) || !is_matrix(result, x)) {
        return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: u or the result has not the shape and dtype of x");
    }
    *r = (request){x->dims[0], x->dims[1], t->dims[0], x->type == FF_XLA_F32 ? FF_FLOAT32 : FF_FLOAT64,
                   x->data,    u->data,    t,          result->data};
    return 1;
}

static int check_values(const char *name, const void *values, const request *r, failure *failed) {
    const int64_t i = ff_first_beyond(FF_LARGEST_VALUE, values, r->dtype, r->count * r->size);
    if (i < 0) return 1;
    return fail(failed, FF_XLA_INVALID_ARGUMENT,
                "fastflow: %s holds %g, in query %lld; every value of %s must be finite, and at most %g in magnitude", name,
                ff_number_at(values, r->dtype, i), (long long)(i / r->size), name, FF_LARGEST_VALUE);
}

static int at_times(const request *r, const ff_field *field, ff_times *times, double *memory, failure *failed) {
    ff_bad_time bad;
    const ff_dtype dtype = r->t->type == FF_XLA_F32 ? FF_FLOAT32 : FF_FLOAT64;
    if (ff_field_times(field, r->t->data, dtype, r->times, memory, times, &bad)) return 1;
    switch (bad.fault) {
        case FF_TIME_OUTSIDE:
            return fail(failed, FF_XLA_INVALID_ARGUMENT,
                        "fastflow: t[%lld] is %.17g; times must lie in [0, 1] (0 = source, 1 = data)",
                        (long long)bad.index, bad.t);
        case FF_TIME_SCHEDULE:
            return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: the schedule is out of range at t = %.17g", bad.t);
        default:
            return fail(failed, FF_XLA_INVALID_ARGUMENT,
                        "fastflow: the schedule leaves a component the variance %g at t = %.17g; accepted is 0, or at "
                        "least %g",
                        bad.variance, bad.t, FF_SMALLEST_COMPONENT);
    }
}

static void *room(size_t bytes, failure *failed) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) fail(failed, FF_XLA_RESOURCE_EXHAUSTED, "fastflow: out of memory");
    return memory;
}

static int check_velocity(const ff_field *field, const ff_times *times, failure *failed) {
    for (int64_t k = 0; field->source_mean && k < times->count; k++) {
        if (isinf(times->d_alpha[k])) {
            return fail(failed, FF_XLA_INVALID_ARGUMENT,
                        "fastflow: the velocity of this schedule with non-zero source_mean is unbounded at t = 1; "
                        "accepted is t < 1");
        }
    }
    return 1;
}

static int check_product(const ff_times *times, failure *failed) {
    if (!times->singular) return 1;
    return fail(failed, FF_XLA_INVALID_ARGUMENT,
                "fastflow: the derivative of the velocity does not exist at t = 1 with variance 0; accepted are t < 1, or "
                "a field with variance > 0");
}

static int answered(const ff_xla_call *call, int64_t arguments, const entry *found, failure *failed) {
    const ff_field *field = &found->field;
    const int is_product = arguments > 2;
    request r = {0};
    if (!parse(call, arguments, field, &r, failed)) return 0;
    if (!check_values("x", r.x, &r, failed) || (is_product && !check_values("u", r.u, &r, failed))) return 0;
    double *memory = room((size_t)r.times * FF_TIME_NUMBERS * sizeof(double), failed);
    if (!memory) return 0;
    ff_times times;
    int done = at_times(&r, field, &times, memory, failed);
    if (done) done = is_product ? check_product(&times, failed) : check_velocity(field, &times, failed);
    if (done && r.count) {
        const int status =
            is_product ? ff_field_product(field, &times, r.x, r.u, r.dtype, r.count, r.result, found->num_threads)
                       : ff_field_velocity(field, &times, r.x, r.dtype, r.count, r.result, found->num_threads);
        if (status)
            done = fail(failed, status == FF_NO_MEMORY ? FF_XLA_RESOURCE_EXHAUSTED : FF_XLA_INTERNAL, "fastflow: %s",
                        ff_status_text(status));
    }
    free(memory);
    return done;
}

static int number_of(const ff_xla_attributes *attributes, int64_t *number, failure *failed) {
    if (attributes->count == 1 && attributes->kinds[0] == FF_XLA_SCALAR) {
        const ff_xla_scalar *scalar = attributes->values[0];
        if (scalar->type == FF_XLA_S64) {
            *number = *(const int64_t *)scalar->value;
            return 1;
        }
    }
    return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: the attribute is not the number of a field");
}

static ff_xla_error *handle(ff_xla_call *call, int64_t arguments) {
    const ff_xla_extension *asked = call->extensions;
    if (asked && asked->type == FF_XLA_EXTENSION_METADATA) {
        /* What is used here is the part that has been the same in every version, so that of the caller will do. The
           callers that do not tell theirs, at this point, are of version 0.1. */
        ff_xla_metadata *metadata = ((const ff_xla_metadata_extension *)asked)->metadata;
        metadata->version.major = call->api ? call->api->version.major : 0;
        metadata->version.minor = call->api ? call->api->version.minor : 1;
        metadata->traits = 0;
        return NULL;
    }
    failure failed = {0};
    int64_t number = 0;
    if (call->struct_size < sizeof(ff_xla_call) || call->stage != FF_XLA_STAGE_EXECUTE) {
        fail(&failed, FF_XLA_INTERNAL, "fastflow: the call of this version of XLA is not understood");
    } else if (number_of(&call->attributes, &number, &failed)) {
        entry *found = borrow(number);
        if (found) {
            answered(call, arguments, found, &failed);
            give_back(found);
        } else {
            fail(&failed, FF_XLA_NOT_FOUND,
                 "fastflow: the field of this function is gone, or of another process; keep the field while what was "
                 "compiled from it is in use");
        }
    }
    return reported(call, &failed);
}

ff_xla_error *ff_xla_velocity(ff_xla_call *call) { return handle(call, 2); }

ff_xla_error *ff_xla_product(ff_xla_call *call) { return handle(call, 3); }
