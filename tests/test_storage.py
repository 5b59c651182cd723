"""Storage types: data stay as they lie in memory, and every result is that of the same values in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fastflow as ff
from fastflow._arrays import STORED

SIZES = (3, 40)
AFFINE = ((1.0, 0.0), (2 / 255, -1.0), (-0.5, 100.0))
VECTORS = ("velocity", "target_mean", "source_mean", "score")
NUMBERS = ("log_density", "entropy", "effective_sample_size", "velocity_variance", "divergence")
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def stored(dtype: str, count: int, size: int) -> np.ndarray:
    """Points spread over the range of their type, within what float16 keeps apart."""
    values = np.random.default_rng(size).normal(size=(count, size))
    if dtype == "uint8":
        return np.clip(128 + 50 * values, 0, 255).astype(np.uint8)
    if dtype == "int8":
        return np.clip(50 * values, -128, 127).astype(np.int8)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def queries(points: np.ndarray, count: int, t: float) -> np.ndarray:
    rng = np.random.default_rng(count)
    spread = points.std()
    noise = rng.normal(size=(count, points.shape[1])) * spread
    return t * points[rng.integers(len(points), size=count)] + (1 - t) * noise


def held(variant, points: np.ndarray, dtype: str) -> np.ndarray:
    """What a backend makes of points in float64: numba holds those of narrow types in float32."""
    narrow = variant.backend == "numba" and dtype != "float64"
    return points.astype(np.float32).astype(np.float64) if narrow else points


def test_every_stored_dtype_is_tried():
    assert set(STORED) == {"float32", "float64", "float16", "bfloat16", "uint8", "int8"}


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", STORED)
def test_results_are_those_of_the_values(variant, dtype, size, batch):
    """For each storage type, with and without scale and offset, in both precisions and both kinds of kernels."""
    data = stored(dtype, 150, size)
    for scale, offset in AFFINE:
        points = held(variant, data.astype(np.float64) * scale + offset, dtype)
        spread = float(points.var())
        exact = type(variant)("numpy").field(points, source_variance=spread)
        field = variant.field(data, scale=scale, offset=offset, source_variance=spread)
        for t in (0.1, 0.5, 0.9, 0.999):
            for precision, tolerance in TOLERANCE.items():
                x = queries(points, batch, t).astype(precision)
                want = exact.evaluate(x.astype(np.float64), t, VECTORS + NUMBERS)
                got = field.evaluate(x, t, VECTORS + NUMBERS)
                for name in VECTORS + NUMBERS:
                    assert got[name].dtype == (precision if name in VECTORS else np.float64)
                    allowed = tolerance * max(np.abs(want[name]).max(), 1e-3)
                    error = np.abs(got[name].astype(np.float64) - want[name]).max()
                    assert error <= allowed, (scale, t, precision, name, error / allowed)


@pytest.mark.parametrize("around_zero", [True, False])
@pytest.mark.parametrize("size", [130, 301, 1100])
@pytest.mark.parametrize("dtype", STORED)
def test_long_rows_and_few_queries(variant, dtype, size, around_zero):
    """Rows that are read in blocks, with a rest, and those too long for the first-level cache; early, where float32
    sums them, and later, where it does no more than find those that count; about zero, where no centre is taken away,
    and elsewhere."""
    data = stored(dtype, 75, size)
    if not around_zero and dtype not in ("uint8", "int8"):
        data = (data + 3).astype(data.dtype)
    offset = 0.0 if around_zero else -1.0
    points = held(variant, data.astype(np.float64) * 0.5 + offset, dtype)
    exact = type(variant)("numpy").field(points, source_variance=float(points.var()))
    field = variant.field(data, scale=0.5, offset=offset, source_variance=float(points.var()))
    for t in (0.05, 0.12, 0.3, 0.7, 0.9999):
        for batch in (1, 3, 4):
            x = queries(points, batch, t).astype(np.float32)
            want = exact.evaluate(x.astype(np.float64), t, VECTORS + NUMBERS)
            for chosen in (VECTORS + NUMBERS, VECTORS, ("log_density",)):
                got = field.evaluate(x, t, chosen)
                for name in chosen:
                    error = np.abs(got[name].astype(np.float64) - want[name]).max()
                    least = 1e-3 if t > 0.12 else 0.0  # entropies next to nothing, where one point has all the weight
                    assert error <= TOLERANCE["float32"] * max(np.abs(want[name]).max(), least), (t, batch, name)


@pytest.mark.parametrize("dtype", STORED)
def test_other_calls(variant, dtype):
    """Weights, Jacobian products, subsets, per-point variances and the end of time."""
    data = stored(dtype, 200, 20)
    points = held(variant, data.astype(np.float64) / 64 - 1, dtype)
    rng = np.random.default_rng(1)
    variances = rng.uniform(0.1, 0.3, len(data))
    x, u = queries(points, 30, 0.6), rng.normal(size=(30, 20))
    want, got = (
        type(variant)("numpy").field(points, variance=variances),
        variant.field(data, scale=1 / 64, offset=-1.0, variance=variances),
    )
    for call in (
        lambda field: field.weights(x, 0.6),
        lambda field: field.velocity(x, 0.6),
        lambda field: field.velocity(x, 0.6, subset=np.arange(5, 60)),
        lambda field: field.velocity(x[:1], 0.6, exclude=3),
        lambda field: field.jvp(x, 0.6, u),
        lambda field: field.vjp(x, 0.6, u),
        lambda field: field.target_covariance_product(x, 0.6, u),
        lambda field: field.evaluate(x, 0.6, ["divergence"])["divergence"],
        lambda field: field.evaluate(x, 0.6, ["velocity_variance"])["velocity_variance"],
    ):
        np.testing.assert_allclose(call(got), call(want), rtol=0, atol=1e-11 * np.abs(call(want)).max())
    plain = variant.field(data, scale=1 / 64, offset=-1.0)
    np.testing.assert_allclose(plain.target_mean(points[:5], 1.0), points[:5], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", STORED)
def test_data_stay_where_they_are(variant, dtype):
    """No copy for any storage type, scaled or not; the numba backend holds the narrow ones as float32."""
    data = stored(dtype, 50, 6).reshape(50, 2, 3)
    for options in ({}, {"scale": 0.1, "offset": 3.0}):
        field = variant.field(data, **options)
        assert np.shares_memory(field._parts.points.data, data)
        assert field.sample(2, steps=1).dtype == (np.float64 if dtype == "float64" else np.float32)


def test_memory_maps_are_used_in_place(variant, tmp_path):
    data = stored("uint8", 40, 12)
    np.save(tmp_path / "data.npy", data)
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    field = variant.field(mapped, scale=1 / 255)
    assert np.shares_memory(field._parts.points.data, mapped)
    x = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_array_equal(field(x, 0.5), variant.field(data, scale=1 / 255)(x, 0.5))


def test_covariances_of_scaled_data_are_taken_in_float64():
    """Far from zero, compared with their width: float32 would round the points."""
    data = np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8)
    shared = 1e-4 * (np.eye(3) + 0.1)
    points, x = data * 1e-3 + 1e5, np.full((2, 3), 1e5 + 0.1)
    for options in ({"covariance": shared}, {"covariance": shared, "source_covariance": np.eye(3) + 0.2}):
        for backend in ("numpy", "auto"):
            got = ff.VelocityField(data, scale=1e-3, offset=1e5, backend=backend, **options)
            want = ff.VelocityField(points, backend=backend, **options)
            np.testing.assert_allclose(got.log_density(x, 1.0), want.log_density(x, 1.0), rtol=1e-6)
