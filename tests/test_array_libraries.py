"""Arrays of other libraries: the numbers are NumPy's, and library, dtype and device are those of x."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
import warnings

import array_api_strict
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import fastflow as ff
from fastflow import _interop

N, D, B = 40, 3, 5


def to_torch(array):
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array.copy())


def from_torch(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


# How to make an array of a library, how to read one, and its type.
LIBRARIES = {
    "torch": (to_torch, from_torch, torch.Tensor),
    "jax": (jnp.asarray, np.asarray, jax.Array),
    "array_api_strict": (array_api_strict.asarray, np.from_dlpack, type(array_api_strict.asarray(1.0))),
}
DTYPES = {"torch": ("float64", "float32", "float16", "bfloat16"), "jax": ("float32", "float16", "bfloat16")}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "data": rng.standard_normal((N, D)).astype(np.float32),
        "labels": rng.integers(0, 2, N),
        "x": rng.standard_normal((B, D)).astype(np.float32),
        "t": rng.uniform(0.1, 0.8, B).astype(np.float32),
        "u": rng.standard_normal((B, D)).astype(np.float32),
        "label": rng.integers(0, 2, B),
        "index": rng.integers(0, N, B),
    }


def field_of(arrays):
    return ff.VelocityField(arrays["data"], labels=arrays["labels"], variance=0.1)


# Every method that returns arrays, on arguments from `arrays`.
CALLS = {
    **{
        name: lambda f, a, name=name: getattr(f, name)(a["x"], a["t"], label=a["label"])
        for name in (
            "velocity",
            "target_mean",
            "source_mean",
            "score",
            "log_density",
            "entropy",
            "effective_sample_size",
            "velocity_variance",
            "divergence",
            "weights",
        )
    },
    "__call__": lambda f, a: f(a["x"], a["t"], exclude=a["index"]),
    "evaluate": lambda f, a: f.evaluate(x=a["x"], t=a["t"], quantities=("velocity", "log_density")),
    "top_k": lambda f, a: f.top_k(a["x"], a["t"], 3, subset=a["labels"] == 1),
    "posterior_sample": lambda f, a: f.posterior_sample(a["x"], a["t"], rng=1),
    "posterior_draw": lambda f, a: f.posterior_draw(a["x"], a["t"], rng=1),
    **{
        name: lambda f, a, name=name: getattr(f, name)(a["x"], a["t"], a["u"])
        for name in ("jvp", "vjp", "target_covariance_product")
    },
    "finish": lambda f, a: f.finish(f.moments(a["x"], a["t"]), a["x"], a["t"], ("velocity", "entropy")),
    "sample": lambda f, a: f.sample(a["x"], steps=3, label=a["label"], return_path=True),
    "encode": lambda f, a: f.encode(a["x"], method="rk4", steps=3),
    "log_likelihood": lambda f, a: f.log_likelihood(a["x"], method="euler", steps=3, return_noise=True),
    "targets": lambda f, a: f.targets(a["x"], a["t"], num_subset=4, index=a["index"], rng=1),
    "training_batch": lambda f, a: f.training_batch(B, t=a["t"], label=a["label"], rng=1),
}


def flat(result):
    """The arrays in a result, in order."""
    if isinstance(result, dict):
        return list(result.values())
    return list(result) if isinstance(result, tuple) else [result]


def converted(arrays, make):
    return {name: make(array) for name, array in arrays.items()}


def public_methods():
    for name, method in vars(ff.VelocityField).items():
        if callable(method) and (not name.startswith("_") or name == "__call__"):
            yield name, inspect.signature(method)


def test_every_method_is_here():
    returns_no_arrays = {"moments", "cfm_loss_floor", "from_mixture", "with_schedule"}
    assert {name for name, _ in public_methods()} - returns_no_arrays == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_results_are_those_of_numpy(library, arrays, call):
    make, read, kind = LIBRARIES[library]
    want = CALLS[call](field_of(arrays), arrays)
    theirs = converted(arrays, make)
    before = {name: np.array(read(array)) for name, array in theirs.items()}
    got = CALLS[call](field_of(theirs), theirs)
    assert type(got) is type(want) or isinstance(got, kind)
    if isinstance(got, dict):
        assert list(got) == list(want)
    for have, expected in zip(flat(got), flat(want), strict=True):
        assert isinstance(have, kind)
        have = read(have)
        if library == "jax" and expected.dtype in (np.float64, np.int64):  # as JAX without x64 has it
            expected = expected.astype({"f": np.float32, "i": np.int32}[expected.dtype.kind])
        assert have.dtype == expected.dtype and have.shape == expected.shape
        assert np.array_equal(have, expected)
    assert all(np.array_equal(read(theirs[name]), before[name]) for name in theirs)


@pytest.mark.parametrize("library, dtype", [(lib, dtype) for lib in DTYPES for dtype in DTYPES[lib]])
def test_dtypes_are_kept(arrays, library, dtype):
    make, read, kind = LIBRARIES[library]
    x = arrays["x"].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    field = ff.VelocityField(make(x))
    assert field.num_points == B
    for call in (
        lambda f, x: f(x, 0.3),
        lambda f, x: f.score(x[0], 0.3),
        lambda f, x: f.jvp(x, 0.3, x),
        lambda f, x: f.sample(x, steps=2),
        lambda f, x: f.posterior_draw(x, 0.3, rng=0)[1],
    ):
        got, want = call(field, make(x)), call(ff.VelocityField(x), x)
        assert isinstance(got, kind) and str(got.dtype).endswith(dtype)
        assert want.dtype == x.dtype and np.array_equal(read(got), want)


def test_one_event_and_scalars(library, arrays):
    make, read, kind = LIBRARIES[library]
    x, field = make(arrays["x"][0]), field_of(arrays)
    result = field.evaluate(x, make(np.float32(0.5)), ("velocity", "log_density"), label=make(np.int64(1)))
    want = field.evaluate(arrays["x"][0], 0.5, ("velocity", "log_density"), label=1)
    assert all(isinstance(value, kind) for value in result.values())
    assert np.array_equal(read(result["velocity"]), want["velocity"])
    np.testing.assert_allclose(float(result["log_density"]), want["log_density"], rtol=1e-6)


def test_x_decides(library, arrays):
    """NumPy's x beside others' arguments gives NumPy's arrays, and the other way round theirs."""
    make, _, kind = LIBRARIES[library]
    field = field_of(arrays)
    assert type(field(arrays["x"], make(arrays["t"]), label=make(arrays["label"]))) is np.ndarray
    assert isinstance(field(make(arrays["x"]), arrays["t"], label=arrays["label"].tolist()), kind)
    assert type(field.sample(3, steps=make(np.array([0.0, 0.5], np.float32)), seed=0)) is np.ndarray


