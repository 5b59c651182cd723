"""Draws from the posterior, against the dense weights and the moments of the same field.

Most tests of exactness draw nothing at random: over a grid of pairs of uniform numbers the shares of the points must be
their weights, up to the spacing of the grid.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

import fastflow as ff
from fastflow import posterior, samplers

# Rounding of the posterior weights of the range: float32 queries, and float64 ones.
ROUNDING = {np.float32: 1e-5, np.float64: 1e-9}


def cloud(num=60, size=3, seed=0):
    return np.random.default_rng(seed).normal(size=(num, size))


def covariances(num, size, seed=3):
    factors = 0.5 * np.random.default_rng(seed).normal(size=(num, size, size))
    return factors @ np.swapaxes(factors, -1, -2)


MODELS = {
    "plain": {},
    "mass": {"weights": np.arange(60) % 4 * 1.0},
    "variance": {"variance": 0.3, "source_mean": [0.4, -1.0, 0.2], "source_variance": 1.7},
    "variances": {"variance": np.linspace(0.0, 1.0, 60), "source_mean": 0.5, "source_variance": 1.7},
    "shared covariance": {"covariance": covariances(1, 3)[0], "source_mean": [0.4, -1.0, 0.2]},
    "covariances": {"covariance": covariances(60, 3)},
    "source covariance": {"source_covariance": covariances(1, 3)[0] + np.eye(3), "source_mean": [0.4, -1.0, 0.2]},
    "all": {
        "covariance": covariances(60, 3),
        "source_covariance": covariances(1, 3, 4)[0] + np.eye(3),
        "weights": np.arange(60) % 4 * 1.0,
        "source_mean": [0.4, -1.0, 0.2],
        "schedule": "cosine",
    },
}


@pytest.fixture(params=[8, 1024], ids=["ranges", "one range"])
def ranges(request, monkeypatch):
    """Both ways through: many ranges of points, and one."""
    monkeypatch.setattr(posterior, "RANGE_POINTS", request.param)


def shares(field, x, t, num=40, exclude=None, **options):
    """Shares of the data points among the draws of one query at a grid of num^2 pairs of uniform numbers."""
    numbers = (np.arange(num) + 0.5) / num
    uniforms = np.stack(np.meshgrid(numbers, numbers, indexing="ij"), axis=-1).reshape(-1, 2)
    q = field._queries(np.repeat(np.asarray(x)[None], len(uniforms), axis=0), t)
    (group,) = field._parts.groups(options.get("label"), options.get("subset"), exclude, len(q.x), False)
    path = field._path(q.t, group.part)
    found = field._posterior.sample(group.part, q.x, path, group.exclude, uniforms, keep=False)
    index = found if group.part.points.index is None else group.part.points.index[found]
    return np.bincount(index, minlength=field.num_points) / len(uniforms)


def assert_shares(field, x, t, num=40, **options):
    found, weights = shares(field, x, t, num, **options), field.weights(x, t, **options)
    assert not found[weights == 0.0].any()
    # Each of the two numbers misses the ends of a point's interval by a spacing of the grid, at most.
    np.testing.assert_allclose(found, weights, rtol=0, atol=2.5 / num)
    assert np.abs(np.cumsum(found) - np.cumsum(weights)).max() < 2.5 / num


# Exactness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.4, 0.8, 0.97])
@pytest.mark.parametrize("model", MODELS)
def test_points_are_drawn_by_their_weights(ranges, model, t):
    field = ff.VelocityField(cloud(), backend="numpy", **MODELS[model])
    for x in cloud(3, seed=1):
        assert_shares(field, x, t)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [2, 20])
def test_points_are_drawn_by_their_weights_on_every_backend(backend, size, dtype, ranges):
    field = ff.VelocityField(cloud(90, size).astype(dtype), weights=np.arange(90) % 7, backend=backend)
    for x in (0.5 * cloud(2, size, seed=1)).astype(dtype):
        assert_shares(field, x, 0.6)
        assert_shares(field, x + dtype(100.0), 0.2)


def test_the_default_ranges(backend):
    """Enough points to be cut without being told to, and the shares of the ranges alone."""
    data = cloud(5000, 5).astype(np.float32)
    field = ff.VelocityField(data, backend=backend)
    x = 0.3 * data[7]
    edges = field._posterior._ranges_of(field._parts.whole, True).edges
    assert len(edges) == 10 and edges[-1] == 5000
    found, weights = (np.add.reduceat(values, edges[:-1]) for values in (shares(field, x, 0.3), field.weights(x, 0.3)))
    np.testing.assert_allclose(found, weights, atol=1.0 / 40)


@pytest.fixture
def seen(monkeypatch):
    """The shares that things are drawn by: first those of ranges of about 50 points, then those of points."""
    monkeypatch.setattr(posterior, "RANGE_POINTS", 50)
    found, inverse = [], posterior.inverse

    def spy(shares, uniforms):
        found.append(shares / shares.sum(axis=1, keepdims=True))
        return inverse(shares, uniforms)

    monkeypatch.setattr(posterior, "inverse", spy)
    return found


def assert_range_shares(seen, field, x, t, exclude=None, atol=0.0):
    field.posterior_sample(x, t, rng=0, exclude=exclude)
    edges = field._posterior._ranges_of(field._parts.whole, True).edges
    reference = ff.VelocityField(field._parts.whole.points.data.astype(np.float64), backend="numpy")
    weights = np.add.reduceat(reference.weights(x.astype(np.float64), t, exclude=exclude), edges[:-1], axis=1)
    assert seen[0].shape == weights.shape == (len(x), 20)
    assert np.abs(seen[0] - weights).max() < atol
    return weights


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95, 0.9999])
def test_the_weights_of_ranges(backend, t, dtype, seen):
    """The distribution that the ranges are drawn from, as it is."""
    data = cloud(1010, 30).astype(dtype)  # ranges of 50 and of 51 points
    x = (t * data[:20] + (1.0 - t) * cloud(20, 30, seed=1)).astype(dtype)
    assert_range_shares(seen, ff.VelocityField(data, backend=backend), x, t, atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exclude", [None, 0], ids=["all", "but one"])
def test_the_weights_of_ranges_for_far_queries(backend, dtype, exclude, seen):
    """So far outside the data that log densities round by more than weights differ, so early that many count."""
    data = cloud(1010, 30).astype(dtype)
    distance = np.array([1e2, 1e4, 1e6, 1e7, 1e8, 1e9, 1e10])
    x = (distance[:, None] * cloud(1, 30, seed=1) / np.sqrt(30.0)).astype(dtype)
    if exclude is not None:  # the heaviest of them all
        exclude = int(ff.VelocityField(data).weights(x[3], 1.0 / distance[3]).argmax())
    weights = assert_range_shares(
        seen, ff.VelocityField(data, backend=backend), x, 1.0 / distance, exclude, atol=ROUNDING[dtype]
    )
    assert np.all(np.sum(weights > 1e-3, axis=1) > 10)


def test_the_weights_of_ranges_without_a_heavy_point(backend, seen):
    data, own = cloud(1010, 5), np.arange(0, 1010, 10)
    x = 0.6 * data[own] + 0.4 * cloud(len(own), 5, seed=1)
    assert ff.VelocityField(data).weights(x, 0.6)[np.arange(len(own)), own].max() > 0.5
    assert_range_shares(seen, ff.VelocityField(data, backend=backend), x, 0.6, own, atol=1e-9)


def test_random_numbers_give_the_weights():
    field = ff.VelocityField(cloud())
    x = 0.4 * cloud(1, seed=1)[0]
    drawn = field.posterior_sample(np.repeat(x[None], 20_000, axis=0), 0.5, rng=0)
    weights = field.weights(x, 0.5)
    often = weights > 5e-4
    assert weights[~often].sum() > 0.0
    counts = np.bincount(drawn, minlength=60)
    expected = np.append(weights[often], weights[~often].sum()) * 20_000
    assert stats.chisquare(np.append(counts[often], counts[~often].sum()), expected).pvalue > 1e-3


def test_inverse_never_draws_what_has_no_share():
    shares = np.array([[0.0, 0.0, 1.0, 0.0, 1e-300, 3.0, 0.0, 0.0]])
    edges = np.array([0.0, 0.25, np.nextafter(0.25, 0.0), 1.0 - 2.0**-53, 0.5])
    found = posterior.inverse(np.repeat(shares, 5, axis=0), edges)
    np.testing.assert_array_equal(found, [2, 5, 2, 5, 5])


def test_inverse_stays_inside_for_any_total():
    rng = np.random.default_rng(0)
    shares = rng.random((2000, 9)) * 10.0 ** rng.integers(-3, 4, (2000, 1))
    shares[:, -2:] = 0.0
    assert posterior.inverse(shares, np.full(2000, 1.0 - 2.0**-53)).max() == 6
    assert posterior.inverse(shares[:, ::-1].copy(), np.zeros(2000)).min() == 2


# Which points count -------------------------------------------------------------------------------------------


def test_points_without_weight_or_left_out_are_never_drawn(ranges):
    data = cloud(40)
    field = ff.VelocityField(data, weights=np.arange(40) % 2)
    x = np.repeat(data, 20, axis=0)
    for t in (0.0, 0.5, 0.99, 1.0):
        drawn = field.posterior_sample(x * t, t, rng=0)
        assert np.all(drawn % 2 == 1)
    field = ff.VelocityField(data, backend="numpy")
    own = np.repeat(np.arange(40), 20)
    for t in (0.0, 0.5, 0.99, 1.0):
        assert not np.any(field.posterior_sample(x * t, t, rng=0, exclude=own) == own)
        assert not np.any(field.posterior_sample(x * t, t, rng=0, exclude=3) == 3)


def test_labels_subsets_and_points_left_out(ranges):
    labels = np.arange(60) % 3
    field = ff.VelocityField(cloud(), labels=labels, weights=1.0 + np.arange(60) % 5, backend="numpy")
    x = 0.5 * cloud(1, seed=1)[0]
    for options in (
        {"label": 2},
        {"subset": np.arange(5, 50)},
        {"exclude": 11},
        {"label": 2, "exclude": 11},
        {"subset": labels == 1, "exclude": 4},
    ):
        assert_shares(field, x, 0.4, **options)
    wanted = np.random.default_rng(0).integers(3, size=200)
    x = np.repeat(x[None], 200, axis=0)
    drawn = field.posterior_sample(x, 0.4, rng=5, label=wanted)
    np.testing.assert_array_equal(labels[drawn], wanted)
    for label in range(3):  # each query's draw is its own
        alone = field.posterior_sample(x, 0.4, rng=5, label=label)
        np.testing.assert_array_equal(alone[wanted == label], drawn[wanted == label])


def test_ranges_are_kept_for_the_parts_that_the_field_keeps(monkeypatch):
    monkeypatch.setattr(posterior, "RANGE_POINTS", 4)
    field = ff.VelocityField(cloud(), labels=np.arange(60) % 3, backend="numpy")
    for _ in range(3):
        field.posterior_sample(cloud(2), 0.5)
        field.posterior_sample(cloud(2), 0.5, label=[0, 2])
        field.posterior_sample(cloud(2), 0.5, subset=np.arange(20))
    assert len(field._posterior._ranges) == 3
    whole = field._posterior._ranges_of(field._parts.whole, True)
    assert all(np.shares_memory(p.points.data, field._parts.whole.points.data) for p in whole.prepared)


def test_the_nearest_points_at_the_end():
    data = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 5.0], [2.0, 0.0]])
    field = ff.VelocityField(data, weights=[1.0, 2.0, 1.0, 5.0])
    x = np.repeat([[1.0, 0.0]], 4000, axis=0)  # as near to the first as to the second and the last
    counts = np.bincount(field.posterior_sample(x, 1.0, rng=0), minlength=4)
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3]], 4000 * np.array([1, 2, 5]) / 8).pvalue > 1e-3
    times = np.array([1.0, 0.0, 1.0, 0.5])
    np.testing.assert_array_equal(field.posterior_sample(data, times, rng=0)[[0, 2]], [0, 2])


# Reproducibility, shapes, memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_are_reproducible(backend, size, dtype):
    """By seed, for any number of threads, and for a batch in pieces of any size."""
    data, rng = cloud(3000, size).astype(dtype), np.random.default_rng(1)
    x, t = (0.5 * cloud(23, size, seed=2)).astype(dtype), rng.random(23)

    def draw(rng, num_threads=2, some=slice(None)):
        field = ff.VelocityField(data, backend=backend, num_threads=num_threads)
        return field.posterior_sample(x[some], t[some], rng=rng)

    first = draw(7)
    for num_threads in (1, 2, 3):
        np.testing.assert_array_equal(draw(7, num_threads), first)
    rng = np.random.default_rng(7)
    pieces = [draw(rng, some=slice(*ends)) for ends in ((0, 1), (1, 4), (4, 9), (9, 9), (9, 23))]
    np.testing.assert_array_equal(np.concatenate(pieces), first)
    assert not np.array_equal(draw(8), first)


def test_the_smallest_batches_see_the_same_ranges_to_the_last_bit(seen):
    data = cloud(2000, 40).astype(np.float32)
    field, x = ff.VelocityField(data), (0.3 * data[:32]).astype(np.float32)

    def weights(x):
        seen.clear()
        field.posterior_sample(x, 0.3, rng=0)
        return seen[0]

    whole = weights(x)
    for piece in (slice(0, 1), slice(3, 7), slice(7, 12), slice(12, 31)):
        np.testing.assert_array_equal(weights(x[piece]), whole[piece])


@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_shapes_and_dtypes(event):
    data = np.random.default_rng(0).normal(size=(11, *event)).astype(np.float32)
    field = ff.VelocityField(data)
    for x, batch in ((data[:4], (4,)), (data[:1], (1,)), (data[:0], (0,)), (data[0], ())):
        drawn = field.posterior_sample(x, 0.5, rng=0)
        assert drawn.shape == batch and drawn.dtype == np.int64
        for dtype in (np.float16, np.float32, np.float64):
            for end in field.posterior_draw(x.astype(dtype), 0.5, rng=0):
                assert end.shape == (*batch, *event) and end.dtype == dtype
    assert field.posterior_draw(np.zeros((2, *event), dtype=int), 0.5)[0].dtype == np.float64


def test_no_dense_weights():
    data = np.random.default_rng(0).normal(size=(300_000, 2)).astype(np.float32)
    field = ff.VelocityField(data)
    field.posterior_sample(data[:2], 0.5, rng=0)
    tracemalloc.start()
    try:
        field.posterior_sample(np.repeat(data[:1], 200, axis=0), 0.1, rng=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.1 * 8 * 200 * len(data)  # a tenth of the weights; two blocks of logits are a fiftieth


# Ends of paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("model", MODELS)
def test_the_ends_are_of_a_path_through_x(model, t):
    field = ff.VelocityField(cloud(), backend="numpy", **MODELS[model])
    x = cloud(50, seed=1)
    x_i, x_f = field.posterior_draw(x, t, rng=0)
    end = field.schedule(t)
    np.testing.assert_allclose(end.alpha * x_i + end.beta * x_f, x, rtol=0, atol=1e-12)
    again = field.posterior_draw(x, t, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(again, (x_i, x_f))


@pytest.mark.parametrize("t", [0.3, 0.7])
@pytest.mark.parametrize("model", MODELS)
def test_moments_of_the_ends(model, t):
    """Means and covariances of many draws at one x, against those of the field in closed form."""
    field = ff.VelocityField(cloud(), backend="numpy", **MODELS[model])
    num, x = 20_000, 0.6 * cloud(1, seed=2)[0]
    x_i, x_f = field.posterior_draw(np.repeat(x[None], num, axis=0), t, rng=0)
    found = field.evaluate(x, t, ("source_mean", "target_mean", "velocity"))
    end = field.schedule(t)
    sampled = end.d_alpha * x_i + end.d_beta * x_f
    for values, name in ((x_i, "source_mean"), (x_f, "target_mean"), (sampled, "velocity")):
        assert np.all(np.abs(values.mean(axis=0) - found[name]) < 4.5 * values.std(axis=0) / np.sqrt(num) + 1e-12)
    columns = [field.target_covariance_product(x, t, u) for u in np.eye(3)]
    scale = np.abs(columns).max()
    np.testing.assert_allclose(np.cov(x_f.T), columns, rtol=0, atol=0.06 * scale)
    assert field.schedule.name == "cosine" or sampled.var(axis=0).sum() == pytest.approx(
        np.trace(columns) / end.alpha**2, rel=0.05
    )


def test_without_variance_the_target_is_a_data_point():
    data = cloud(40)
    field = ff.VelocityField(data, source_mean=0.3)
    x, t = cloud(30, seed=1), np.linspace(0.0, 0.99, 30)
    x_i, x_f = field.posterior_draw(x, t, rng=4)
    drawn = field.posterior_sample(x, t, rng=4)
    np.testing.assert_array_equal(x_f, data[drawn])
    np.testing.assert_allclose(x_i, (x - t[:, None] * x_f) / (1.0 - t[:, None]), rtol=1e-12, atol=1e-12)


def test_before_any_data_the_ends_are_free():
    """At t = 0 the source is x, and the target drawn from the data: weights, width and all."""
    field = ff.VelocityField(np.array([[-3.0], [2.0]]), weights=[1.0, 3.0], variance=0.25)
    x_i, x_f = field.posterior_draw(np.full((4000, 1), 0.7), 0.0, rng=0)
    np.testing.assert_allclose(x_i, 0.7, rtol=1e-12)
    upper = x_f[:, 0] > -0.5
    assert abs(upper.mean() - 0.75) < 4.0 * np.sqrt(0.75 * 0.25 / 4000)
    assert stats.kstest(x_f[upper, 0], stats.norm(2.0, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["plain", "source covariance", "some variance"])
def test_on_the_data_the_source_is_free(kind):
    data, rng = cloud(10), np.random.default_rng(0)
    mean, covariance = np.array([0.4, -1.0, 0.2]), 1.7 * np.eye(3)
    options = {"source_variance": 1.7}
    if kind == "source covariance":
        covariance = covariances(1, 3)[0] + np.eye(3)
        options = {"source_covariance": covariance}
    if kind == "some variance":
        options["variance"] = np.arange(10) % 2 * 0.5
    field = ff.VelocityField(data, source_mean=mean, backend="numpy", **options)
    x = np.repeat(data[4:5], 5000, axis=0)
    x_i, x_f = field.posterior_draw(x, 1.0, rng=rng)
    np.testing.assert_allclose(x_f, x, rtol=1e-12)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (x_i - mean).T)
    for row in white:
        assert stats.kstest(row, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(white) - np.eye(3)).max() < 0.06


def test_the_end_without_variance_in_one_direction():
    """A singular covariance at t = 1 is refused, as it is everywhere."""
    field = ff.VelocityField(cloud(5, 2), covariance=np.diag([0.5, 0.0]), backend="numpy")
    for call in (field.posterior_draw, field.posterior_sample):
        with pytest.raises(ValueError, match=r"covariance is singular.*t = 1"):
            call(cloud(5, 2), 1.0, rng=0)


def test_ends_of_several_classes():
    labels = np.arange(60) % 3
    data = cloud() + 100.0 * labels[:, None]
    variance = np.where(labels == 0, 0.0, 0.2)
    field = ff.VelocityField(data, labels=labels, variance=variance, backend="numpy")
    wanted = np.arange(30) % 3
    x = samplers.starting_points(field, 30, 0.5, np.random.default_rng(0), wanted)
    x_i, x_f = field.posterior_draw(x, 0.5, rng=0, label=wanted)
    np.testing.assert_array_equal(np.round(x_f.mean(axis=1) / 100.0), wanted)
    np.testing.assert_allclose(0.5 * (x_i + x_f), x, rtol=1e-12)
    sharp = wanted == 0
    assert np.abs(x_f[sharp, None] - data[None]).max(axis=-1).min(axis=1).max() == 0.0
    assert np.abs(x_f[~sharp, None] - data[None]).max(axis=-1).min() > 0.0


# Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["posterior_sample", "posterior_draw"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rng": -1}, ValueError, r"rng is -1; accepted is a whole number of at least 0"),
        ({"rng": 1.5}, TypeError, r"rng is 1\.5; accepted is a whole number .* numpy\.random\.Generator or None"),
        ({"rng": True}, TypeError, r"rng is True"),
        ({"rng": "seed"}, TypeError, r"rng is 'seed'"),
        ({"x": np.zeros((2, 4))}, ValueError, r"x has shape \(2, 4\)"),
        ({"x": np.full((2, 3), np.nan)}, ValueError, r"x\[0, 0\] is nan"),
        ({"t": 1.5}, ValueError, r"t is 1\.5"),
        ({"label": 0}, ValueError, r"label is given, but the field was made without labels"),
        ({"subset": []}, (ValueError, TypeError), r"subset"),
        ({"exclude": 60}, ValueError, r"exclude holds 60; accepted are indices from 0 to 59"),
    ],
    ids=str,
)
def test_bad_input(method, options, error, message):
    field = ff.VelocityField(cloud())
    with pytest.raises(error, match=message):
        getattr(field, method)(**{"x": cloud(2, seed=1), "t": 0.5, **options})
