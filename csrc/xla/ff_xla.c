/* The handlers of ff_xla.h: check what XLA hands over, turn times into coefficients, call the library, and form the
   quantity. The formulas are those of fastflow/path.py and quantities.py for one shared variance, in the same order:
   results are those of the Python calls, bit for bit. */
#include "ff_xla.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bounds of fastflow/_arrays.py and path.py. */
static const double LARGEST = 1e70, LARGEST_FACTOR = 1e10, LARGEST_SLOPE = 1e150;
static const double SMALLEST_COMPONENT = 1e-115, SINGULAR_VARIANCE = 1e-120;

/* The published fields. The lock is held for a few instructions at a time, never during an evaluation. */
typedef struct entry {
    struct entry *next;
    int64_t number;
    int users;
    ff_xla_field field;
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

int ff_xla_publish(int64_t number, const ff_xla_field *field) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (!ff_program_valid(&field->schedule)) return FF_BAD_ARGUMENT;
    entry *added = malloc(sizeof *added);
    if (!added) return FF_NO_MEMORY;
    pthread_once(&once, install_handlers);
    pthread_mutex_lock(&published.lock);
    *added = (entry){published.first, number, 0, *field};
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

static int parse(const ff_xla_call *call, int64_t arguments, const ff_xla_field *field, request *r, failure *failed) {
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
    for (int64_t i = 0; i < r->count * r->size; i++) {
        double value = r->dtype == FF_FLOAT32 ? (double)((const float *)values)[i] : ((const double *)values)[i];
        if (!(fabs(value) <= LARGEST)) {
            return fail(failed, FF_XLA_INVALID_ARGUMENT,
                        "fastflow: %s holds %g, in query %lld; every value of %s must be finite, and at most %g in "
                        "magnitude",
                        name, value, (long long)(i / r->size), name, LARGEST);
        }
    }
    return 1;
}

/* What times become, one column for each: the rows that the library takes, and the factors of the moments. */
typedef struct {
    double *alpha, *beta, *variance; /* D, the library's */
    double *rate, *d_alpha, *d_beta; /* of the velocity (Fan 46), see Path in fastflow/path.py */
    int singular;                    /* whether some D is zero */
} coefficients;

enum { COEFFICIENT_ROWS = 6 };

static int check_time(double t, const double c[FF_PROGRAM_OUTPUTS], double variance, failure *failed) {
    double alpha = c[0], beta = c[1], d_alpha = c[2], d_beta = c[3], product = c[4];
    if (!(fabs(alpha) <= LARGEST_FACTOR && fabs(beta) <= LARGEST_FACTOR && d_alpha == d_alpha &&
          fabs(d_beta) <= LARGEST_SLOPE && fabs(product) <= LARGEST_SLOPE)) {
        return fail(failed, FF_XLA_INVALID_ARGUMENT, "fastflow: the schedule is out of range at t = %.17g", t);
    }
    if (!(variance >= SMALLEST_COMPONENT) && (variance != 0.0 || beta * beta == 0.0)) {
        return fail(failed, FF_XLA_INVALID_ARGUMENT,
                    "fastflow: the schedule leaves a component the variance %g at t = %.17g; accepted is 0, or at "
                    "least %g",
                    variance, t, SMALLEST_COMPONENT);
    }
    return 1;
}

static int at_times(const request *r, const ff_xla_field *field, coefficients *c, double *memory, failure *failed) {
    int64_t times = r->times;
    *c = (coefficients){memory,             memory + times,     memory + 2 * times,
                        memory + 3 * times, memory + 4 * times, memory + 5 * times, 0};
    for (int64_t k = 0; k < times; k++) {
        double t = r->t->type == FF_XLA_F32 ? (double)((float *)r->t->data)[k] : ((double *)r->t->data)[k];
        if (!(t >= 0.0 && t <= 1.0)) {
            return fail(failed, FF_XLA_INVALID_ARGUMENT,
                        "fastflow: t[%lld] is %.17g; times must lie in [0, 1] (0 = source, 1 = data)", (long long)k, t);
        }
        double s[FF_PROGRAM_OUTPUTS];
        ff_program_run(&field->schedule, t, s);
        double alpha = s[0], beta = s[1], d_beta = s[3];
        double variance = alpha * alpha * field->source_variance + beta * beta * field->target_variance;
        if (!check_time(t, s, variance, failed)) return 0;
        int singular = !(variance > 0.0);
        double drift = s[4] * field->source_variance + beta * d_beta * field->target_variance;
        c->alpha[k] = alpha;
        c->beta[k] = beta;
        c->variance[k] = singular ? SINGULAR_VARIANCE : variance;
        c->rate[k] = singular ? d_beta / beta : drift / variance;
        c->d_alpha[k] = s[2];
        c->d_beta[k] = d_beta;
        c->singular |= singular;
    }
    return 1;
}

/* result += factor * values for the query k, in the arithmetic of the dtype. */
static void add_scaled(const request *r, void *result, double factor, const void *values, int64_t k) {
    int64_t start = k * r->size, stop = start + r->size;
    if (r->dtype == FF_FLOAT32) {
        float f = (float)factor;
        for (int64_t i = start; i < stop; i++) ((float *)result)[i] += ((const float *)values)[i] * f;
    } else {
        for (int64_t i = start; i < stop; i++) ((double *)result)[i] += ((const double *)values)[i] * factor;
    }
}

/* result = factor * values, likewise; they may be the same. */
static void set_scaled(const request *r, void *result, double factor, const void *values, int64_t k) {
    int64_t start = k * r->size, stop = start + r->size;
    if (r->dtype == FF_FLOAT32) {
        float f = (float)factor;
        for (int64_t i = start; i < stop; i++) ((float *)result)[i] = ((const float *)values)[i] * f;
    } else {
        for (int64_t i = start; i < stop; i++) ((double *)result)[i] = ((const double *)values)[i] * factor;
    }
}

/* result += factor * m_i, the product in double. */
static void add_source_mean(const request *r, void *result, double factor, const double *mean, int64_t k) {
    for (int64_t i = 0; i < r->size; i++) {
        double shift = factor * mean[i];
        if (r->dtype == FF_FLOAT32) ((float *)result)[k * r->size + i] += (float)shift;
        else ((double *)result)[k * r->size + i] += shift;
    }
}

static int evaluated(const request *r, const ff_xla_field *field, const coefficients *c, ff_moments *moments,
                     const double *factors, failure *failed) {
    ff_queries queries = {0};
    queries.x = r->x;
    queries.dtype = r->dtype;
    queries.count = r->count;
    queries.alpha = c->alpha;
    queries.beta = c->beta;
    queries.variance = c->variance;
    queries.stride = r->times == 1 ? 0 : 1;
    if (factors) {
        queries.direction = r->u;
        queries.residual_factor = factors;
        queries.gained_factor = queries.mean_factor = factors + r->count;
    }
    int status = ff_points_moments(field->points, &queries, moments, field->num_threads);
    if (status == FF_OK) return 1;
    return fail(failed, status == FF_NO_MEMORY ? FF_XLA_RESOURCE_EXHAUSTED : FF_XLA_INTERNAL, "fastflow: %s",
                ff_status_text(status));
}

static void *room(size_t bytes, failure *failed) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) fail(failed, FF_XLA_RESOURCE_EXHAUSTED, "fastflow: out of memory");
    return memory;
}

