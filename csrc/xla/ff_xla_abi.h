/* What the handlers need of XLA's foreign function interface, a C ABI that XLA keeps stable: the layout of the call
   that a handler receives and of the calls it may make. Declared here, so that the package builds without JAX;
   tests/test_adapter_jax.py compares each size, offset and value with the header that the installed JAX brings.

   XLA adds fields at the end of structs and says in struct_size how many the caller has, so what is declared here may
   be shorter than the original. */
#ifndef FF_XLA_ABI_H
#define FF_XLA_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { FF_XLA_EXTENSION_METADATA = 1 };
enum { FF_XLA_STAGE_EXECUTE = 3 };
enum { FF_XLA_BUFFER = 1, FF_XLA_SCALAR = 3 };                /* kinds of arguments and results; of attributes */
enum { FF_XLA_S64 = 5, FF_XLA_F32 = 11, FF_XLA_F64 = 12 };    /* element types */
enum { FF_XLA_INVALID_ARGUMENT = 3, FF_XLA_NOT_FOUND = 5, FF_XLA_RESOURCE_EXHAUSTED = 8, FF_XLA_INTERNAL = 13 };

typedef struct ff_xla_extension {
    size_t struct_size;
    int type;
    struct ff_xla_extension *next;
} ff_xla_extension;

typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    int major, minor;
} ff_xla_version;

/* XLA asks for these at registration: a call with this extension wants them filled in, and nothing else. */
typedef struct {
    size_t struct_size;
    ff_xla_version version;
    uint32_t traits;
} ff_xla_metadata;

typedef struct {
    ff_xla_extension base;
    ff_xla_metadata *metadata;
} ff_xla_metadata_extension;

typedef struct ff_xla_error ff_xla_error; /* NULL is success */

typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    const char *message; /* copied by the callee */
    int code;
} ff_xla_error_args;

typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    ff_xla_version version;
    const void *internal;
    ff_xla_error *(*create_error)(ff_xla_error_args *);
} ff_xla_api;

typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    int type;
    void *data;
    int64_t rank;
    int64_t *dims;
} ff_xla_buffer;

typedef struct {
    const char *text;
    size_t length;
} ff_xla_span;

typedef struct {
    int type;
    void *value;
} ff_xla_scalar;

/* Arguments and results have the same layout. */
typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    int64_t count;
    int *kinds;
    void **values;
} ff_xla_list;

typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    int64_t count;
    int *kinds;
    ff_xla_span **names;
    void **values;
} ff_xla_attributes;

typedef struct {
    size_t struct_size;
    ff_xla_extension *extensions;
    const ff_xla_api *api;
    void *context;
    int stage;
    ff_xla_list arguments, results;
    ff_xla_attributes attributes;
} ff_xla_call;

#endif
