# cython: language_level=3
"""The native backend: the C library of csrc/, called without the GIL."""

from dataclasses import replace

from cpython.float cimport PyFloat_CheckExact
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport PyObject
from libc.math cimport fabs
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cimport cython
cimport numpy as cnp

from fastflow.ff cimport *

import numpy as np

from ..moments import Moments
from . import Backend
from .cores import threads_of_call, usable_cores

cnp.import_array()


cdef extern from "ff_field.h" nogil:
    ctypedef struct ff_instruction:
        pass
    ctypedef struct ff_program:
        const double *constants
        const ff_instruction *instructions
        int32_t num_constants
        int32_t num_instructions
        int32_t *outputs
    int FF_PROGRAM_VALUES
    const char *ff_operation_name(int operation)
    int ff_program_valid(const ff_program *program)
    void ff_program_run(const ff_program *program, double t, double *outputs)
    ctypedef struct ff_field:
        const ff_points *points
        int64_t size
        double source_variance
        double target_variance
        const double *source_mean
        ff_program schedule
    ctypedef struct ff_times:
        int64_t count
        double *rate
        double *d_alpha
        double *d_beta
        int singular
    enum:
        FF_TIME_NUMBERS
    ctypedef struct ff_bad_time:
        pass
    int64_t ff_first_beyond(double largest, const void *values, ff_dtype dtype, int64_t count)
    int ff_field_times(const ff_field *field, const void *t, ff_dtype dtype, int64_t count, double *memory,
                       ff_times *result, ff_bad_time *bad)
    int ff_field_velocity(const ff_field *field, const ff_times *times, const void *x, ff_dtype dtype, int64_t count,
                          void *result, int num_threads)

cdef extern from "ff_xla.h" nogil:
    ctypedef struct ff_xla_call:
        pass
    ctypedef struct ff_xla_error:
        pass
    int ff_xla_publish(int64_t number, const ff_field *field, int num_threads)
    void ff_xla_withdraw(int64_t number)
    ff_xla_error *ff_xla_velocity(ff_xla_call *call)
    ff_xla_error *ff_xla_product(ff_xla_call *call)

cdef extern from *:
    """
    /* The Python exception of each status, from the one list of errors. */
    static PyObject *ff_exception(int status) {
        switch (status) {
    #define FF_ERROR(name, exception, text) case FF_##name: return PyExc_##exception;
    #include "ff_errors.def"
    #undef FF_ERROR
        }
        return PyExc_RuntimeError;
    }
    """
    PyObject *ff_exception(int status)  # borrowed


cdef _raise(int status):
    raise (<object>ff_exception(status))(f"native backend: {ff_status_text(status).decode()}")


def built_isas():
    """Every instruction set built in, and whether this machine can run it."""
    isas = {}
    cdef int isa = 0
    while ff_isa_name(isa) != NULL:
        isas[ff_isa_name(isa).decode()] = bool(ff_isa_runs(isa))
        isa += 1
    return isas


def load():
    if ff_abi_version() != FF_ABI_VERSION:  # another copy of the library was loaded into this process before
        raise ImportError(f"the C library has ABI version {ff_abi_version()}; accepted is {FF_ABI_VERSION}")
    isas = tuple(name for name, runs in built_isas().items() if runs)
    return Backend(
        prepare=Native,
        isas=isas,
        detail=f"C extension; best instruction set here: {isas[-1]}",
    )


_STORED = {
    "float32": FF_FLOAT32,
    "float64": FF_FLOAT64,
    "float16": FF_FLOAT16,
    "bfloat16": FF_BFLOAT16,
    "uint8": FF_UINT8,
    "int8": FF_INT8,
}


cdef ff_dtype _dtype(cnp.ndarray array):
    """Of queries."""
    return FF_FLOAT32 if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32 else FF_FLOAT64


cdef void *_pointer(cnp.ndarray array):
    """Address of a C-contiguous array, NULL of None; the caller keeps the array alive."""
    return NULL if array is None else cnp.PyArray_DATA(array)


