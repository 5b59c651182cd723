"""Bytes and few float32 queries, which kernels with the instructions for it compute in whole numbers
(csrc/kernels/few_bytes.inc.h): rows shorter and longer than a vector, sums at their bounds, and every time."""

from __future__ import annotations

import numpy as np
import pytest

import fastflow as ff

VECTORS = ("velocity", "target_mean", "score")
NUMBERS = ("log_density", "entropy", "effective_sample_size")
SCALE, OFFSET = 2 / 255, -1.0


def check(variant, data, x, t, exclude=None, **options):
    """All quantities against those of float64 by definition: of all queries, and of each alone, as the kernel for few
    queries takes no more in few dimensions. And a query's do not depend on its place among the others."""
    given = {"weights": options.pop("weights")} if "weights" in options else {}
    values = data.astype(np.float64) * SCALE + OFFSET
    if variant.backend == "numba":  # which holds bytes in float32
        values = values.astype(np.float32).astype(np.float64)
    narrow = variant.field(data, scale=SCALE, offset=OFFSET, **given)
    exact = ff.VelocityField(values, backend="numpy", **given)

    def evaluate(field, x, rows):
        excluded = {} if exclude is None else {"exclude": exclude[rows]}
        return field.evaluate(x[rows], t, VECTORS + NUMBERS, **options, **excluded)

    want = evaluate(exact, x.astype(np.float64), slice(None))
    # Shorter rows than a vector are no whole numbers, and two queries of them are many.
    few = data.shape[1] >= 32 and len(x) <= narrow._parts.whole.prepared.small_batch
    together = evaluate(narrow, x, slice(None))
    for rows in (slice(None), *(slice(i, i + 1) for i in range(len(x)))):
        # The kernel for many rounds weights, and so entropies next to nothing.
        least = 1e-3 if few or rows != slice(None) else 1e-2
        for name, value in evaluate(narrow, x, rows).items():
            assert np.isfinite(value).all(), name
            # relative to the terms of the difference that a velocity or a score is
            power = {"velocity": 1, "score": 2}.get(name, 0)
            size = np.maximum(np.abs(want[name]).max(), np.abs(x).max() / (1 - t) ** power if power else 0)
            assert np.abs(value - want[name][rows]).max() <= 1e-5 * max(size, least), (name, t, rows)
            assert variant.backend == "numpy" or not few or np.array_equal(value, together[name][rows]), name
    for name, value in evaluate(narrow, x, slice(None, None, -1)).items():
        assert variant.backend == "numpy" or np.array_equal(value[::-1], together[name]), name


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("size", [17, 31, 32, 33, 63, 64, 65, 100, 784])
def test_rows_and_times(variant, dtype, size):
    """Vectors of 32 and 64 bytes, of which the last overlaps the one before; times when all points count, when float32
    would do, when sums must be in float64, and when dot products do no more than screen."""
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(size)
    data = rng.integers(limits.min, limits.max + 1, (1003, size)).astype(dtype)
    values = data.astype(np.float64) * SCALE + OFFSET
    for i, t in enumerate((0.0, 0.01, 0.1, 0.25, 0.4, 0.6, 0.9, 0.999, 1 - 1e-6)):
        x = (t * values[[3, 900, 5]] + (1 - t) * rng.normal(size=(3, size))).astype(np.float32)[: 1 + i % 3]
        check(variant, data, x, t)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.8])
def test_points_left_out(variant, t):
    """A subset, whose rows do not follow each other, and the point that a query leaves out."""
    rng = np.random.default_rng(1)
    data = rng.integers(256, size=(700, 200), dtype=np.uint8)
    x = (t * (data[[4, 650]] * SCALE + OFFSET) + (1 - t) * rng.normal(size=(2, 200))).astype(np.float32)
    check(variant, data, x, t, exclude=np.array([4, 651]))
    check(variant, data, x, t, subset=np.sort(rng.choice(700, 333, replace=False)))


@pytest.mark.parametrize("size", [3841, 12289])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums(variant, size, sign):
    """Bytes, and digits of a query, as large as they get: sums of 32 bits end before they overflow."""
    data = np.full((40, size), 255, np.uint8)
    data[1::2, ::3] = 0
    data[7] = 0
    x = np.full((3, size), 40.0 * sign, np.float32)
    x[1] = sign
    x[2] = sign * 0.5 * (1 + 2.0**-16)  # beside the largest, low digits that are all alike and large
    x[2, 5] = sign
    for t in (0.02, 0.2):
        check(variant, data, x, t)


@pytest.mark.parametrize("t", [0.01, 0.2, 0.7])
def test_queries_of_any_size(variant, t):
    """One dimension far beyond the others, which sets the unit of all of them; far from all points; and zero."""
    rng = np.random.default_rng(2)
    data = rng.integers(256, size=(500, 150), dtype=np.uint8)
    x = rng.normal(size=(4, 150)).astype(np.float32)
    x[0, 7] = 3e3
    x[1] *= 1e4
    x[2] = 0.0
    check(variant, data, x, t)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7])
def test_long_chunks_and_masses(variant, t):
    """So many points that chunks are as long as they get; some without mass, of whole strips at the beginning too."""
    count, size = 70_000, 64
    rng = np.random.default_rng(4)
    data = rng.integers(256, size=(count, size), dtype=np.uint8)
    mass = rng.uniform(0.1, 2.0, count)
    mass[:1500] = mass[5000:5100] = 0.0
    x = (t * (data[[4, 40_000]] * SCALE + OFFSET) + (1 - t) * rng.normal(size=(2, size))).astype(np.float32)
    check(variant, data, x, t)
    check(variant, data, x, t, weights=mass)


def test_weights_that_round_alike(variant):
    """Half of the points weigh one and half of them a fraction that no digit holds: their roundings must not add up."""
    size, count = 128, 6000
    rng = np.random.default_rng(3)
    data = np.zeros((count, size), np.uint8)
    data[:, 1:] = 100
    lighter = rng.random(count) < 0.5
    data[lighter, 0] = 255
    data[rng.integers(count, size=20), 2:] = rng.integers(256, size=(20, size - 2))
    x = np.zeros((1, size), np.float32)
    x[0, 0] = -2.3
    check(variant, data, x, 0.15)


def test_the_whole_numbers_ran(variant):
    """Sums that do not round do not depend on the order of the dimensions; those of float32, of the same values, do."""
    if variant.isa not in ("avx2", "avx512", "amx"):
        assert variant.isa in (None, "plain", "neon")
        return
    rng = np.random.default_rng(5)
    data = rng.integers(256, size=(500, 784), dtype=np.uint8)
    x = rng.normal(size=(1, 784)).astype(np.float32)
    order = rng.permutation(784)

    def change(data, **affine):
        straight, turned = (
            variant.field(d, **affine).entropy(q, 0.1)[0] for d, q in ((data, x), (turn(data), turn(x)))
        )
        return abs(turned / straight - 1)

    def turn(rows):
        return np.ascontiguousarray(rows[:, order])

    assert change(data, scale=SCALE, offset=OFFSET) < 1e-13
    assert change((data * SCALE + OFFSET).astype(np.float32)) > 1e-12
