"""Training targets: unbiased by enumeration and in the mean; draws from the path; the floor of the loss.

The law behind the targets (docs/theory.md, Minibatch targets): given x the data point j that it was drawn from is
distributed as the posterior weights, and the subset is drawn by index alone. So the exact mean of a target at x is
`sum_j w_j(x) E_A[T(x, A) | j]`, and for a handful of points all draws of A can be enumerated.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import fastflow as ff
from fastflow import training

N, D = 5, 2
RNG = np.random.default_rng(3)
DATA = RNG.normal(size=(N, D))
X = 0.7 * RNG.normal(size=(4, D))
_FACTORS = RNG.normal(size=(N + 1, D, D))
COVARIANCES = 0.2 * _FACTORS @ np.swapaxes(_FACTORS, 1, 2) + 0.05 * np.eye(D)
UNEQUAL = np.array([0.5, 3.0, 1.0, 0.0, 2.0])
EACH = np.array([0.0, 0.1, 0.5, 1.0, 0.2])

MODELS = {
    "data": {},
    "weights": {"weights": UNEQUAL},
    "variance": {"variance": 0.2, "weights": UNEQUAL, "source_mean": [0.3, -1.0], "source_variance": 2.0},
    "per-point": {"variance": EACH, "weights": UNEQUAL, "source_mean": 0.4},
    "covariance": {"covariance": COVARIANCES[0], "source_covariance": COVARIANCES[N], "source_mean": 0.4},
    "covariances": {"covariance": COVARIANCES[:N], "weights": UNEQUAL},
    "all covariances": {"covariance": COVARIANCES[:N], "source_covariance": COVARIANCES[N], "source_mean": 0.4},
}


def made(data=DATA, **options):
    options.setdefault("backend", "numpy")
    return ff.VelocityField(data, **options)


class Scripted(np.random.Generator):
    """A generator whose draw without replacement is known beforehand."""

    def __init__(self, drawn):
        super().__init__(np.random.PCG64(0))
        self.drawn = np.array(drawn)

    def choice(self, a, size, replace):
        assert not replace and size == len(self.drawn) and a > self.drawn.max()
        return self.drawn


def enumerated(field, x, t, num_subset, support, **options):
    """`sum_j w_j(x) E_A[T(x, A) | j]` over all draws of the subset, each target checked on its way."""
    restricted = {name: options[name] for name in ("label",) if name in options}
    quantity = options.get("quantity", "velocity")
    weights = field.weights(x, t, **restricted)
    draws = list(itertools.permutations(range(len(support)), num_subset))
    total, restricted_to = 0.0, {}
    for draw, j in itertools.product(draws, support):
        found = field.targets(x, t, num_subset=num_subset, index=np.full(len(x), j), rng=Scripted(draw), **options)
        members = {support[i] for i in draw[:-1]}
        members |= {support[draw[-1]]} if j in members else {j}
        assert len(members) == num_subset and j in members
        subset = tuple(sorted(members))  # few of them, and many draws for each
        if subset not in restricted_to:
            restricted_to[subset] = field.evaluate(x, t, (quantity,), subset=subset)[quantity]
        np.testing.assert_allclose(found, restricted_to[subset], rtol=1e-9, atol=1e-11)
        total = total + weights[:, j, None] * found / len(draws)
    return total


# Unbiased -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_subset", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_unbiased_over_all_draws(model, num_subset):
    field = made(**MODELS[model])
    support = [j for j in range(N) if "weights" not in MODELS[model] or UNEQUAL[j] > 0.0]
    for t in (0.6, np.array([0.0, 0.4, 0.7, 0.95])):
        found = enumerated(field, X, t, num_subset, support)
        np.testing.assert_allclose(found, field.velocity(X, t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("quantity", training.TARGETS)
@pytest.mark.parametrize("model", ["per-point", "all covariances"])
def test_every_target_is_unbiased(model, quantity):
    field = made(**MODELS[model])
    support = [j for j in range(N) if "weights" not in MODELS[model] or UNEQUAL[j] > 0.0]
    found = enumerated(field, X, 0.6, 2, support, quantity=quantity)
    np.testing.assert_allclose(found, field.evaluate(X, 0.6, (quantity,))[quantity], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("weights", [None, UNEQUAL], ids=["equal", "unequal"])
def test_unbiased_within_a_label(weights):
    field = made(weights=weights, variance=EACH, labels=[0, 1, 1, 1, 0], schedule="cosine")
    support = [1, 2, 3] if weights is None else [1, 2]
    found = enumerated(field, X, 0.6, 2, support, label=1)
    np.testing.assert_allclose(found, field.velocity(X, 0.6, label=1), rtol=1e-9, atol=1e-10)


def test_a_wrong_index_is_biased():
    """What the tests above would see: the subset is forced to hold a point that x was not drawn from."""
    field = made()
    draws = list(itertools.permutations(range(N), 2))
    targets = [
        field.targets(X, 0.6, num_subset=2, index=np.full(len(X), j), rng=Scripted(draw))
        for draw, j in itertools.product(draws, range(N))
    ]
    assert np.abs(np.mean(targets, axis=0) - field.velocity(X, 0.6)).max() > 0.1


@pytest.mark.parametrize("model", ["weights", "per-point", "all covariances"])
@pytest.mark.parametrize("num_subset", [1, 3])
def test_unbiased_in_the_mean(model, num_subset):
    """`E[(T - v) phi(x, t)] = 0` for functions of x and t, over whole batches with their shared subset."""
    field = made(**MODELS[model])
    rng = np.random.default_rng(11)
    means, wrong = [], []
    for _ in range(150):
        x, t, target, index = field.training_batch(64, num_subset=num_subset, rng=rng)
        late = (t < 0.95)[:, None]  # beyond, single draws outweigh all others
        features = np.concatenate([np.ones_like(x), x, np.sin(3.0 * x), t[:, None] * x], axis=1) * late
        exact = field.velocity(x, t)
        means.append((np.tile(target - exact, 4) * features).mean(axis=0))
        other = field.targets(x, t, num_subset=num_subset, index=np.roll(index, 1), rng=rng)
        wrong.append((np.tile(other - exact, 4) * features).mean(axis=0))

    def scores(values):
        return np.abs(np.mean(values, axis=0)) / (np.std(values, axis=0, ddof=1) / math.sqrt(len(values)))

    assert scores(means).max() < 4.0
    assert scores(wrong).max() > 8.0


# What a subset brings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_subset_of_all_points_is_the_velocity(model):
    field = made(**MODELS[model])
    index = np.array([0, 1, 4, 4])
    found = field.targets(X, 0.5, num_subset=N, index=index, rng=0)
    np.testing.assert_allclose(found, field.velocity(X, 0.5), rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(field.targets(X, 0.5), field.velocity(X, 0.5))


def test_a_subset_of_one_is_the_conditional_velocity():
    field = made(variance=0.2, source_mean=0.5)
    index, t = np.array([2, 0, 2, 4]), np.array([0.1, 0.4, 0.7, 1.0])
    found = field.targets(X, t, num_subset=1, index=index, rng=0)
    alpha, beta = 1.0 - t[:, None], t[:, None]
    residual = X - alpha * 0.5 - beta * DATA[index]
    expected = DATA[index] - 0.5 + (0.2 * beta - alpha) / (alpha**2 + 0.2 * beta**2) * residual
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_noise_of_the_target_falls_with_the_subset():
    field = made(np.random.default_rng(0).normal(size=(200, D)))
    noise = []
    for num_subset in (1, 5, 25, 125, 200):
        x, t, target, _ = field.training_batch(2000, t=0.6, num_subset=num_subset, rng=1)
        noise.append(np.square(target - field.velocity(x, t)).sum(axis=1).mean())
    assert np.all(np.diff(noise) < 0.0), noise
    assert noise[-1] < 1e-20
    # Without variance a subset of one is the sample velocity, and its noise all of the floor.
    floor = field.cfm_loss_floor(0.6, seed=2)
    assert noise[0] == pytest.approx(floor.value, rel=0.1)


def test_the_end_of_time():
    field = made()
    found = field.targets(DATA, 1.0, num_subset=3, index=np.arange(N), rng=0)
    np.testing.assert_array_equal(found, field.velocity(DATA, 1.0))
    nearest = field.targets(DATA, 1.0, num_subset=3, index=np.arange(N), rng=0, quantity="target_mean")
    np.testing.assert_array_equal(nearest, DATA)


@pytest.mark.parametrize("schedule", ff.schedules.names())
@pytest.mark.parametrize("variance", [0.0, 0.1])
def test_every_schedule(schedule, variance):
    field = made(schedule=schedule, variance=variance)
    x, t, target, index = field.training_batch(50, num_subset=3, rng=0)
    assert np.isfinite(target).all()
    np.testing.assert_allclose(
        field.targets(x, t, num_subset=N, index=index, rng=0), field.velocity(x, t), rtol=1e-10, atol=1e-12
    )


def test_every_backend(backend):
    data = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    for options in ({}, {"weights": np.arange(60.0)}, {"variance": 0.1}):
        field, reference = (made(data, backend=name, **options) for name in (backend, "numpy"))
        x, t, target, index = field.training_batch(40, num_subset=12, rng=0)
        assert x.dtype == target.dtype == t.dtype == np.float32
        same = reference.targets(x, t, num_subset=12, index=index, rng=5)
        got = field.targets(x, t, num_subset=12, index=index, rng=5)
        np.testing.assert_allclose(got, same, rtol=2e-5, atol=2e-5)
        # and the same as restricting the whole field to each query's points
        whole = reference.velocity(x, t)
        np.testing.assert_allclose(field.targets(x, t, num_subset=60, index=index, rng=5), whole, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_shapes_and_dtypes(event, dtype):
    data = np.random.default_rng(0).normal(size=(6, *event)).astype(dtype)
    field = made(data)
    expected = np.float64 if dtype is np.float64 else np.float32
    for count in (7, 1, 0):
        x, t, target, index = field.training_batch(count, num_subset=2, rng=0)
        assert x.shape == target.shape == (count, *event) and t.shape == index.shape == (count,)
        assert x.dtype == target.dtype == t.dtype == expected and index.dtype == np.int64
        low = x.astype(dtype)
        assert field.targets(low, t, num_subset=2, index=index).dtype == dtype
        out = np.empty_like(low)
        assert field.targets(low, t, num_subset=2, index=index, rng=0, out=out) is out
        np.testing.assert_array_equal(out, field.targets(low, t, num_subset=2, index=index, rng=0))
        assert field.targets(low, t, out=out) is out
    assert field.targets(data[0], 0.5, num_subset=2, index=3).shape == event


def test_labels_of_a_batch():
    field = made(variance=0.1, labels=[0, 1, 1, 1, 0])
    label = np.array([0, 1] * 10)
    x, t, target, index = field.training_batch(20, label=label, rng=0)
    np.testing.assert_array_equal(np.isin(index, [1, 2, 3]), label == 1)
    np.testing.assert_array_equal(target, field.velocity(x, t, label=label))
    # A label with two points gives a subset of both.
    found = field.targets(x, t, num_subset=2, index=index, label=label, rng=0)
    np.testing.assert_allclose(found[label == 0], target[label == 0], rtol=1e-11, atol=1e-12)
    assert np.abs(found[label == 1] - target[label == 1]).max() > 1e-3


def test_the_seed_reproduces():
    field = made(**MODELS["per-point"])
    for num_subset in (None, 2):
        a, b = (field.training_batch(9, num_subset=num_subset, rng=rng) for rng in (4, np.random.default_rng(4)))
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)
        assert not np.array_equal(a.x, field.training_batch(9, num_subset=num_subset, rng=5).x)
        assert not np.array_equal(
            field.training_batch(9, num_subset=num_subset).x, field.training_batch(9, num_subset=num_subset).x
        )


# Draws from the path ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "vp", ff.schedules.VE(0.1, 3.0)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_draws_follow_the_path(model, schedule):
    """Given the point that x was drawn from it has that component's mean and covariance, and the points their mass."""
    options = dict(MODELS[model])
    field = made(schedule=schedule, **options)
    num = 40_000
    for t in (0.3, 0.8):
        x, index = training.draw(field, num, t, np.random.default_rng(0))
        mass = options.get("weights", np.ones(N))
        np.testing.assert_allclose(np.bincount(index, minlength=N) / num, mass / mass.sum(), atol=0.012)
        at = field.schedule(t)
        mean = np.broadcast_to(options.get("source_mean", 0.0), D)
        source = options.get("source_covariance", options.get("source_variance", 1.0) * np.eye(D))
        for j in np.flatnonzero(mass):
            target = options.get(
                "covariance", np.multiply.outer(np.broadcast_to(options.get("variance", 0.0), N), np.eye(D))
            )
            target = target if target.ndim == 2 else target[j]
            covariance = at.alpha**2 * source + at.beta**2 * target
            some = x[index == j]
            residual = np.linalg.solve(np.linalg.cholesky(covariance), (some - at.alpha * mean - at.beta * DATA[j]).T)
            assert np.abs(residual.mean(axis=1)).max() < 4.5 / math.sqrt(len(some))
            np.testing.assert_allclose(np.cov(residual), np.eye(D), atol=8.0 / math.sqrt(len(some)))


