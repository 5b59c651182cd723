"""What is particular to the numba backend: its threads, its choice of kernel, its exponential and its memory."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import threading
import tracemalloc

import numpy as np
import pytest

import fastflow as ff
from fastflow.backends import Want

numba = pytest.importorskip("numba")
backend = importlib.import_module("fastflow.backends.numba")
log = importlib.import_module("fastflow.backends.numba.vector").log


def problem(count=3000, size=40, batch=20, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)).astype(dtype), rng.standard_normal((batch, size)).astype(dtype)


def field(data, **options):
    return ff.VelocityField(data, backend="numba", **options)


def run_script(body: str) -> str:
    """Run a script by itself, where forking and exiting disturb nobody; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Threads ----------------------------------------------------------------------------------------------------------


def test_helpers_take_part():
    data, x = problem(count=20_000)
    field(data, num_threads=3).velocity(x, 0.5)
    assert sum(thread.name.startswith("fastflow") for thread in threading.enumerate()) >= 1


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("batch", [1, 20])
def test_more_threads_than_cores(size, batch):
    data, x = problem(count=20_000, size=size, batch=batch)
    alone = field(data, num_threads=1).velocity(x, 0.5)
    np.testing.assert_array_equal(field(data, num_threads=64).velocity(x, 0.5), alone)


def test_concurrent_callers():
    data, x = problem(count=20_000)
    shared = field(data, num_threads=3)
    expected = shared.velocity(x, 0.5)
    failures = []

    def call():
        for _ in range(10):
            if not np.array_equal(shared.velocity(x, 0.5), expected):
                failures.append(threading.get_ident())

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_an_error_in_a_helper_reaches_the_caller():
    def fail_elsewhere(caller):
        if threading.get_ident() != caller:
            raise ZeroDivisionError
        threading.Event().wait(0.2)

    with pytest.raises(ZeroDivisionError):
        backend._run(fail_elsewhere, [(threading.get_ident(),)] * 8, 2, tuple)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_after_a_fork():
    out = run_script(
        """
        import os, warnings
        import numpy as np
        import fastflow as ff
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is the point
        rng = np.random.default_rng(0)
        data, x = rng.standard_normal((20_000, 40)), rng.standard_normal((20, 40))
        field = ff.VelocityField(data, backend="numba", num_threads=3)
        before = field.velocity(x, 0.5)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(field.velocity(x, 0.5), before) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert np.array_equal(field.velocity(x, 0.5), before)
        print("same")
        """
    )
    assert out == "same\n"


def test_while_the_interpreter_exits():
    out = run_script(
        """
        import atexit
        import numpy as np
        import fastflow as ff
        rng = np.random.default_rng(0)
        data, x = rng.standard_normal((20_000, 40)), rng.standard_normal((20, 40))
        field = ff.VelocityField(data, backend="numba", num_threads=3)
        before = field.velocity(x, 0.5)
        atexit.register(lambda: print(np.array_equal(field.velocity(x, 0.5), before)))
        """
    )
    assert out == "True\n"


# Kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 2e-14)])
@pytest.mark.parametrize("t", [0.1, 0.9, 0.999])
def test_small_and_large_batches_agree(dtype, tolerance, t):
    data, x = problem(batch=backend.SMALL_BATCH + 1, dtype=dtype)
    x = ((1 - t) * x + t * data[: len(x)]).astype(dtype)
    whole = field(data)
    one_by_one = np.concatenate([whole.velocity(x[i : i + 1], t) for i in range(len(x))])
    error = np.linalg.norm(whole.velocity(x, t) - one_by_one, axis=1) / np.linalg.norm(one_by_one, axis=1)
    assert error.max() <= tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_place_in_a_block_does_not_show(dtype):
    """Every row of a register block computes the same, and so does every lane."""
    data, x = problem(batch=1, dtype=dtype)
    together = field(data).velocity(np.repeat(x, 3 * backend.ROWS + 1, axis=0), 0.3)
    assert (together == together[0]).all()