def test_the_function(library, arrays):
    make, read, kind = LIBRARIES[library]
    got = ff.velocity(make(arrays["x"]), 0.3, make(arrays["data"]))
    assert isinstance(got, kind)
    assert np.array_equal(read(got), ff.velocity(arrays["x"], 0.3, arrays["data"]))


# Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_share_their_memory(dtype):
    tensor = torch.ones(4, 3, dtype=dtype)
    view = _interop.as_numpy("x", tensor)
    tensor[1, 2] = 7
    assert view.shape == (4, 3) and float(view[1, 2]) == 7.0
    assert view.ctypes.data == tensor.data_ptr()
    back = _interop._Torch.from_numpy(view, tensor)
    assert back.dtype == dtype and back.data_ptr() == tensor.data_ptr()


def test_data_of_a_tensor_are_used_in_place(arrays):
    data = torch.from_numpy(arrays["data"].copy())
    assert ff.VelocityField(data)._parts.points.data.ctypes.data == data.data_ptr()


def test_jax_and_dlpack_arrays_are_not_copied():
    x = jnp.ones((4, 3))
    assert _interop.as_numpy("x", x).ctypes.data == x.unsafe_buffer_pointer()
    base = np.ones((4, 3))
    assert np.shares_memory(_interop.as_numpy("x", array_api_strict.asarray(base, copy=False)), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_is_a_tensor(arrays, dtype):
    field = field_of(arrays)
    x = torch.from_numpy(arrays["x"].copy()).to(dtype)
    out = torch.empty_like(x)
    assert field.velocity(x, 0.3, out=out) is out and torch.equal(out, field(x, 0.3))
    assert field.targets(x, 0.4, out=out) is out and torch.equal(out, field(x, 0.4))
    assert field.velocity(x, 0.5, out=x) is x
    with pytest.raises(ValueError, match="out has shape"):
        field.velocity(x, 0.3, out=out[:2])
    with pytest.raises(TypeError, match="out is Tensor"):
        field.velocity(arrays["x"], 0.3, out=out)


def test_layouts(arrays):
    field = field_of(arrays)
    x = torch.from_numpy(arrays["x"].copy())
    want = field(x, 0.3)
    assert torch.equal(field(x.T.contiguous().T, 0.3), want)
    assert torch.equal(field(torch.nn.Parameter(x, requires_grad=False), 0.3), want)
    assert torch.equal(field(torch._neg_view(-x), 0.3), want)
    assert torch.equal(field(x[:1].expand(len(x), D), 0.3), want[:1].expand(len(x), D))  # by the same kernel
    assert field(x[:0], 0.3).shape == (0, D)


# Accelerators -------------------------------------------------------------------------------------------------


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device."""

    device = torch.device("meta")


def test_a_tensor_elsewhere_is_copied_with_one_warning(arrays, monkeypatch):
    monkeypatch.setattr(_interop, "_warned", set())
    field, x = field_of(arrays), torch.from_numpy(arrays["x"].copy()).as_subclass(Elsewhere)
    with pytest.warns(RuntimeWarning, match="x is on meta: .*copied over") as caught:
        result = field(x, 0.3)
    assert len(caught) == 1 and result.device.type == "meta" and result.shape == (B, D)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert field.log_density(x, 0.3).device.type == "meta"
    with pytest.raises(ValueError, match="out is on meta"):
        field.velocity(x, 0.3, out=x)


class Remote:
    """An array of a made-up library with a device, which speaks DLPack as of version 1."""

    device = "moon:0"

    def __init__(self, array):
        self.array = array

    def __array_namespace__(self):
        return types.SimpleNamespace(from_dlpack=lambda array, device=None: (device, Remote(np.from_dlpack(array))))

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if dl_device != (1, 0):
            raise BufferError("this array is on the moon")
        return self.array.__dlpack__(max_version=max_version)


def test_any_library_with_a_device(arrays, monkeypatch):
    monkeypatch.setattr(_interop, "_warned", set())
    field = field_of(arrays)
    with pytest.warns(RuntimeWarning, match="x is on moon:0"):
        device, result = field(Remote(arrays["x"]), 0.3)
    assert device == "moon:0" and np.array_equal(result.array, field(arrays["x"], 0.3))


# Errors -------------------------------------------------------------------------------------------------------


def test_gradients_are_not_dropped(arrays):
    field = field_of(arrays)
    x, t = torch.from_numpy(arrays["x"].copy()), torch.from_numpy(arrays["t"].copy())
    for call in (
        lambda x, t: field.score(x, t),
        lambda x, t: field.jvp(x, t, x),
        lambda x, t: field.velocity(x, t, exclude=0),
        lambda x, t: field.velocity(x, t, out=torch.empty(B, D)),
        lambda x, t: field.sample(x, steps=2),
    ):
        with pytest.raises(TypeError, match=r"x0? requires grad.*detached"):
            call(x.clone().requires_grad_(), t)
        with torch.no_grad():
            assert not call(x.clone().requires_grad_(), t).requires_grad
        call(x.clone().requires_grad_().detach(), t)
    with pytest.raises(TypeError, match="t requires grad"):
        field.log_density(x, t.clone().requires_grad_())
    with pytest.raises(TypeError, match="data requires grad"):
        ff.VelocityField(x.clone().requires_grad_())


def test_traced_arrays_have_no_values(arrays):
    field = field_of(arrays)
    with pytest.raises(TypeError, match=r"x is traced.*fastflow\.adapters\.jax"):
        jax.jit(lambda x: field.score(x, 0.3))(arrays["x"])
    with pytest.raises(TypeError, match="t is traced"):
        jax.jit(lambda t: jnp.asarray(field.score(arrays["x"], t)))(0.3)


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(B, D).to_sparse(),
        torch.ones(B, D).to(torch.float8_e5m2),
        torch.ones(B, D, dtype=torch.complex64),
        jnp.ones((B, D), jnp.complex64),
        array_api_strict.asarray(np.ones((B, D), complex)),
    ],
    ids=["sparse", "float8", "complex", "jax", "strict"],
)
def test_what_cannot_be_read_is_named(arrays, bad):
    field = field_of(arrays)
    for call in (lambda: field(bad, 0.3), lambda: field.score(bad, 0.3), lambda: field.jvp(arrays["x"], 0.3, bad)):
        with pytest.raises(TypeError, match=r"^[xu] (has dtype|cannot be read)"):
            call()


def test_messages_are_those_of_numpy(library, arrays):
    make, _, _ = LIBRARIES[library]
    field = field_of(arrays)
    with pytest.raises(ValueError, match="x has shape"):
        field(make(arrays["x"][:, :2]), 0.3)
    with pytest.raises(ValueError, match=r"x\[1, 2\] is nan"):
        bad = arrays["x"].copy()
        bad[1, 2] = np.nan
        field(make(bad), 0.3)


def test_nothing_is_imported():
    """Neither by the package nor by NumPy arrays."""
    script = """if True:
        import sys, numpy, fastflow
        field = fastflow.VelocityField(numpy.eye(3))
        field(numpy.eye(3), [0.1, 0.2, 0.3])
        print(*{"torch", "jax", "ml_dtypes", "array_api_strict"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