static size_t matrix_bytes(const request *r) {
    return (size_t)r->count * (size_t)r->size * (r->dtype == FF_FLOAT32 ? sizeof(float) : sizeof(double));
}

/* v = rate E[r_j] + beta' E[mu_j] + alpha' m_i (Fan 14, 46). */
static int velocity(const request *r, const ff_xla_field *field, const coefficients *c, failure *failed) {
    size_t bytes = matrix_bytes(r);
    char *memory = room(bytes + (size_t)r->count * sizeof(double), failed);
    if (!memory) return 0;
    ff_moments moments = {0};
    moments.log_total = (double *)memory;
    moments.mean = memory + (size_t)r->count * sizeof(double);
    moments.residual = r->result;
    int done = evaluated(r, field, c, &moments, NULL, failed);
    for (int64_t k = 0; done && k < r->count; k++) {
        int64_t at = r->times == 1 ? 0 : k;
        set_scaled(r, r->result, c->rate[at], moments.residual, k);
        add_scaled(r, r->result, c->d_beta[at], moments.mean, k);
        if (field->source_mean) add_source_mean(r, r->result, c->d_alpha[at], field->source_mean, k);
    }
    free(memory);
    return done;
}

/* (dv/dx) u = rate u + (beta' - rate beta) Cov(mu_j, -u . r_j / D). */
static int product(const request *r, const ff_xla_field *field, const coefficients *c, failure *failed) {
    size_t bytes = matrix_bytes(r), count = (size_t)r->count;
    char *memory = room(4 * count * sizeof(double) + 2 * bytes, failed);
    if (!memory) return 0;
    double *numbers = (double *)memory, *factors = numbers + 2 * count;
    char *vectors = (char *)(numbers + 4 * count);
    for (size_t k = 0; k < count; k++) {
        factors[k] = -(1.0 / c->variance[r->times == 1 ? 0 : k]);
        factors[count + k] = 0.0;
    }
    ff_moments moments = {0};
    moments.log_total = numbers;
    moments.tilt = numbers + count;
    moments.mean = vectors;
    moments.residual = vectors + bytes;
    moments.mean_product = r->result;
    int done = evaluated(r, field, c, &moments, factors, failed);
    for (int64_t k = 0; done && k < r->count; k++) {
        int64_t at = r->times == 1 ? 0 : k;
        set_scaled(r, r->result, c->d_beta[at] - c->rate[at] * c->beta[at], moments.mean_product, k);
        add_scaled(r, r->result, c->rate[at], r->u, k);
    }
    free(memory);
    return done;
}

static int check_velocity(const ff_xla_field *field, const coefficients *c, int64_t times, failure *failed) {
    for (int64_t k = 0; field->source_mean && k < times; k++) {
        if (isinf(c->d_alpha[k])) {
            return fail(failed, FF_XLA_INVALID_ARGUMENT,
                        "fastflow: the velocity of this schedule with non-zero source_mean is unbounded at t = 1; "
                        "accepted is t < 1");
        }
    }
    return 1;
}

static int answered(const ff_xla_call *call, int64_t arguments, const ff_xla_field *field, failure *failed) {
    request r = {0};
    if (!parse(call, arguments, field, &r, failed)) return 0;
    if (!check_values("x", r.x, &r, failed) || (arguments > 2 && !check_values("u", r.u, &r, failed))) return 0;
    double *memory = room((size_t)r.times * COEFFICIENT_ROWS * sizeof(double), failed);
    if (!memory) return 0;
    coefficients c;
    int done = at_times(&r, field, &c, memory, failed);
    if (done && arguments > 2 && c.singular) {
        done = fail(failed, FF_XLA_INVALID_ARGUMENT,
                    "fastflow: the derivative of the velocity does not exist at t = 1 with variance 0; accepted are "
                    "t < 1, or a field with variance > 0");
    }
    if (done && arguments == 2) done = check_velocity(field, &c, r.times, failed);
    if (done && r.count) done = arguments > 2 ? product(&r, field, &c, failed) : velocity(&r, field, &c, failed);
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
            answered(call, arguments, &found->field, &failed);
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
