# cython: language_level=3
"""The native backend: the C library of csrc/, called without the GIL."""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t

cimport cython
cimport numpy as cnp

import numpy as np

from ..moments import Moments
from . import Backend, usable_cores

cnp.import_array()


cdef extern from "ff.h" nogil:
    ctypedef enum ff_dtype:
        FF_FLOAT32
        FF_FLOAT64
    ctypedef struct ff_points:
        pass
    ctypedef struct ff_queries:
        const void *x
        ff_dtype dtype
        int64_t count
        const double *alpha
        const double *beta
        const double *variance
        int64_t stride
    ctypedef struct ff_moments:
        double *log_total
        void *mean
        void *residual
        double *entropy
        double *collision
    const char *ff_status_text(int status)
    const char *ff_isa_name(int isa)
    int ff_isa_runs(int isa)
    int ff_small_batch()
    int ff_points_create(ff_points **points, const void *data, ff_dtype dtype, int64_t count, int64_t size,
                         const double *log_mass, const double *source_mean, int isa, int num_threads)
    void ff_points_destroy(ff_points *points)
    int ff_points_moments(const ff_points *points, const ff_queries *queries, const ff_moments *result,
                          int num_threads)
    int ff_points_logits(const ff_points *points, const ff_queries *queries, int64_t start, int64_t stop,
                         double *logits, int num_threads)

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
    isas = tuple(name for name, runs in built_isas().items() if runs)
    return Backend(
        prepare=Native,
        isas=isas,
        small_batch=ff_small_batch(),
        detail=f"C extension; best instruction set here: {isas[-1]}",
    )


cdef ff_dtype _dtype(cnp.ndarray array):
    return FF_FLOAT32 if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32 else FF_FLOAT64


cdef void *_pointer(cnp.ndarray array):
    """Address of a C-contiguous float32 or float64 array; the caller keeps the array alive."""
    return cnp.PyArray_DATA(array)


@cython.final
cdef class Native:
    """A data set in the hands of the C library. Holds what the library points into."""

    cdef ff_points *points
    cdef readonly int num_threads
    cdef int64_t count, size
    cdef object kept

    def __cinit__(self, points, isa, num_threads):
        data, log_mass, source_mean = points
        cdef const double *mass_pointer = NULL if log_mass is None else <double *>_pointer(log_mass)
        cdef const double *mean_pointer = NULL if source_mean is None else <double *>_pointer(source_mean)
        self.kept = points
        self.num_threads = num_threads or usable_cores()
        self.count, self.size = data.shape[0], data.shape[1]
        cdef int index = list(built_isas()).index(isa)
        cdef int status
        cdef int threads = self.num_threads
        cdef const void *data_pointer = _pointer(data)
        cdef ff_dtype dtype = _dtype(data)
        cdef int64_t count = self.count, size = self.size
        with nogil:
            status = ff_points_create(&self.points, data_pointer, dtype, count, size, mass_pointer, mean_pointer,
                                      index, threads)
        if status:
            _raise(status)

    def __dealloc__(self):
        ff_points_destroy(self.points)

    cdef ff_queries _queries(self, cnp.ndarray x, cnp.ndarray coefficients):
        cdef ff_queries queries
        cdef int64_t columns = coefficients.shape[1]
        queries.x = _pointer(x)
        queries.dtype = _dtype(x)
        queries.count = x.shape[0]
        queries.alpha = <double *>_pointer(coefficients)
        queries.beta = queries.alpha + columns
        queries.variance = queries.beta + columns
        queries.stride = 0 if columns == 1 else 1
        return queries

    def moments(self, cnp.ndarray x, cnp.ndarray coefficients, bint mean, bint spread):
        cdef Py_ssize_t count = x.shape[0]
        log_total = np.empty(count)
        means = np.empty_like(x) if mean else None
        residuals = np.empty_like(x) if mean else None
        entropies = np.empty(count) if spread else None
        collisions = np.empty(count) if spread else None
        moments = Moments(log_total, means, residuals, entropies, collisions)
        if count == 0:
            return moments
        cdef ff_queries queries = self._queries(x, coefficients)
        cdef ff_moments result
        result.log_total = <double *>_pointer(log_total)
        result.mean = _pointer(means) if mean else NULL
        result.residual = _pointer(residuals) if mean else NULL
        result.entropy = <double *>_pointer(entropies) if spread else NULL
        result.collision = <double *>_pointer(collisions) if spread else NULL
        cdef int status
        cdef int threads = self.num_threads
        with nogil:
            status = ff_points_moments(self.points, &queries, &result, threads)
        if status:
            _raise(status)
        return moments

    def logits(self, cnp.ndarray x, cnp.ndarray coefficients, int64_t start, int64_t stop):
        cdef Py_ssize_t count = x.shape[0]
        logits = np.empty((count, stop - start))
        if count == 0 or stop == start:
            return logits
        cdef ff_queries queries = self._queries(x, coefficients)
        cdef double *result = <double *>_pointer(logits)
        cdef int status
        cdef int threads = self.num_threads
        with nogil:
            status = ff_points_logits(self.points, &queries, start, stop, result, threads)
        if status:
            _raise(status)
        return logits
