"""Labels, subsets, leaving one out, guidance: each is a field of the points that count, and the same numbers.

Two evaluations of the same thing are compared, by different points of departure (the centre of all
data or of a part) and perhaps by different kernels: equal to the accuracy of each, ``ROUNDING``,
relative to one plus the largest value. Times stay below those at which rounding is amplified.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import fastflow as ff

ROUNDING = {"float64": 1e-11, "float32": 1e-4}
VECTORS = ("velocity", "target_mean", "source_mean", "score")
SCALARS = ("log_density", "entropy", "effective_sample_size", "velocity_variance", "divergence")
QUANTITIES = (*VECTORS, *SCALARS)
PRODUCTS = ("jvp", "vjp", "target_covariance_product")
TIMES = (0.0, 0.35, 0.8)
N, D, B = 43, 3, 7
CLASSES = (-4, 0, 9)


def spread(rng, *shape):
    half = rng.standard_normal((*shape, D, D))
    return half @ np.swapaxes(half, -1, -2) / D + 0.1 * np.eye(D)


def models(rng):
    """Options of a field, and which of them are one for each point."""
    source = spread(rng)
    return {
        "bare": {},
        "points": {"variance": np.where(rng.random(N) < 0.3, 0.0, rng.uniform(0.05, 1.0, N))},
        "shared": {"covariance": spread(rng)},
        "each": {"covariance": spread(rng, N)},
        "source": {"source_covariance": source, "variance": 0.2},
        "source_each": {"source_covariance": source, "covariance": spread(rng, N)},
    }


MODELS = tuple(models(np.random.default_rng(0)))


class Setting:
    """A labelled data set, and fields of some of its points."""

    def __init__(self, variant, model="bare", dtype="float64", schedule="linear", seed=0):
        rng = np.random.default_rng(seed)
        self.variant, self.dtype = variant, np.dtype(dtype)
        self.data = rng.standard_normal((N, D)).astype(dtype)
        self.labels = rng.choice(CLASSES, size=N)
        self.weights = rng.exponential(size=N)
        self.weights[3::7] = 0.0
        self.options = {**models(rng)[model], "source_mean": rng.standard_normal(D), "schedule": schedule}
        self.x = rng.standard_normal((B, D)).astype(dtype)
        self.u = rng.standard_normal((B, D)).astype(dtype)
        self.field = self.of(np.arange(N), labels=self.labels)

    def of(self, index, **more):
        """The field of some points alone."""
        options = dict(self.options)
        for name in ("variance", "covariance"):
            if len(np.shape(options.get(name))) == (3 if name == "covariance" else 1):
                options[name] = options[name][index]
        return self.variant.field(self.data[index], weights=self.weights[index], **options, **more)

    def members(self, label):
        return np.flatnonzero(self.labels == label)

    def close(self, got, want):
        assert got.keys() == want.keys()
        for name, value in want.items():
            scale = 1.0 + np.abs(value).max()
            assert got[name].shape == value.shape, name
            assert np.abs(got[name] - value).max() <= ROUNDING[self.dtype.name] * scale, name


def all_of(field, x, t, u, names=QUANTITIES, **which):
    """All that a field says, of the points that `which` leaves."""
    got = field.evaluate(x, t, names, **which)
    got |= {name: getattr(field, name)(x, t, u, **which) for name in PRODUCTS}
    got["weights"] = field.weights(x, t, **which)
    return got


def placed(results, index):
    """Results of a field of the points `index`, with its weights put among all points."""
    weights = np.zeros((*results["weights"].shape[:-1], N))
    weights[..., index] = results["weights"]
    return {**results, "weights": weights}


@pytest.fixture(params=sorted(ROUNDING))
def dtype(request):
    return request.param


# ------------------------------------------------------------------------------------------------
# Classes


@pytest.mark.parametrize("model", MODELS)
def test_a_class_is_a_field_of_its_points(variant, model, dtype):
    s = Setting(variant, model, dtype)
    for label in CLASSES:
        index = s.members(label)
        alone = s.of(index)
        for t in TIMES:
            got = all_of(s.field, s.x, t, s.u, label=label)
            s.close(got, placed(all_of(alone, s.x, t, s.u), index))
            assert (got["weights"][:, s.labels != label] == 0.0).all()
            positions, weights = s.field.top_k(s.x, t, 4, label=label)
            own_positions, own_weights = alone.top_k(s.x, t, 4)
            assert np.array_equal(positions, index[own_positions])
            np.testing.assert_allclose(weights, own_weights, rtol=1e-4, atol=ROUNDING[dtype])
            np.testing.assert_allclose(np.take_along_axis(got["weights"], positions, 1), weights, atol=1e-6)


def test_labels_of_queries_are_calls_with_each(variant, dtype):
    for model in ("bare", "points", "source_each"):
        s = Setting(variant, model, dtype)
        labels = np.array(CLASSES)[np.arange(B) % 3]
        for t in (0.35, np.linspace(0.0, 0.8, B)):
            got = all_of(s.field, s.x, t, s.u, label=labels)
            positions, weights = s.field.top_k(s.x, t, 3, label=labels)
            for label in CLASSES:
                rows = labels == label
                when = t if np.ndim(t) == 0 else t[rows]
                one = all_of(s.field, s.x[rows], when, s.u[rows], label=label)
                s.close({name: value[rows] for name, value in got.items()}, one)
                own_positions, own_weights = s.field.top_k(s.x[rows], when, 3, label=label)
                assert np.array_equal(positions[rows], own_positions)
                np.testing.assert_allclose(weights[rows], own_weights, atol=ROUNDING[dtype])


def test_each_quantity_takes_a_label(variant):
    """The methods, and the call of the field itself, as evaluate does."""
    s = Setting(variant, "points")
    for which in ({"label": 9}, {"subset": [3, 1, 40]}, {"exclude": 5}, {"label": 0, "exclude": np.arange(B)}):
        want = s.field.evaluate(s.x, 0.4, QUANTITIES, **which)
        for name in QUANTITIES:
            got = getattr(s.field, name)(s.x, 0.4, **which)
            assert np.abs(got - want[name]).max() <= 1e-12 * (1.0 + np.abs(got).max()), name
        out = np.empty_like(s.x)
        assert s.field(s.x, 0.4, out=out, **which) is out
        assert np.array_equal(out, s.field.velocity(s.x, 0.4, **which))


def test_one_event(variant):
    """x without a batch axis, with what a batch of one takes."""
    s = Setting(variant, "each")
    for which in ({"label": 9}, {"subset": [3, 1, 40]}, {"exclude": 5}, {"label": 0, "exclude": 5}):
        one, batch = (all_of(s.field, x, 0.4, u, **which) for x, u in ((s.x[0], s.u[0]), (s.x[:1], s.u[:1])))
        for name, value in one.items():
            assert value.shape == batch[name].shape[1:], name
            assert np.array_equal(value, batch[name][0]), name
        indices, weights = s.field.top_k(s.x[0], 0.4, 2, **which)
        assert indices.shape == weights.shape == (2,)
        assert np.array_equal(indices, s.field.top_k(s.x[:1], 0.4, 2, **which)[0][0])
    guided = s.field.velocity(s.x[0], 0.4, label=9, guidance=1.5)
    assert np.array_equal(guided, s.field.velocity(s.x[:1], 0.4, label=9, guidance=1.5)[0])


def test_empty_batches(variant):
    s = Setting(variant, "points")
    x = np.empty((0, D))
    for which in ({"label": 9}, {"label": np.empty(0, int)}, {"subset": [1]}, {"exclude": np.empty(0, int)}):
        got = all_of(s.field, x, 0.4, x, **which)
        for name, value in got.items():
            assert value.shape == {"weights": (0, N)}.get(name, (0,) if name in SCALARS else (0, D)), name
        assert [a.shape for a in s.field.top_k(x, 0.4, 1, **which)] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "list"])
def test_kinds_of_labels(variant, kind):
    """Any whole numbers; what becomes of the caller's array later does not show."""
    s = Setting(variant)
    labels = np.abs(s.labels)
    given = labels.tolist() if kind == "list" else labels.astype(kind)
    field = s.of(np.arange(N), labels=given)
    want = s.of(np.flatnonzero(labels == 9)).velocity(s.x, 0.4)
    if kind != "list":
        given[:] = 9
    for label in (9, np.int8(9), np.array(9), np.full(B, 9, np.uint8), [9] * B):
        s.close({"velocity": field.velocity(s.x, 0.4, label=label)}, {"velocity": want})