@cython.final
@cython.no_gc_clear  # what C points into outlives the handle
cdef class Native:
    """A data set in the hands of the C library. Holds what the library points into."""

    cdef ff_points *points
    cdef readonly int num_threads
    cdef int64_t count, size
    cdef object kept

    def __cinit__(self, points, isa, num_threads):
        self.kept = points
        self.num_threads = num_threads or usable_cores()
        self.count, self.size = points.count, points.data.shape[1]
        cdef ff_data data
        data.data = _pointer(points.data)
        data.dtype = _STORED[points.data.dtype.name]
        data.scale, data.offset = points.scale, points.offset
        data.count, data.size = self.count, self.size
        data.index = <int64_t *>_pointer(points.index)
        data.log_mass = <double *>_pointer(points.log_mass)
        data.source_mean = <double *>_pointer(points.source_mean)
        data.variance = <double *>_pointer(points.variance)
        data.variance_rows = data.variance_columns = 0
        if points.variance is not None:
            data.variance_rows = points.variance.shape[0]
            data.variance_columns = points.variance.shape[1] if points.variance.ndim == 2 else 1
        data.rotation = <double *>_pointer(points.rotation)
        cdef int index = list(built_isas()).index(isa)
        cdef int status
        cdef int threads = self.num_threads
        with nogil:
            status = ff_points_create(&self.points, &data, index, threads)
        if status:
            _raise(status)

    def __dealloc__(self):
        ff_points_destroy(self.points)

    @property
    def small_batch(self):
        """See `Prepared`."""
        return ff_points_small_batch(self.points)

    @property
    def address(self):
        """Where the handle is, for callers in other languages; valid while this object lives."""
        return <uintptr_t>self.points

    cdef ff_queries _queries(self, cnp.ndarray x, cnp.ndarray coefficients):
        cdef ff_queries queries
        cdef int64_t columns = coefficients.shape[1]
        memset(&queries, 0, sizeof(queries))
        queries.x = _pointer(x)
        queries.dtype = _dtype(x)
        queries.count = x.shape[0]
        queries.alpha = <double *>_pointer(coefficients)
        queries.beta = queries.alpha + columns
        queries.variance = queries.beta + columns
        if coefficients.shape[0] > 3:
            queries.slope = queries.variance + columns
            queries.gain_constant = queries.slope + columns
            queries.gain_slope = queries.gain_constant + columns
        queries.stride = 0 if columns == 1 else 1
        return queries

    def moments(self, cnp.ndarray x, cnp.ndarray coefficients, want):
        cdef Py_ssize_t count = x.shape[0]
        cdef ff_queries queries = self._queries(x, coefficients)
        cdef ff_moments result
        memset(&result, 0, sizeof(result))
        log_total = np.empty(count)
        result.log_total = <double *>_pointer(log_total)
        mean = residual = entropy = collision = None
        if want.mean:
            mean, residual = np.empty_like(x), np.empty_like(x)
            result.mean, result.residual = _pointer(mean), _pointer(residual)
        if want.spread:
            entropy, collision = np.empty(count), np.empty(count)
            result.entropy, result.collision = <double *>_pointer(entropy), <double *>_pointer(collision)
        moments = Moments(log_total, mean, residual, entropy, collision)
        exclude = want.exclude
        queries.exclude = <int64_t *>_pointer(exclude)
        if coefficients.shape[0] > 3 or want.trace or want.tangent is not None:
            moments = self._second_order(&queries, &result, x, coefficients.shape[0] > 3, want, moments)
        cdef int status = 0
        cdef int threads = threads_of_call(self.num_threads)
        if count:
            with nogil:
                status = ff_points_moments(self.points, &queries, &result, threads)
        if status:
            _raise(status)
        return moments

    cdef _second_order(self, ff_queries *queries, ff_moments *result, cnp.ndarray x, bint differ, want, moments):
        """Room for the moments beside those of the first order."""
        cdef Py_ssize_t count = x.shape[0]
        more = {}
        if want.mean and differ:
            more["gain"], more["gained"] = np.empty(count), np.empty_like(x)
        if want.trace:
            more["trace"] = np.empty(count)
            if differ:
                more["cross"], more["gained_trace"] = np.empty(count), np.empty(count)
        if want.tangent is not None:
            direction, factors = want.tangent
            queries.direction = _pointer(direction)
            queries.residual_factor = <double *>_pointer(factors)
            queries.gained_factor = queries.residual_factor + count
            queries.mean_factor = queries.gained_factor + count
            more["tilt"], more["mean_product"] = np.empty(count), np.empty_like(x)
            if differ:
                more["gained_product"], more["gain_product"] = np.empty_like(x), np.empty_like(x)
        result.gain = <double *>_pointer(more.get("gain"))
        result.gained = _pointer(more.get("gained"))
        result.trace = <double *>_pointer(more.get("trace"))
        result.cross = <double *>_pointer(more.get("cross"))
        result.gained_trace = <double *>_pointer(more.get("gained_trace"))
        result.tilt = <double *>_pointer(more.get("tilt"))
        result.mean_product = _pointer(more.get("mean_product"))
        result.gained_product = _pointer(more.get("gained_product"))
        result.gain_product = _pointer(more.get("gain_product"))
        return replace(moments, **more)

    def logits(self, cnp.ndarray x, cnp.ndarray coefficients, int64_t start, int64_t stop):
        cdef Py_ssize_t count = x.shape[0]
        logits = np.empty((count, stop - start))
        if count == 0 or stop == start:
            return logits
        cdef ff_queries queries = self._queries(x, coefficients)
        cdef double *result = <double *>_pointer(logits)
        cdef int status
        cdef int threads = threads_of_call(self.num_threads)
        with nogil:
            status = ff_points_logits(self.points, &queries, start, stop, result, threads)
        if status:
            _raise(status)
        return logits