def test_times_of_a_batch():
    field = made()
    t = field.training_batch(4000, rng=0).t
    assert t.min() >= 0.0 and t.max() < 1.0
    assert abs(t.mean() - 0.5) < 4.5 / math.sqrt(12 * 4000) and t.var() == pytest.approx(1 / 12, rel=0.05)
    given = np.linspace(0.0, 1.0, 7)
    np.testing.assert_array_equal(field.training_batch(7, t=given, rng=0).t, given)
    np.testing.assert_array_equal(field.training_batch(7, t=0.25, rng=0).t, np.full(7, 0.25))


def test_targets_are_those_of_x_as_given():
    """Not of x before it was rounded to the field's dtype."""
    field = made(DATA.astype(np.float32))
    x, t, target, _ = field.training_batch(30, rng=0)
    np.testing.assert_array_equal(target, field.velocity(x, t))


# The floor of the loss ----------------------------------------------------------------------------------------


def test_the_floor_of_a_single_gaussian():
    """One component: the velocity variance is `d omega^2 s_i s_f / D` wherever x is, and integrates in closed form."""
    field = made(DATA[:1], variance=0.3)
    found = field.cfm_loss_floor(0.4, num_samples=10, seed=0)
    assert found.value == pytest.approx(D * 0.3 / (0.6**2 + 0.3 * 0.4**2), rel=1e-12)
    assert found.standard_error < 1e-12 and found.num_samples == 10
    found = field.cfm_loss_floor(num_samples=400, seed=0)
    exact = D * math.sqrt(0.3) * math.pi / 2.0  # with u = t / (1 - t), D times the integral of s / (1 + s u^2)
    assert found.value == pytest.approx(exact, rel=1e-3)
    assert abs(found.value - exact) < 4.5 * found.standard_error