def test_a_label_for_all_is_no_label(variant):
    s = Setting(variant, "points")
    field = s.of(np.arange(N), labels=np.full(N, 2))
    s.close(all_of(field, s.x, 0.4, s.u, label=2), all_of(field, s.x, 0.4, s.u))
    guided = field.velocity(s.x, 0.4, label=2, guidance=3.0)
    s.close({"velocity": guided}, {"velocity": field.velocity(s.x, 0.4)})


def test_at_the_data_a_class_ends_on_its_own(variant):
    """At t = 1 the nearest point of the class, and what exists is decided by the class alone."""
    rng = np.random.default_rng(5)
    data, labels = rng.standard_normal((30, 2)), np.arange(30) % 3
    x = rng.standard_normal((6, 2))
    field = variant.field(data, labels=labels)
    for label in range(3):
        index = np.flatnonzero(labels == label)
        nearest = index[np.linalg.norm(x[:, None] - data[index], axis=2).argmin(axis=1)]
        np.testing.assert_allclose(field.target_mean(x, 1.0, label=label), data[nearest], rtol=1e-12)
        assert field.top_k(x, 1.0, 1, label=label)[0][:, 0].tolist() == nearest.tolist()
        assert (field.weights(x, 1.0, label=label)[np.arange(6), nearest] == 1.0).all()
    # Classes that differ in whether they have variance
    variances = np.where(labels == 0, 0.0, np.where(labels == 1, 0.2, np.arange(30) / 30))
    field = variant.field(data, labels=labels, variance=variances)
    for label in range(3):
        index = np.flatnonzero(labels == label)
        alone = variant.field(data[index], variance=variances[index])
        for name in ("velocity", "target_mean", "source_mean", "log_density", "entropy"):
            got, want = (getattr(f, name)(x, 1.0, **w) for f, w in ((field, {"label": label}), (alone, {})))
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12, err_msg=name)
        if label:
            got, want = field.score(x, 1.0, label=label), alone.score(x, 1.0)
            np.testing.assert_allclose(got, want, rtol=1e-10)
        else:
            with pytest.raises(ValueError, match=r"score.*t = 1"):
                field.score(x, 1.0, label=label)
    # A query of the class without variance among others
    with pytest.raises(ValueError, match=r"score.*t = 1"):
        field.score(x, 1.0, label=np.array([1, 2, 0, 1, 2, 1]))