def operations():
    """Codes of the operations of a program, by name."""
    codes = {}
    while ff_operation_name(len(codes)) != NULL:
        codes[ff_operation_name(len(codes)).decode()] = len(codes)
    return codes


@cython.final
cdef class Program:
    """The formula of a schedule in the hands of the C library; see `fastflow.program`."""

    cdef ff_program program
    cdef object kept

    def __cinit__(self, constants, instructions, outputs):
        cdef cnp.ndarray numbers = np.array(constants, dtype=np.float64).reshape(-1)
        cdef cnp.ndarray steps = np.array(instructions, dtype=np.int32).reshape(-1, 3)
        self.kept = (numbers, steps)
        self.program.constants = <double *>_pointer(numbers)
        self.program.instructions = <ff_instruction *>_pointer(steps)
        self.program.num_constants, self.program.num_instructions = len(numbers), len(steps)
        for k in range(5):
            self.program.outputs[k] = outputs[k]
        if not ff_program_valid(&self.program):
            raise ValueError(f"the formula is too long: accepted are {FF_PROGRAM_VALUES} values")

    def __call__(self, double t):
        """alpha, beta, d_alpha, d_beta, alpha_d_alpha at t."""
        cdef double[5] outputs
        ff_program_run(&self.program, t, outputs)
        return tuple(outputs[k] for k in range(5))


# Values and factors up to this are finite, and far from what could overflow on the way to a velocity.
cdef double _MODERATE = 1e15


cdef bint _is_plain(object value):
    """Whether it is a contiguous NumPy array of native floats."""
    if not cnp.PyArray_CheckExact(value):
        return False
    cdef cnp.ndarray array = value
    cdef int kind = cnp.PyArray_TYPE(array)
    return (kind == cnp.NPY_FLOAT32 or kind == cnp.NPY_FLOAT64) and cnp.PyArray_ISCARRAY_RO(array)


cdef bint _is_moderate(const ff_field *field, const ff_times *times) noexcept nogil:
    """Whether variance is left at all times, and no factor is large."""
    cdef int64_t k
    cdef bint moderate = not times.singular
    for k in range(times.count):
        moderate &= fabs(times.rate[k]) <= _MODERATE and fabs(times.d_beta[k]) <= _MODERATE
        moderate &= field.source_mean == NULL or fabs(times.d_alpha[k]) <= _MODERATE
    return moderate