@pytest.mark.parametrize("size", [backend.SMALL_SIZE, backend.SMALL_SIZE + 1])
def test_no_point_has_mass_but_one(size):
    """Chunks and groups of zero mass leave nothing behind."""
    data, x = problem(size=size)
    weights = np.zeros(len(data))
    weights[1234] = 1.0
    for t in (0.0, 0.5, 0.99, 1.0):
        got = field(data, weights=weights).target_mean(x, t)
        np.testing.assert_allclose(got, np.broadcast_to(data[1234], got.shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_data_beyond_the_range_of_float32_squares(scale):
    data, x = (scale * a.astype(np.float64) for a in problem())
    narrow = field(data.astype(np.float32), source_variance=scale * scale).velocity(x.astype(np.float32), 0.9)
    exact = field(data.astype(np.float32).astype(np.float64), source_variance=scale * scale).velocity(
        x.astype(np.float32).astype(np.float64), 0.9
    )
    np.testing.assert_allclose(narrow, exact, rtol=1e-5, atol=1e-5 * scale)


def test_exponential():
    """To a unit in the last place, zero where the result would be denormal, and exact at zero."""

    @numba.njit
    def exponentials(x, out):
        for i in range(x.size):
            out[i] = backend._exp(x[i])

    for dtype, lowest in ((np.float32, -87.0), (np.float64, -708.0)):
        x = np.concatenate(
            [np.linspace(lowest * 0.999, 1.0, 200_001), np.linspace(-1e-3, 1e-3, 1001), [0.0, 2 * lowest, -np.inf]]
        ).astype(dtype)
        out = np.empty_like(x)
        exponentials(x, out)
        exact = np.exp(x.astype(np.longdouble))
        assert np.abs(out[:-2] / exact[:-2] - 1).max() <= np.finfo(dtype).eps
        assert out[-3:].tolist() == [1.0, 0.0, 0.0]


def test_logarithms():
    @numba.njit
    def logarithms(x, out):
        for i in range(x.size):
            out[i] = log(x[i])

    for dtype in (np.float32, np.float64):
        largest = 0.99 * np.log(np.finfo(dtype).max)
        x = np.concatenate([np.exp(np.linspace(-0.9 * largest, largest, 200_001)), np.linspace(0.5, 2.0, 20_001)])
        x = x.astype(dtype)
        out = np.empty_like(x)
        logarithms(x, out)
        exact = np.log(x.astype(np.longdouble))
        assert np.abs(out - exact).max() <= np.finfo(dtype).eps * np.abs(exact).max()
        assert (np.abs(out - exact) <= 2 * np.finfo(dtype).eps * np.abs(exact)).all()


def test_a_memory_map_and_a_time_for_each_of_many_queries(tmp_path):
    """Read-only data, and more queries than are handled at a time."""
    data, x = problem(count=9000, size=300, batch=700)
    data.tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", dtype=data.dtype, mode="r", shape=data.shape)
    t = np.linspace(0.0, 0.999, len(x))
    assert len(x) > backend.TilePlan(field(data)._parts.whole.prepared, x.dtype, len(x)).queries_at_a_time()
    together = field(mapped).velocity(x, t)
    np.testing.assert_array_equal(together[650:], field(data).velocity(x[650:], t[650:]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 16, 24, 64])
@pytest.mark.parametrize("width", [1.0, 11.0, 70.0])
def test_powers_and_logarithms_of_variances(dtype, size, width):
    """Variances whose logs lie within `width`: on both sides of what powers and float32 logs are taken for."""
    data, x = problem(count=700, size=size, batch=12, dtype=dtype)
    rng = np.random.default_rng(1)
    options = {
        "variance": 0.1 * np.exp(rng.uniform(-width, 0.0, len(data))),
        "weights": rng.uniform(size=len(data)) * (rng.uniform(size=len(data)) < 0.9),
    }
    t = np.linspace(0.0, 1.0, len(x))
    x = (x + t[:, None] * data[: len(x)]).astype(dtype)
    names = ("velocity", "log_density", "entropy", "effective_sample_size")
    found = field(data, **options).evaluate(x, t, names)
    expected = ff.VelocityField(data, backend="numpy", **options).evaluate(x.astype(np.float64), t, names)
    tolerance = {np.float32: 1e-5, np.float64: 1e-10}[dtype]
    for name in names:
        error = np.abs(found[name] - expected[name]).max()
        assert error <= tolerance * np.abs(expected[name]).max(), (name, error)
    np.testing.assert_array_equal(found["velocity"], field(data, **options).velocity(x, t))
    np.testing.assert_array_equal(found["velocity"][6:], field(data, **options).velocity(x[6:], t[6:]))
    same_time = field(data, **options).velocity(x[2:8], float(t[4]))
    np.testing.assert_array_equal(same_time[2], found["velocity"][4])


# Compilation and memory ----------------------------------------------------------------------------------------------


def test_compiles_without_a_place_for_the_cache(monkeypatch):
    compile_plainly = numba.njit

    def refuse_cache(**settings):
        if settings.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_plainly(**settings)

    monkeypatch.setattr(backend.numba, "njit", refuse_cache)
    assert backend._jit()(lambda a: a + 1)(1) == 2


def test_workspace_does_not_grow_with_the_batch_or_the_data():
    data, x = problem(count=4000, size=3072, batch=1024)
    large = field(data, num_threads=2)
    large.velocity(x[:8], 0.3)  # compiled, and the helpers started
    coefficients = np.array([[0.7], [0.3], [0.49]])
    tracemalloc.start()
    moments = large._parts.whole.prepared.moments(x, coefficients, Want(mean=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - moments.mean.nbytes - moments.residual.nbytes <= 64 << 20