def test_a_class_is_not_copied(variant):
    """The data of a class stay where they are: an evaluation holds far less than their bytes."""
    rng = np.random.default_rng(2)
    data = rng.standard_normal((40_000, 32))
    labels = np.arange(40_000) % 2
    field = variant.field(data, labels=labels)
    x = rng.standard_normal((3, 32))
    small = variant.field(data[:100], labels=labels[:100])
    calls = (
        lambda field: field.evaluate(x, 0.5, QUANTITIES, label=1),
        lambda field: field.velocity(x, 0.5, label=0, guidance=1.0),
        lambda field: field.top_k(x, 0.5, 3, label=1),
        lambda field: field.velocity(x, 0.5, subset=np.arange(field.num_points // 2)),
        lambda field: field.velocity(x, 0.5, exclude=7),
        lambda field: field.sample(3, steps=2, label=1, seed=0),
    )
    for call in calls:  # whatever is compiled or imported, is now
        call(small)
    tracemalloc.start()
    try:
        for number, call in enumerate(calls):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call(field)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < data.nbytes / 2 / 2, (number, peak)
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------
# Guidance


@pytest.mark.parametrize("model", MODELS)
def test_guidance_is_extrapolation(variant, model, dtype):
    s = Setting(variant, model, dtype)
    labels = np.array(CLASSES)[np.arange(B) % 3]
    for label in (9, labels):
        for t in TIMES:
            own, all_ = (s.field.evaluate(s.x, t, VECTORS, **which) for which in ({"label": label}, {}))
            for g in (1.0, -0.3, np.float32(2.0), 3):
                got = s.field.evaluate(s.x, t, VECTORS, label=label, guidance=g)
                want = {name: (1 + g) * own[name].astype(float) - g * all_[name].astype(float) for name in VECTORS}
                s.close(got, want)
                assert all(got[name].dtype == s.dtype for name in VECTORS)
                assert np.array_equal(s.field.velocity(s.x, t, label=label, guidance=g), got["velocity"])


def test_guidance_of_nothing_is_the_class(variant):
    s = Setting(variant, "points")
    for g in (0, 0.0, -0.0):
        got = all_of_guided(s.field, s.x, g)
        assert np.array_equal(got["velocity"], s.field.velocity(s.x, 0.4, label=9))
    # Scalars are refused with guidance, not with none
    assert s.field.log_density(s.x, 0.4, label=9, guidance=0.0).shape == (B,)


def all_of_guided(field, x, g):
    return field.evaluate(x, 0.4, VECTORS, label=9, guidance=g)


def test_guidance_leaves_out_from_both(variant):
    s = Setting(variant, "points")
    exclude = np.arange(B) * 6 % N
    own = s.field.evaluate(s.x, 0.4, VECTORS, label=9, exclude=exclude)
    all_ = s.field.evaluate(s.x, 0.4, VECTORS, exclude=exclude)
    got = s.field.evaluate(s.x, 0.4, VECTORS, label=9, exclude=exclude, guidance=2.0)
    s.close(got, {name: 3.0 * own[name] - 2.0 * all_[name] for name in VECTORS})


def test_guidance_at_the_data(variant):
    rng = np.random.default_rng(4)
    data, labels, x = rng.standard_normal((20, 2)), np.arange(20) % 2, rng.standard_normal((5, 2))
    field = variant.field(data, labels=labels)
    for name in ("velocity", "target_mean", "source_mean"):
        own, all_ = getattr(field, name)(x, 1.0, label=1), getattr(field, name)(x, 1.0)
        got = getattr(field, name)(x, 1.0, label=1, guidance=1.5)
        np.testing.assert_allclose(got, 2.5 * own - 1.5 * all_, atol=1e-12)
    with pytest.raises(ValueError, match=r"score.*t = 1"):
        field.score(x, 1.0, label=1, guidance=1.5)


def test_guidance_where_only_a_class_has_no_variance(variant):
    """The moments of points without variance join those of points that have some; at t = 1 they cannot."""
    rng = np.random.default_rng(6)
    data, x, labels = rng.standard_normal((12, 2)), rng.standard_normal((5, 2)), np.arange(12) % 2
    field = variant.field(data, variance=np.where(labels == 0, 0.0, 0.3), labels=labels)
    for t in (0.0, 0.4, 0.99):
        for label in (0, 1, np.array([0, 1, 1, 0, 1])):
            own, all_ = (field.evaluate(x, t, VECTORS, **which) for which in ({"label": label}, {}))
            got = field.evaluate(x, t, VECTORS, label=label, guidance=1.5)
            for name in VECTORS:
                want = 2.5 * own[name] - 1.5 * all_[name]
                assert np.abs(got[name] - want).max() <= 1e-11 * (1.0 + np.abs(want).max()), (t, name)
    with pytest.raises(ValueError, match=r"guidance.*t = 1.*accepted"):
        field.velocity(x, 1.0, label=0, guidance=1.5)


# ------------------------------------------------------------------------------------------------
# Leaving one out


@pytest.mark.parametrize("model", MODELS)
def test_leaving_out_is_a_field_without(variant, model, dtype):
    s = Setting(variant, model, dtype)
    exclude = np.array([0, 1, 3, 3, 20, N - 1, 17])  # 3 has no weight
    others = [np.delete(np.arange(N), left_out) for left_out in exclude]
    without = [s.of(index) for index in others]
    for t in TIMES:
        got = all_of(s.field, s.x, t, s.u, exclude=exclude)
        for i, (left_out, index, alone) in enumerate(zip(exclude, others, without, strict=True)):
            want = placed(all_of(alone, s.x[i : i + 1], t, s.u[i : i + 1]), index)
            s.close({name: value[i : i + 1] for name, value in got.items()}, want)
            assert got["weights"][i, left_out] == 0.0
            one = all_of(s.field, s.x[i : i + 1], t, s.u[i : i + 1], exclude=int(left_out))
            s.close({name: value[i : i + 1] for name, value in got.items()}, one)
            positions, weights = s.field.top_k(s.x[i : i + 1], t, 5, exclude=left_out)
            own_positions, own_weights = alone.top_k(s.x[i : i + 1], t, 5)
            assert positions.tolist() == index[own_positions].tolist()
            np.testing.assert_allclose(weights, own_weights, atol=ROUNDING[dtype])
            assert left_out not in positions


@pytest.mark.parametrize("model", ["bare", "points", "each"])
def test_leaving_out_of_a_class(variant, model):
    """Of a point of the class, and of one outside it, which has no effect."""
    s = Setting(variant, model)
    labels = np.array(CLASSES)[np.arange(B) % 3]
    exclude = np.array([s.members(label)[2] for label in labels])
    exclude[4:] = [s.members(-4)[0], s.members(9)[1], s.members(0)[3]]  # for labels 0, 9, -4
    for t in TIMES:
        got = all_of(s.field, s.x, t, s.u, label=labels, exclude=exclude)
        without = all_of(s.field, s.x, t, s.u, label=labels)
        for i in range(B):
            index = s.members(labels[i])
            outside = exclude[i] not in index
            assert outside == (i in (4, 6)), "the case that is meant"
            index = index[index != exclude[i]]
            want = placed(all_of(s.of(index), s.x[i : i + 1], t, s.u[i : i + 1]), index)
            row = {name: value[i : i + 1] for name, value in got.items()}
            s.close(row, want)
            if outside:
                s.close(row, {name: value[i : i + 1] for name, value in without.items()})
    nobody = np.array([s.members(CLASSES[(i + 1) % 3])[0] for i in range(B)])
    s.close(all_of(s.field, s.x, 0.4, s.u, label=labels, exclude=nobody), all_of(s.field, s.x, 0.4, s.u, label=labels))


def test_leaving_out_of_a_subset(variant):
    s = Setting(variant, "points")
    subset = np.array([40, 2, 11, 7, 30, 25])
    exclude = np.array([2, 40, 11, 12, 0, N - 1, 25])
    got = all_of(s.field, s.x, 0.4, s.u, subset=subset, exclude=exclude)
    for i, left_out in enumerate(exclude):
        index = np.sort(subset[subset != left_out])
        want = placed(all_of(s.of(index), s.x[i : i + 1], 0.4, s.u[i : i + 1]), index)
        s.close({name: value[i : i + 1] for name, value in got.items()}, want)
        positions = s.field.top_k(s.x[i : i + 1], 0.4, 4, subset=subset, exclude=left_out)[0]
        assert set(positions[0].tolist()) <= set(index.tolist())


def test_leaving_out_the_nearest(variant):
    """At t = 1 and near it each data point goes to its nearest neighbour: leave-one-out of the data themselves."""
    rng = np.random.default_rng(7)
    data = rng.standard_normal((25, 3))
    field = variant.field(data)
    distances = np.linalg.norm(data[:, None] - data, axis=2)
    np.fill_diagonal(distances, np.inf)
    neighbour = distances.argmin(axis=1)
    for t in (1.0, 1.0 - 1e-6):
        indices, weights = field.top_k(t * data, t, 1, exclude=np.arange(25))
        assert indices[:, 0].tolist() == neighbour.tolist()
        np.testing.assert_allclose(weights, 1.0)
        mean = field.target_mean(t * data, t, exclude=np.arange(25))
        np.testing.assert_allclose(mean, data[neighbour], rtol=1e-10)
    # Two at the same distance share, where the third is left out
    line = variant.field(np.array([[-1.0], [1.0], [0.25]]), weights=[1.0, 3.0, 1.0])
    np.testing.assert_allclose(line.weights(np.zeros((1, 1)), 1.0, exclude=2)[0], [0.25, 0.75, 0.0], rtol=1e-12)
    assert line.top_k(np.zeros((1, 1)), 1.0, 2, exclude=2)[0].tolist() == [[1, 0]]


def test_a_pair_leaves_the_other(variant):
    """Of two points one is left; its posterior is certain."""
    rng = np.random.default_rng(8)
    data, x = rng.standard_normal((2, 2)), rng.standard_normal((4, 2))
    field = variant.field(data, variance=np.array([0.1, 0.4]))
    for left, other in ((0, 1), (1, 0)):
        weights = field.weights(x, 0.5, exclude=left)
        assert (weights[:, other] == 1.0).all()
        assert np.abs(field.entropy(x, 0.5, exclude=left)).max() == 0.0
        one = variant.field(data[[other]], variance=[0.1, 0.4][other])
        np.testing.assert_allclose(field.velocity(x, 0.5, exclude=left), one.velocity(x, 0.5), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------
# Subsets


@pytest.mark.parametrize("model", MODELS)
def test_a_subset_is_a_field_of_its_points(variant, model, dtype):
    s = Setting(variant, model, dtype)
    index = np.array([0, 5, 6, 11, 23, 24, 41, 42])
    mask = np.isin(np.arange(N), index)
    alone = s.of(index)
    for t in TIMES:
        got = all_of(s.field, s.x, t, s.u, subset=index)
        s.close(got, placed(all_of(alone, s.x, t, s.u), index))
        for other in (mask, mask.tolist(), index[::-1], index[::-1].tolist(), index.astype(np.uint8)):
            same = all_of(s.field, s.x, t, s.u, subset=other)
            assert all(np.array_equal(same[name], got[name]) for name in got)
        positions = s.field.top_k(s.x, t, 3, subset=mask)[0]
        assert np.array_equal(positions, index[alone.top_k(s.x, t, 3)[0]])


def test_a_subset_of_all_or_of_one(variant):
    s = Setting(variant, "points")
    want = all_of(s.field, s.x, 0.4, s.u)
    for everyone in (np.arange(N), np.ones(N, bool)):
        s.close(all_of(s.field, s.x, 0.4, s.u, subset=everyone), want)
    got = all_of(s.field, s.x, 0.4, s.u, subset=[5])
    s.close(got, placed(all_of(s.of([5]), s.x, 0.4, s.u), [5]))


# ------------------------------------------------------------------------------------------------
# Sampling


def test_samples_of_a_class_end_on_its_points(variant):
    rng = np.random.default_rng(3)
    data, labels = rng.standard_normal((60, 2)).astype(np.float32), rng.integers(0, 3, 60)
    field = variant.field(data, labels=labels)

    def distance(x, label):
        return np.linalg.norm(x[:, None] - data[labels == label], axis=2).min(axis=1)

    late = np.append(1.0 - np.geomspace(1.0, 1e-4, 40), 1.0)  # what is left then is less than any distance here
    for label in range(3):
        end = field.sample(12, steps=late, label=label, seed=label)
        assert end.shape == (12, 2)
        assert distance(end, label).max() < 1e-4
    each = np.arange(12) % 3
    end = field.sample(12, steps=late, label=each, seed=5)
    for label in range(3):
        assert distance(end[each == label], label).max() < 1e-4
    # From the same start, one by one
    start = rng.standard_normal((4, 2))
    together = field.sample(start, steps=10, label=[0, 1, 2, 1])
    for i, label in enumerate((0, 1, 2, 1)):
        np.testing.assert_allclose(field.sample(start[i], steps=10, label=label), together[i], atol=1e-6)


def test_guided_samples_follow_the_guided_field(variant):
    s = Setting(variant, "points")
    for label in (9, np.array(CLASSES)[np.arange(B) % 3]):
        got = s.field.sample(s.x, steps=[0.1, 0.3, 0.4], label=label, guidance=1.5)
        x = s.x
        for t, stop in ((0.1, 0.3), (0.3, 0.4)):
            x = x + (stop - t) * s.field.velocity(x, t, label=label, guidance=1.5)
        np.testing.assert_allclose(got, x, rtol=1e-12, atol=1e-12)


def test_starts_are_drawn_from_the_class(variant):
    """Where the marginal at the first time is not the source, it is that of the class."""
    data = np.array([[-50.0], [50.0], [52.0]])
    field = variant.field(data, labels=[0, 1, 1], schedule=ff.schedules.VE(0.01, 1.0))
    for label, side in ((0, -1), (1, 1)):
        _, path = field.sample(20, steps=2, label=label, seed=0, return_path=True)
        assert (np.sign(path) == side).all()
    _, path = field.sample(4, steps=2, label=[0, 1, 1, 0], seed=0, return_path=True)
    assert np.sign(path[0, :, 0]).tolist() == [-1, 1, 1, -1]


def test_whole_numbers_do_not_wrap():
    data = np.random.default_rng(0).normal(size=(4, 2))
    with pytest.raises(ValueError, match=r"labels holds 18446744073709551615; accepted"):
        ff.VelocityField(data, labels=np.full(4, 2**64 - 1, np.uint64))
    field = ff.VelocityField(data, labels=np.full(4, -1))
    with pytest.raises(ValueError, match=r"label holds 18446744073709551615; accepted"):
        field(data, 0.5, label=np.uint64(2**64 - 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("differ", [False, True], ids=["shared", "per-point"])
def test_a_part_of_the_data_in_which_only_the_point_left_out_has_mass(variant, differ, dtype):
    rng, count = np.random.default_rng(8), 2000
    data, x = rng.normal(size=(count, 20)), rng.normal(size=(9, 20)).astype(dtype)
    weights = np.zeros(count)
    weights[[0, 1, 2, count - 1]] = 1.0
    options = {"weights": weights, "variance": rng.uniform(0.01, 0.1, count) if differ else 0.01}
    field = variant.field(data.astype(dtype), **options)
    exact = ff.VelocityField(data.astype(dtype).astype(float), backend="numpy", **options)
    for t in (0.05, 0.4, 0.9):
        want = exact.velocity(x.astype(float), t, exclude=count - 1)
        got = field.velocity(x, t, exclude=count - 1)
        assert np.abs(got - want).max() <= {"float32": 1e-5, "float64": 1e-12}[dtype] * np.abs(want).max()
