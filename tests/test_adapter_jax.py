"""The JAX adapter: both routes give the field's own numbers, compiled, batched, differentiated, and in ODE solvers."""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import subprocess
import sys
import sysconfig
import threading
import warnings
import weakref
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import _require, quick_backend

import fastflow as ff
from fastflow.adapters.jax import ode_function, velocity_fn
from fastflow.program import NotRecordable, recorded

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(60, 2, 3))
LABELS = np.arange(60) % 3
X = RNG.normal(size=(5, 2, 3))
U = RNG.normal(size=(5, 2, 3))
TIMES = RNG.random(5)
DTYPES = (np.float32, np.float64)


@pytest.fixture(autouse=True)
def with_float64():
    """float64 in JAX for these tests, and as it was afterwards."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=["ffi", "callback"])
def route(request) -> str:
    if request.param == "ffi":
        _require("native")
    return request.param


def made(route, data=DATA, **options):
    """A field that the route serves, and its function. (NumPy's backend needs no compilation.)"""
    field = ff.VelocityField(data, backend="native" if route == "ffi" else "numpy", **options)
    function = velocity_fn(field, route=route)
    assert function.route == route
    return field, function


def test_without_jax(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastflow.adapters.jax")
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ImportError, match=r'jax is not installed; get it with: pip install "fastflow\[jax\]"'):
        importlib.import_module("fastflow.adapters.jax")


# Which route ----------------------------------------------------------------------------------------------------


def test_the_route_by_backend(backend):
    function = velocity_fn(ff.VelocityField(DATA, backend=backend))
    assert function.route == ("ffi" if backend == "native" else "callback")
    assert backend in function.route_reason


@pytest.mark.parametrize(
    "options",
    [
        {"variance": np.linspace(0.1, 0.2, 60)},
        {"covariance": np.diag(np.arange(1.0, 7.0))},
        {"source_covariance": np.diag(np.arange(1.0, 7.0))},
        {"schedule": ff.schedules.Custom(lambda t: 1 - t, lambda t: t)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_models_take_the_callback(options):
    _require("native")
    field = ff.VelocityField(DATA, backend="native", **options)
    function = velocity_fn(field)
    assert function.route == "callback", function.route_reason
    np.testing.assert_array_equal(jax.jit(function)(X, 0.3), field(X, 0.3))
    _, back = jax.vjp(lambda x: function(x, 0.3), X)
    np.testing.assert_allclose(back(jnp.asarray(U))[0], field.vjp(X, 0.3, U), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="route='ffi' cannot serve this field: "):
        velocity_fn(field, route="ffi")


# Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ff.schedules.names())
def test_program_of_a_schedule(schedule):
    """The formula as C evaluates it gives the same numbers, bit for bit."""
    _require("native")
    from fastflow.backends import native

    schedule = ff.schedules.get(schedule)
    codes, program = native.operations(), recorded(schedule)
    steps = [(codes[operation], a, b) for operation, a, b in program.instructions]
    in_c = native.Program(program.constants, steps, program.outputs)
    for t in (*np.linspace(0, 1, 33).tolist(), 1e-300, 1 - 2**-53):
        assert in_c(t) == tuple(schedule(t)), t


def test_formulas_that_are_no_program():
    class Branching(ff.schedules.Schedule):
        name = "branching"

        def _formula(self, t, s, m):
            return (s, t, -1.0, 1.0, -s) if t < 0.5 else (1.0 - t, t, -1.0, 1.0, -s)

    class Outside(Branching):
        def _formula(self, t, s, m):
            return s, np.sin(t), -1.0, 1.0, -s

    for schedule in (Branching(), Outside(), ff.schedules.Custom(lambda t: 1 - t, lambda t: t)):
        with pytest.raises(NotRecordable, match="schedule"):
            recorded(schedule)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", ff.schedules.names())
def test_values_and_derivatives(schedule, dtype):
    _require("native")
    check_values_and_derivatives("ffi", schedule, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_derivatives_by_callback(dtype):
    check_values_and_derivatives("callback", "vp", dtype)


def check_values_and_derivatives(route, schedule, dtype):
    options = {"source_mean": 0.3, "source_variance": 2.0, "variance": 0.01, "weights": RNG.random(60)}
    field, function = made(route, DATA.astype(dtype), schedule=schedule, **options)
    x, u = X.astype(dtype), U.astype(dtype)
    for t in (dtype(0.3), TIMES.astype(dtype), TIMES.astype(dtype)[:, None], 0.0, 1e-6):
        value, forward = jax.jvp(lambda x, t=t: function(x, t), (x,), (u,))
        assert value.dtype == forward.dtype == dtype
        assert value.shape == forward.shape == x.shape
        np.testing.assert_array_equal(value, field(x, t))
        np.testing.assert_array_equal(forward, field.jvp(x, t, u))
        _, back = jax.vjp(lambda x, t=t: function(x, t), x)
        np.testing.assert_array_equal(back(jnp.asarray(u))[0], field.vjp(x, t, u))
    np.testing.assert_array_equal(function(x[0], 0.5), field(x[0], 0.5))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
def test_end_of_time_without_variance(route, schedule):
    field, function = made(route, schedule=schedule)
    np.testing.assert_allclose(function(X, 1.0), field(X, 1.0), rtol=1e-12, atol=1e-12)
    with pytest.raises(jax.errors.JaxRuntimeError, match="does not exist at t = 1"):
        jax.block_until_ready(jax.jvp(lambda x: function(x, 1.0), (X,), (U,)))


def test_unbounded_velocity(route):
    _, function = made(route, schedule="vp", source_mean=0.5)
    with pytest.raises(jax.errors.JaxRuntimeError, match="unbounded at t = 1"):
        function(X, 1.0).block_until_ready()


def test_without_float64(route):
    jax.config.update("jax_enable_x64", False)
    field, function = made(route)
    value = jax.jit(function)(X, 0.3)
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, field(X.astype(np.float32), np.float32(0.3)))


def test_labels_and_guidance(route):
    field, _ = made(route, variance=0.01, labels=LABELS)
    plain = velocity_fn(field, label=1, route=route)
    np.testing.assert_array_equal(plain(X, 0.4), field(X, 0.4, label=1))
    guided = velocity_fn(field, label=1, guidance=0.7, route=route)
    np.testing.assert_allclose(guided(X, 0.4), field(X, 0.4, label=1, guidance=0.7), rtol=1e-9, atol=1e-9)
    _, forward = jax.jvp(lambda x: guided(x, 0.4), (X,), (U,))
    expected = 1.7 * field.jvp(X, 0.4, U, label=1) - 0.7 * field.jvp(X, 0.4, U)
    np.testing.assert_allclose(forward, expected, rtol=1e-9, atol=1e-9)


def test_no_points(route):
    _, function = made(route)
    assert function(np.empty((0, 2, 3)), 0.5).shape == (0, 2, 3)
    assert jax.vmap(function, (0, None))(np.empty((3, 0, 2, 3)), 0.5).shape == (3, 0, 2, 3)


# Transformations ------------------------------------------------------------------------------------------------


def test_vmap_is_one_call(route):
    field, function = made(route, variance=0.01)
    expected = field(X, TIMES)
    np.testing.assert_array_equal(jax.vmap(function)(X, TIMES), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(function, (2, 0)))(np.moveaxis(X, 0, 2), TIMES), expected)
    grid = jax.vmap(jax.vmap(function, (0, None)), (None, 0))(X, TIMES)  # every x with every t
    pairs = field(np.concatenate([X] * len(TIMES)), np.repeat(TIMES, len(X))).reshape(len(TIMES), *X.shape)
    np.testing.assert_array_equal(grid, pairs)
    np.testing.assert_array_equal(jax.vmap(function, (None, 0))(X, TIMES), pairs)
    batches = jax.vmap(function, (0, None))(np.stack([X, U]), TIMES)
    both = field(np.concatenate([X, U]), np.concatenate([TIMES, TIMES])).reshape(2, *X.shape)
    np.testing.assert_array_equal(batches, both)
    assert str(jax.make_jaxpr(jax.vmap(jax.vmap(function, (0, None)), (None, 0)))(X, TIMES)).count("fastflow") == 1


def test_whole_jacobians(route):
    field, function = made(route, variance=0.01)
    basis = np.eye(6).reshape(6, 2, 3)
    expected = np.stack([field.jvp(X[0], 0.4, u) for u in basis], axis=-1).reshape(2, 3, 2, 3)
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jacobian(lambda x: function(x, 0.4))(X[0]), expected, rtol=1e-9, atol=1e-12)


def test_anisotropic_source_transposes():
    """The one Jacobian that is not symmetric."""
    options = {"variance": 0.01, "source_covariance": np.diag(np.arange(1.0, 7.0))}
    function = velocity_fn(ff.VelocityField(DATA, backend="numpy", **options))
    forward, reverse = (j(lambda x: function(x, 0.4))(X[0]).reshape(6, 6) for j in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-9)
    assert np.abs(forward - forward.T).max() > 1e-3


def test_loops_and_checkpoints(route):
    """An Euler loop as a scan, with what it remembers computed again."""
    field, function = made(route, variance=0.01)
    w = jnp.asarray(U)

    @jax.checkpoint
    def step(x, t):
        return x + 0.1 * function(x, t), None

    def loss(x):
        return (w * jax.lax.scan(step, x, jnp.arange(10) / 10)[0]).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(X)
    expected = field.sample(X, steps=10, method="euler")
    np.testing.assert_allclose(value, (U * expected).sum(), rtol=1e-12)
    ahead, behind = (loss(X + sign * 1e-5 * U) for sign in (1, -1))
    np.testing.assert_allclose((gradient * U).sum(), (ahead - behind) / 2e-5, rtol=1e-6)


# Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "t", "error", "message"),
    [
        (X.astype(np.float16), 0.5, TypeError, "x has dtype float16; accepted are float32 and float64"),
        (X.astype(np.int32), 0.5, TypeError, "x has dtype int32"),
        (X.astype(complex), 0.5, TypeError, "x has dtype complex128"),
        (X[:, :1], 0.5, ValueError, r"x has shape \(5, 1, 3\); accepted is one event of shape \(2, 3\)"),
        (X[None], 0.5, ValueError, "jax.vmap serves further axes"),
        (X, TIMES[:3], ValueError, r"t has shape \(3,\); accepted is a scalar, \(5,\) or \(5, 1\)"),
        (X, True, TypeError, "t has dtype bool"),
        (X, 1.5, ValueError, "t is 1.5; times must lie in"),
        (X, -TIMES, ValueError, "times must lie in"),
        ("x", 0.5, TypeError, "x cannot be read as an array"),
    ],
)
def test_refused_before_anything_runs(x, t, error, message):
    with pytest.raises(error, match=message):
        velocity_fn(ff.VelocityField(DATA, backend=quick_backend()))(x, t)


@pytest.mark.parametrize(
    ("x", "t", "message"), [(X, 1.5, "times must lie in"), (X, np.nan, "t.* is nan"), (X * np.inf, 0.5, "finite")]
)
def test_refused_as_it_runs(route, x, t, message):
    _, function = made(route)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.jit(function)(x, t).block_until_ready()


def test_derivatives_that_are_refused(route):
    _, function = made(route)
    with pytest.raises(TypeError, match="differentiated in t, which is not provided"):
        jax.grad(lambda t: function(X, t).sum())(0.3)
    with pytest.raises(TypeError, match="differentiated twice, which is not provided"):
        jax.hessian(lambda x: function(x, 0.3).sum())(X[0])
    stopped = jax.grad(lambda x: function(x, jax.lax.stop_gradient(0.5 * jnp.tanh(x[0, 0]) ** 2)).sum())(X[0])
    assert np.all(np.isfinite(stopped))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label": 9}, ValueError, "label 9 does not occur"),
        ({"label": [0, 1]}, TypeError, "accepted is one class, a whole number"),
        ({"label": True}, TypeError, "label is True; accepted is one class, a whole number"),
        ({"label": np.True_}, TypeError, "accepted is one class, a whole number"),
        ({"label": 1.0}, TypeError, "label is 1.0; accepted is one class, a whole number"),
        ({"guidance": 1.0}, ValueError, "guidance is given without label"),
        ({"route": "gpu"}, ValueError, "route is 'gpu'; accepted is one of auto, ffi, callback"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        velocity_fn(ff.VelocityField(DATA, backend=quick_backend(), labels=LABELS), **options)


def test_field_is_required():
    with pytest.raises(TypeError, match="field is ndarray; accepted is a VelocityField"):
        velocity_fn(DATA)


# Lifetimes, threads, forks --------------------------------------------------------------------------------------


def test_what_is_compiled_keeps_the_field_and_nothing_else_does(route):
    def eager(field):
        function = velocity_fn(field, route=route)
        function(X, 0.3).block_until_ready()
        jax.grad(lambda x: function(x, 0.3).sum())(X).block_until_ready()

    def compiled(field):
        return jax.jit(lambda x: velocity_fn(field, route=route)(x, 0.3)).lower(X).compile()

    for use in (eager, compiled):
        field, _ = made(route)
        alive, expected = weakref.ref(field), field(X, 0.3)
        kept = use(field)
        del field, _
        gc.collect()
        if kept is not None:
            np.testing.assert_array_equal(kept(X), expected)
            del kept
            gc.collect()
        assert alive() is None


def test_gone_field_is_an_error(route):
    def traced():
        field, _ = made(route)
        return jax.jit(lambda x: velocity_fn(field, route=route)(x, 0.3)).trace(X)

    kept = traced()
    gc.collect()
    with pytest.raises(RuntimeError, match="the field of this function is gone"):
        kept.lower()


def test_withdrawn_number_is_an_error():
    """What XLA still holds the number of a field that is gone does not compute with its memory."""
    _require("native")
    made("ffi")  # registers the handlers
    call = jax.ffi.ffi_call("fastflow_velocity", jax.ShapeDtypeStruct((5, 6), np.float64))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the field of this function is gone"):
        call(X.reshape(5, 6), np.array([0.3]), field=np.int64(1)).block_until_ready()


def test_several_threads(route):
    data = RNG.normal(size=(2000, 20))
    field, function = made(route, data, variance=0.01)
    x = RNG.normal(size=(20, 20))
    compiled, expected = jax.jit(function), field(x, 0.6)
    wrong = []

    def work():
        for _ in range(10):
            if not np.array_equal(compiled(x, 0.6), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    assert not wrong


def _in_child(field, x, expected):
    same = np.array_equal(field(x, 0.6), expected)
    del field
    gc.collect()  # withdraws the field
    raise SystemExit(0 if same else 1)


def test_fork_after_use(route):
    """The child has no JAX to use, but the field, and may drop it, also while the parent computes."""
    data = RNG.normal(size=(3000, 20))
    field, function = made(route, data, variance=0.01)
    x = RNG.normal(size=(40, 20))
    compiled, expected = jax.jit(function), field(x, 0.6)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            compiled(x, 0.6).block_until_ready()

    busy = threading.Thread(target=work, daemon=True)
    busy.start()
    try:
        for _ in range(3):
            child = multiprocessing.get_context("fork").Process(target=_in_child, args=(field, x, expected))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of threads that a child does not have
                child.start()
            child.join(60)
            assert child.exitcode == 0, "wrong result" if child.exitcode == 1 else "deadlock"
    finally:
        stop.set()
        busy.join(60)
    np.testing.assert_array_equal(compiled(x, 0.6), expected)


# ODE solvers ----------------------------------------------------------------------------------------------------


EXACT = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-11}
ADAPTIVE = diffrax.PIDController(rtol=1e-7, atol=1e-9)


def solved(fun, x, solver, step, controller=None, t_span=(0.0, 1.0), adjoint=None):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(fun),
        solver,
        *t_span,
        step,
        x,
        stepsize_controller=controller or diffrax.ConstantStepSize(),
        adjoint=adjoint or diffrax.RecursiveCheckpointAdjoint(),
        max_steps=64,
    ).ys[-1]


@pytest.mark.parametrize(
    ("solver", "step", "controller", "adjoint", "sampler", "tolerances"),
    [
        (diffrax.Euler(), 0.05, None, diffrax.DirectAdjoint(), {"method": "euler", "steps": 20}, (1e-12, 1e-7)),
        (diffrax.Dopri5(), None, ADAPTIVE, diffrax.RecursiveCheckpointAdjoint(), EXACT, (1e-5, 1e-5)),
        (diffrax.Dopri5(), None, ADAPTIVE, diffrax.BacksolveAdjoint(), EXACT, (1e-5, 1e-4)),
    ],
    ids=["fixed", "adaptive", "adjoint equation"],
)
def test_diffrax(solver, step, controller, adjoint, sampler, tolerances):
    """The points are those of the field's sampler, the gradient in the start is that of differences."""
    field = ff.VelocityField(DATA, backend=quick_backend(), variance=0.05)
    fun = ode_function(field)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(x):
        final = solved(fun, x, solver, step, controller, adjoint=adjoint)
        return (jnp.asarray(U) * final).sum(), final

    (_, final), gradient = loss(X)
    np.testing.assert_allclose(final, field.sample(X, **sampler), rtol=0, atol=tolerances[0])
    ahead, behind = (loss(X + sign * 1e-5 * U)[0][0] for sign in (1, -1))
    np.testing.assert_allclose((gradient * U).sum(), (ahead - behind) / 2e-5, rtol=tolerances[1])


def test_diffrax_back_in_time():
    field = ff.VelocityField(DATA, backend=quick_backend(), variance=0.05)
    fun = ode_function(field, t_span=(1, 0))
    found = solved(fun, jnp.asarray(X), diffrax.Dopri5(), None, ADAPTIVE, (1.0, 0.0), diffrax.DirectAdjoint())
    np.testing.assert_allclose(found, field.sample(X, t_span=(1, 0), **EXACT), rtol=0, atol=1e-5)


def test_solver_times():
    field = ff.VelocityField(DATA, backend=quick_backend())
    fun = ode_function(field)
    np.testing.assert_array_equal(fun(1.0 + 1e-9, X), fun(1.0, X))
    with pytest.raises(ValueError, match="cannot start from or pass through t = 1"):
        ode_function(field, t_span=(1.0, 0.0))
    with pytest.raises(ValueError, match="times must lie in"):
        ode_function(field, t_span=(0.0, 1000.0))


# The binary interface -------------------------------------------------------------------------------------------

# Ours, JAX's, and the fields in the order of both.
STRUCTS = [
    ("ff_xla_extension", "XLA_FFI_Extension_Base", "struct_size type next", None),
    ("ff_xla_version", "XLA_FFI_Api_Version", "struct_size extensions=extension_start major=major_version", None),
    ("ff_xla_version", "XLA_FFI_Api_Version", "minor=minor_version", None),
    ("ff_xla_metadata", "XLA_FFI_Metadata", "struct_size version=api_version traits", None),
    ("ff_xla_metadata_extension", "XLA_FFI_Metadata_Extension", "base=extension_base metadata", None),
    ("ff_xla_error_args", "XLA_FFI_Error_Create_Args", "struct_size extensions=extension_start message code=errc", 0),
    ("ff_xla_api", "XLA_FFI_Api", "struct_size extensions=extension_start version=api_version", None),
    ("ff_xla_api", "XLA_FFI_Api", "internal=internal_api create_error=XLA_FFI_Error_Create", None),
    ("ff_xla_buffer", "XLA_FFI_Buffer", "struct_size extensions=extension_start type=dtype data rank dims", 0),
    ("ff_xla_span", "XLA_FFI_ByteSpan", "text=ptr length=len", 0),
    ("ff_xla_scalar", "XLA_FFI_Scalar", "type=dtype value", 0),
    ("ff_xla_list", "XLA_FFI_Args", "struct_size extensions=extension_start count=size kinds=types values=args", 0),
    ("ff_xla_list", "XLA_FFI_Rets", "struct_size extensions=extension_start count=size kinds=types values=rets", 0),
    ("ff_xla_attributes", "XLA_FFI_Attrs", "struct_size extensions=extension_start count=size kinds=types", 0),
    ("ff_xla_attributes", "XLA_FFI_Attrs", "names values=attrs", 0),
    ("ff_xla_call", "XLA_FFI_CallFrame", "struct_size extensions=extension_start api context=ctx stage", None),
    ("ff_xla_call", "XLA_FFI_CallFrame", "arguments=args results=rets attributes=attrs", None),
]
VALUES = {
    "FF_XLA_EXTENSION_METADATA": "XLA_FFI_Extension_Metadata",
    "FF_XLA_STAGE_EXECUTE": "XLA_FFI_ExecutionStage_EXECUTE",
    "FF_XLA_SCALAR": "XLA_FFI_AttrType_SCALAR",
    "FF_XLA_S64": "XLA_FFI_DataType_S64",
    "FF_XLA_F32": "XLA_FFI_DataType_F32",
    "FF_XLA_F64": "XLA_FFI_DataType_F64",
    "FF_XLA_INVALID_ARGUMENT": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "FF_XLA_NOT_FOUND": "XLA_FFI_Error_Code_NOT_FOUND",
    "FF_XLA_RESOURCE_EXHAUSTED": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "FF_XLA_INTERNAL": "XLA_FFI_Error_Code_INTERNAL",
}


def test_layout_is_that_of_the_installed_header(tmp_path):
    """What csrc/xla/ff_xla_abi.h declares has the offsets, sizes and values of the header that JAX brings."""
    checks = ['#include "ff_xla_abi.h"', '#include "xla/ffi/api/c_api.h"']
    for ours, theirs, fields, whole in STRUCTS:
        for field in fields.split():
            own, _, other = field.partition("=")
            other = other or own
            checks.append(f"_Static_assert(offsetof({ours}, {own}) == offsetof({theirs}, {other}), {own!r});")
            size = f"sizeof((({ours} *)0)->{own}) == sizeof((({theirs} *)0)->{other})"
            if own not in ("attributes", "metadata"):
                checks.append(f"_Static_assert({size}, {own!r});")
        if whole is not None:
            checks.append(f"_Static_assert(sizeof({ours}) == sizeof({theirs}), {ours!r});")
    for ours, theirs in VALUES.items():
        checks.append(f"_Static_assert((int){ours} == (int){theirs}, {ours!r});")
    for theirs in ("XLA_FFI_ArgType_BUFFER", "XLA_FFI_RetType_BUFFER"):
        checks.append(f"_Static_assert((int)FF_XLA_BUFFER == (int){theirs}, {theirs!r});")
    source = tmp_path / "layout.c"
    source.write_text("\n".join(checks).replace("'", '"') + "\n")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    own = Path(__file__).parents[1] / "csrc" / "xla"
    command = [*compiler, "-std=c11", "-fsyntax-only", f"-I{own}", f"-I{jax.ffi.include_dir()}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
