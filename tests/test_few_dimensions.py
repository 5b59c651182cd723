"""Float32 queries of few dimensions, of equal points: those near to t = 0, whose weights differ little, are computed
in another way than the others (csrc/kernels/low_flat.inc.h), whatever stands beside them in a batch."""

from __future__ import annotations

import numpy as np
import pytest

import fastflow as ff

QUANTITIES = ("velocity", "source_mean", "target_mean", "score", "log_density", "entropy", "effective_sample_size")


@pytest.mark.parametrize("exclude", [False, True], ids=["all points", "exclude"])
@pytest.mark.parametrize(("n", "d"), [(3, 1), (2100, 2), (400, 3), (129, 5), (2, 8), (300, 10)])
def test_each_query_by_its_own_time(variant, n, d, exclude):
    rng = np.random.default_rng(n)
    data = (3 + rng.standard_normal((n, d))).astype(np.float32)
    # A query near its point; times up to 0.3 or so are of the one way, but for queries that are far from all points
    t = rng.permutation(np.concatenate([rng.uniform(0, 0.35, 60), rng.uniform(0.35, 0.98, 30), [0.0, 0.0, 1e-7]]))
    point = rng.integers(n, size=len(t))
    noise = rng.standard_normal((len(t), d)) * rng.choice([1, 1, 1, 20], size=(len(t), 1))
    x = (t[:, None] * data[point] + (1 - t[:, None]) * noise).astype(np.float32)
    options = {"exclude": point} if exclude else {}

    field = variant.field(data)
    got = field.evaluate(x, t, quantities=QUANTITIES, **options)
    exact = ff.VelocityField(data, backend="numpy").evaluate(x.astype(np.float64), t, quantities=QUANTITIES, **options)
    for name, value in got.items():
        assert np.isfinite(value).all()
        error = np.abs(value - exact[name])
        # relative to the terms of the difference that a velocity or a score is
        scale = np.abs(exact[name])
        if scale.ndim == 2:
            size = np.abs(x).max(axis=1) + np.abs(data).max() * t
            scale = np.maximum(scale, (size / (1 - t) ** (2 if name == "score" else 1))[:, None])
        assert (error <= 1e-5 * np.maximum(scale, 1)).all(), name

    order = rng.permutation(len(t))
    options = {"exclude": point[order]} if exclude else {}
    mixed = field.evaluate(x[order], t[order], quantities=QUANTITIES, **options)
    for name, value in got.items():
        assert np.array_equal(value[order], mixed[name]), name
    # without the quantities that take sums of their own, and one query at a time as far as a batch kernel serves it
    few = field._parts.whole.prepared.small_batch
    alone = field.velocity(x[: few + 1], t[: few + 1], **({"exclude": point[: few + 1]} if exclude else {}))
    assert np.array_equal(alone, got["velocity"][: few + 1])