@cython.final
@cython.no_gc_clear  # likewise
cdef class Field:
    """A data set whose points share one variance, with its schedule: all that C needs to evaluate the velocity."""

    cdef ff_field field
    cdef readonly Native points
    cdef tuple kept
    cdef int rank
    cdef cnp.npy_intp event_shape[cnp.NPY_MAXDIMS]

    def __cinit__(self, Native points, Program schedule, double source_variance, double target_variance, source_mean,
                  tuple event_shape):
        self.points, self.kept = points, (schedule, source_mean)
        self.field.points, self.field.size = points.points, points.size
        self.field.source_variance, self.field.target_variance = source_variance, target_variance
        self.field.source_mean = <double *>_pointer(source_mean)
        self.field.schedule = schedule.program
        self.rank = len(event_shape)
        for k in range(self.rank):
            self.event_shape[k] = event_shape[k]

    def velocity(self, x, t):
        """The velocity at queries x (B, *event) or one event, at t: a float, or an array of one or of B of them.

        None for whatever is not plain, or not accepted: anything but a contiguous NumPy array of native floats, values
        that are not moderate, times that leave no variance.
        """
        if not _is_plain(x):
            return None
        cdef cnp.ndarray queries = x
        cdef cnp.npy_intp *dims = cnp.PyArray_DIMS(queries)
        cdef int k, before = cnp.PyArray_NDIM(queries) - self.rank
        if before != 0 and before != 1:
            return None
        for k in range(self.rank):
            if dims[before + k] != self.event_shape[k]:
                return None
        cdef int64_t count = dims[0] if before else 1, times_given = 1
        cdef double time = 0.0
        cdef void *t_values = &time
        cdef ff_dtype t_dtype = FF_FLOAT64
        if PyFloat_CheckExact(t) or type(t) is np.float64:
            time = t
        elif _is_plain(t):
            times_given = cnp.PyArray_SIZE(t)
            shaped = cnp.PyArray_NDIM(t) == 1 or (cnp.PyArray_NDIM(t) == 2 and cnp.PyArray_DIMS(t)[1] == 1)
            if not (times_given == 1 and cnp.PyArray_NDIM(t) <= 2) and not (before and times_given == count and shaped):
                return None
            t_values, t_dtype = cnp.PyArray_DATA(t), _dtype(t)
        else:
            return None
        if count == 0:
            return None
        result = cnp.PyArray_EMPTY(before + self.rank, dims, cnp.PyArray_TYPE(queries), 0)
        cdef void *values = cnp.PyArray_DATA(queries)
        cdef void *to = cnp.PyArray_DATA(result)
        cdef ff_dtype dtype = _dtype(queries)
        cdef int threads = threads_of_call(self.points.num_threads)
        cdef double one_time[FF_TIME_NUMBERS]
        cdef double *memory = one_time
        cdef ff_times times
        cdef ff_bad_time bad
        cdef bint plain
        cdef int status = FF_OK
        with nogil:
            if times_given > 1:
                memory = <double *>malloc(<size_t>times_given * FF_TIME_NUMBERS * sizeof(double))
            plain = memory == NULL or (
                ff_first_beyond(_MODERATE, values, dtype, count * self.field.size) < 0
                and ff_field_times(&self.field, t_values, t_dtype, times_given, memory, &times, &bad)
                and _is_moderate(&self.field, &times)
            )
            if memory == NULL:
                status = FF_NO_MEMORY
            elif plain:
                status = ff_field_velocity(&self.field, &times, values, dtype, count, to, threads)
            if memory != one_time:
                free(memory)
        if status:
            _raise(status)
        return result if plain else None


# The handlers by the name that XLA knows them by, as JAX takes them.
XLA_HANDLERS = {
    "fastflow_velocity": PyCapsule_New(<void *>ff_xla_velocity, "xla._CUSTOM_CALL_TARGET", NULL),
    "fastflow_product": PyCapsule_New(<void *>ff_xla_product, "xla._CUSTOM_CALL_TARGET", NULL),
}


@cython.final
@cython.no_gc_clear  # the field outlives its withdrawal
cdef class Published:
    """A field that the handlers of XLA know by a number, for as long as this object lives."""

    cdef readonly int64_t number
    cdef Field field

    def __cinit__(self, int64_t number, Field field):
        self.field = field
        cdef int status = ff_xla_publish(number, &field.field, field.points.num_threads)
        if status:
            _raise(status)
        self.number = number

    def __dealloc__(self):
        cdef int64_t number = self.number
        with nogil:  # calls that are at work are waited for
            ff_xla_withdraw(number)