def test_the_floor_of_a_gaussian_with_covariances():
    field = made(DATA[:1], covariance=COVARIANCES[:1], source_variance=2.0, schedule="cosine")
    at = field.schedule(0.4)
    omega = at.alpha * at.d_beta - at.d_alpha * at.beta
    whole = 2.0 * at.alpha**2 * np.eye(D) + at.beta**2 * COVARIANCES[0]
    expected = omega**2 * 2.0 * np.trace(np.linalg.solve(whole, COVARIANCES[0]))
    assert field.cfm_loss_floor(0.4, num_samples=5, seed=0).value == pytest.approx(expected, rel=1e-10)


def residuals(field, t, num, variance, source_variance=1.0, source_mean=0.0, weights=None):
    """`|v_s - v|^2` over draws of the two ends of the path."""
    rng = np.random.default_rng(100)
    weights = np.ones(N) if weights is None else weights
    index = rng.choice(N, size=num, p=weights / weights.sum())
    source = source_mean + math.sqrt(source_variance) * rng.standard_normal((num, D))
    target = DATA[index] + np.sqrt(np.broadcast_to(variance, N)[index])[:, None] * rng.standard_normal((num, D))
    at = field.schedule(t)
    alpha, beta, d_alpha, d_beta = (np.reshape(v, (-1, 1)) for v in at[:4])
    x = alpha * source + beta * target
    return np.square(d_alpha * source + d_beta * target - field.velocity(x, t)).sum(axis=1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("model", ["data", "weights", "variance", "per-point"])
def test_the_floor_is_the_mean_square_residual(model, schedule):
    options = {"variance": 0.0, **MODELS[model]}
    field = made(schedule=schedule, **options)
    for t in (0.3, 0.8):
        direct = residuals(field, t, 20_000, **options)
        found = field.cfm_loss_floor(t, num_samples=2000, seed=1)
        error = math.hypot(found.standard_error, direct.std() / math.sqrt(len(direct)))
        assert abs(found.value - direct.mean()) < 4.5 * error
        assert found.standard_error < 0.1 * found.value


def test_the_integrated_floor_is_the_mean_over_all_times():
    field = made(**MODELS["per-point"])
    times = np.random.default_rng(5).random(20_000)
    direct = residuals(field, times, len(times), **MODELS["per-point"])
    found = field.cfm_loss_floor(num_samples=2000, seed=1)
    assert abs(found.value - direct.mean()) < 4.5 * math.hypot(
        found.standard_error, direct.std() / math.sqrt(len(direct))
    )
    assert found == field.cfm_loss_floor("integrated", num_samples=2000, seed=1)


@pytest.mark.parametrize("t", [0.7, None])
def test_the_standard_error_is_one(t):
    field = made(variance=0.05)
    runs = [field.cfm_loss_floor(t, num_samples=64, seed=seed) for seed in range(150)]
    values, errors = np.array([run[:2] for run in runs]).T
    ratio = values.std(ddof=1) / math.sqrt(np.square(errors).mean())
    assert 0.75 < ratio < 1.3, ratio  # the ratio's own standard error is about 0.06


def test_times_of_the_floor():
    field = made(variance=0.2)
    times = np.array([0.2, 0.5, 1.0])
    found = field.cfm_loss_floor(times, num_samples=500, seed=0)
    assert found.value.shape == found.standard_error.shape == (3,)
    for t, value, error in zip(times, found.value, found.standard_error, strict=True):
        one = field.cfm_loss_floor(t, num_samples=500, seed=9)
        assert type(one.value) is float and type(one.standard_error) is float
        assert abs(one.value - value) < 4.5 * math.hypot(one.standard_error, error) + 1e-12
    assert field.cfm_loss_floor(times[:1], num_samples=5).value.shape == (1,)
    assert field.cfm_loss_floor(np.empty(0), num_samples=5).value.shape == (0,)


def test_the_floor_does_not_depend_on_the_batch_size():
    field = made(**MODELS["per-point"])
    found = [
        field.cfm_loss_floor(t, num_samples=50, seed=3, batch_size=b) for t in (None, 0.5) for b in (1, 7, 50, 1024)
    ]
    assert len(set(found[:4])) == len(set(found[4:])) == 1


def test_the_floor_of_a_label():
    field = made(variance=0.2, labels=[0, 1, 1, 1, 0])
    alone = made(DATA[1:4], variance=0.2)
    for t in (0.5, None):
        found, expected = (
            f.cfm_loss_floor(t, seed=0, num_samples=100, **o) for f, o in ((field, {"label": 1}), (alone, {}))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_floor_on_every_backend(backend):
    for options in ({}, {"variance": 0.1}, {"variance": EACH}):
        found, expected = (
            made(backend=name, **options).cfm_loss_floor(0.5, seed=0, num_samples=50) for name in (backend, "numpy")
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["vp", "linear_vp"])
def test_an_infinite_floor(schedule):
    field = made(schedule=schedule, variance=0.1)
    with pytest.raises(ValueError, match=r"diverges at t = 1 with variance > 0; accepted are times t < 1"):
        field.cfm_loss_floor()
    with pytest.raises(ValueError, match=r"infinite at t = 1; accepted is t < 1"):
        field.cfm_loss_floor([0.5, 1.0])
    assert math.isfinite(made(schedule=schedule).cfm_loss_floor(num_samples=100, seed=0).value)
    assert math.isfinite(field.cfm_loss_floor(0.99, num_samples=10).value)


# Refused ------------------------------------------------------------------------------------------------------

BAD_TARGETS = [
    ({"num_subset": 0}, ValueError, r"num_subset is 0; accepted is a whole number from 1 to 5"),
    ({"num_subset": 6}, ValueError, r"num_subset is 6"),
    ({"num_subset": 2.0}, TypeError, r"num_subset is 2\.0"),
    ({"num_subset": True}, TypeError, r"num_subset is True"),
    ({"index": None}, ValueError, r"num_subset is given without index"),
    ({"index": [0, 1, 2]}, ValueError, r"index has shape \(3,\); accepted is \(4,\)"),
    ({"index": [0.0, 1.0, 2.0, 4.0]}, TypeError, r"index has dtype float64"),
    ({"index": [0, 1, 2, 5]}, ValueError, r"index holds 5; accepted are indices from 0 to 4"),
    ({"index": [0, 1, 2, -1]}, ValueError, r"index holds -1"),
    ({"index": [0, 1, 2, 3]}, ValueError, r"index holds 3, a point without mass"),
    ({"label": [1, 1, 1, 1]}, ValueError, r"index holds 0, a point without mass or not of the label"),
    ({"label": [7, 1, 1, 1]}, ValueError, r"label 7 does not occur"),
    ({"rng": -1}, ValueError, r"rng is -1; accepted is a whole number of at least 0"),
    ({"rng": 1.5}, TypeError, r"rng is 1\.5"),
    ({"quantity": "entropy"}, ValueError, r"quantity is 'entropy'; accepted is one of velocity, target_mean"),
    ({"out": np.zeros((4, 3))}, ValueError, r"out has shape \(4, 3\)"),
    ({"x": np.zeros((4, 3))}, ValueError, r"x has shape \(4, 3\)"),
    ({"t": 1.5}, ValueError, r"t is 1\.5"),
    ({"t": 1.0, "quantity": "score"}, ValueError, r"score does not exist at t = 1"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"), BAD_TARGETS, ids=[str(options) for options, *_ in BAD_TARGETS]
)
def test_bad_targets(options, error, message):
    field = made(weights=UNEQUAL, labels=[0, 1, 1, 1, 0])
    options = {"x": X, "t": 0.5, "num_subset": 2, "index": [0, 1, 2, 4], **options}
    with pytest.raises(error, match=message):
        field.targets(options.pop("x"), options.pop("t"), **options)


def test_no_subset_at_the_end_where_some_points_have_no_variance():
    field = made(variance=EACH)
    with pytest.raises(ValueError, match=r"num_subset is given at t = 1 in a field where some points have no variance"):
        field.targets(X, 1.0, num_subset=2, index=[0, 1, 2, 4])
    assert np.isfinite(field.targets(X, 1.0)).all()


BAD_BATCHES = [
    ({"batch_size": -1}, ValueError, r"batch_size is -1; accepted is a whole number of at least 0"),
    ({"batch_size": 2.5}, TypeError, r"batch_size is 2\.5"),
    ({"t": [0.1, 0.2]}, ValueError, r"t has shape \(2,\)"),
    ({"t": -0.1}, ValueError, r"t is -0\.1"),
    ({"rng": "7"}, TypeError, r"rng is '7'"),
    ({"num_subset": 9}, ValueError, r"num_subset is 9"),
    ({"label": 0}, ValueError, r"label is given, but the field was made without labels"),
    ({"quantity": 3}, ValueError, r"quantity is 3"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"), BAD_BATCHES, ids=[str(options) for options, *_ in BAD_BATCHES]
)
def test_bad_batches(options, error, message):
    options = {"batch_size": 4, **options}
    with pytest.raises(error, match=message):
        made().training_batch(options.pop("batch_size"), **options)


BAD_FLOORS = [
    ({"t": 1.0}, r"cfm_loss_floor does not exist at t = 1 with variance 0"),
    ({"t": [0.5, 1.5]}, r"t\[1\] is 1\.5"),
    ({"t": [[0.5]]}, r"t has shape \(1, 1\); accepted is a scalar or \(T,\)"),
    ({"t": "all"}, r"t is 'all'; accepted is a time"),
    ({"num_samples": 1}, r"num_samples is 1; accepted is a whole number of at least 2"),
    ({"batch_size": 0}, r"batch_size is 0"),
    ({"seed": -1}, r"seed is -1"),
    ({"label": [0, 1]}, r"label has shape \(2,\); accepted is one class"),
]


@pytest.mark.parametrize(("options", "message"), BAD_FLOORS, ids=[str(options) for options, _ in BAD_FLOORS])
def test_bad_floors(options, message):
    with pytest.raises(ValueError, match=message):
        made(labels=[0, 1, 1, 1, 0]).cfm_loss_floor(**options)
