"""Every backend against the oracle, over schedules, times, sizes, storage types and awkward data.

How an error is measured (one place, :func:`errors`), per query and quantity:

- velocity, target_mean, source_mean, score: ``|got - want| / max(|want|, 0.1 terms, 1e-3
  residual)``. ``terms`` is the sum of the norms of the terms that the quantity is the sum of, in m,
  the average point and the average residual r: ``alpha' m``, ``beta' E[mu|x]`` and the multiple of
  r for the velocity. Where they nearly cancel the result cannot be relative to itself. ``residual``
  is the sum of the norms of ``x``, ``alpha m`` and ``beta E[mu|x]``, times the factor of r. It
  only matters where most digits of r cancel, and then asks float64 for a few units in the last
  place of x, and float32 for a fraction of one: float32 passes only with residuals taken in double.
- log_density, entropy, effective_sample_size: ``|got - want| / max(1, |want|)``.
- weights: ``sum_j |w_j - w'_j|``.

A test passes if the error is at most the tolerance of the storage type; NaN never passes. Inputs
are exact binary numbers for the oracle too, so a failure is an error of evaluation and of nothing
else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import oracle
import pytest

import fastflow as ff

TIMES = (0.0, 1e-6, 0.01, 0.3, 0.7, 0.9, 0.99, 0.999, 1.0)
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
DTYPES = tuple(TOLERANCE)

SCHEDULES = {
    ("linear",): lambda: "linear",
    ("cosine",): lambda: ff.schedules.Cosine(),
    ("polynomial", 2): lambda: ff.schedules.Polynomial(2),
    ("polynomial", 3): lambda: ff.schedules.Polynomial(3),
    ("linear_vp",): lambda: ff.schedules.LinearVP(),
    ("vp", 0.1, 20.0): lambda: ff.schedules.VP(beta_min=0.1, beta_max=20.0),
    ("ve", 0.01, 10.0): lambda: ff.schedules.VE(0.01, 10.0),
    ("optimal_transport", 0.01): lambda: ff.schedules.OptimalTransport(0.01),
}

SITUATIONS = (
    "plain",
    "shifted",
    "near",
    "near_shifted",
    "weights",
    "variance",
    "source",
    "everything",
)
# Queries of every case, in this order; "far" is at distance 1000 from all data.
QUERIES = ("path", "far", "point", "path")

REGULAR = (
    "velocity",
    "target_mean",
    "source_mean",
    "score",
    "log_density",
    "entropy",
    "effective_sample_size",
)
SINGULAR = tuple(name for name in REGULAR if name != "score")


# ------------------------------------------------------------------------------------------------
# Cases


@dataclass(frozen=True)
class Case:
    """All that defines a data set and, with a time, its queries. ``problem(case)`` rebuilds it."""

    schedule: tuple
    d: int
    n: int
    dtype: str
    situation: str

    def __str__(self):
        name = "_".join(str(v) for v in self.schedule)
        return f"{name}-d{self.d}-n{self.n}-{self.situation}-{self.dtype}"

    def random(self, *more) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(repr((self, *more)).encode()))


@dataclass(frozen=True, eq=False)
class Problem:
    case: Case
    data: np.ndarray
    options: dict

    @cached_property
    def oracle(self) -> oracle.Oracle:
        return oracle.Oracle(self.data, schedule=self.case.schedule, **self.options)

    @property
    def variance(self) -> float:
        return self.options.get("variance", 0.0)

    def field(self, variant, **more):
        schedule = SCHEDULES[self.case.schedule]()
        return variant.field(self.data, schedule=schedule, **self.options, **more)

    def singular(self, t) -> bool:
        c = oracle.coefficients(self.case.schedule, t)
        return c.alpha == 0 and self.variance == 0

    def quantities(self, t) -> tuple[str, ...]:
        return SINGULAR if self.singular(t) else REGULAR

    def times(self) -> tuple[float, ...]:
        unbounded = self.case.schedule[0] in ("linear_vp", "vp")
        if unbounded and np.any(self.options.get("source_mean", 0.0)):
            return TIMES[:-1]  # alpha' m is infinite at t = 1
        return TIMES


@cache
def problem(case: Case) -> Problem:
    rng = case.random()
    dtype = np.dtype(case.dtype)
    d, n, situation = case.d, case.n, case.situation
    data = rng.standard_normal((n, d))
    options = {}
    if situation in ("shifted", "near_shifted"):
        data += 100.0
    if situation in ("near", "near_shifted", "everything"):
        for first, distance in ((0, 1e-3), (2, 1e-6)):
            if first + 1 < n:
                step = rng.standard_normal(d)
                data[first + 1] = data[first] + distance * step / np.linalg.norm(step)
    if situation in ("weights", "everything"):
        weights = rng.exponential(size=n)
        if n > 1:
            weights[1::5] = 0.0
        options["weights"] = weights * 37.0
    if situation in ("variance", "everything"):
        options["variance"] = 0.05
    if situation in ("source", "everything"):
        # Rounded to float32: a storage type narrower than that of the option is not at issue here.
        options["source_mean"] = rng.standard_normal(d).astype(np.float32).astype(np.float64)
        options["source_variance"] = 2.25
    return Problem(case, data.astype(dtype), options)


def make_queries(problem: Problem, t: float, kinds, rng) -> np.ndarray:
    data, case = problem.data.astype(np.float64), problem.case
    c = oracle.coefficients(case.schedule, t)
    alpha, beta = float(c.alpha), float(c.beta)
    source = problem.options.get("source_mean", 0.0)
    spread = np.sqrt(problem.options.get("source_variance", 1.0))
    rows = []
    for i, kind in enumerate(kinds):
        if kind == "path":
            # The first four points in turn: with near-duplicates these have one close by, so that
            # their weights are neither 0 nor 1.
            j = i % min(4, case.n)
            noise = source + spread * rng.standard_normal(case.d)
            row = alpha * noise + beta * data[j]
        elif kind == "far":
            direction = rng.standard_normal(case.d)
            row = beta * data.mean(axis=0) + 1e3 * direction / np.linalg.norm(direction)
        else:
            row = beta * data[min(1, case.n - 1)]  # of weight zero, where some weights are
        rows.append(row)
    return np.array(rows).astype(case.dtype)


@cache
def questions(case: Case, t: float, kinds: tuple = QUERIES):
    """Queries and the oracle's answers. Shared by all variants, so each is computed once."""
    p = problem(case)
    x = make_queries(p, t, kinds, case.random(t))
    answers = oracle.remembered(
        lambda: [p.oracle(row, t) for row in x], "accuracy", p.data, case.schedule, p.options, x, t
    )
    return x, answers


# ------------------------------------------------------------------------------------------------
# Measuring


def errors(name: str, got: np.ndarray, want: list) -> np.ndarray:
    """The error of each query, as the module's docstring defines it."""
    out = []
    for one, answer in zip(got, want, strict=True):
        exact = getattr(answer, name)
        one = np.asarray(one, dtype=np.float64)
        if name == "weights":
            out.append(np.abs(one - exact).sum())
        elif np.ndim(exact) == 0:
            if np.isinf(exact):
                out.append(0.0 if one == exact else np.inf)
            else:
                out.append(abs(one - exact) / max(1.0, abs(exact)))
        else:
            difference = np.linalg.norm(one - exact)
            size = max(np.linalg.norm(exact), 0.1 * answer.terms[name], 1e-3 * answer.residuals[name])
            # Zero is exact only for zero (the source mean at t = 1, for one).
            out.append(difference / size if size else (0.0 if difference == 0 else np.inf))
    return np.array(out)


class Tally:
    """Collects errors of a test and reports the worst ones together, with what reproduces them."""

    def __init__(self, case: Case, variant):
        self.case, self.variant = case, variant
        self.tolerance = TOLERANCE[case.dtype]
        self.failures = []

    def check(self, name, got, want, where, kinds=None):
        for i, error in enumerate(errors(name, got, want)):
            if not error <= self.tolerance:  # NaN fails
                kind = kinds[i] if kinds is not None else ""
                ratio = error / self.tolerance
                self.failures.append((ratio, f"{name} {where} query {i} {kind}: {ratio:.3g}"))

    def require(self, condition, message):
        if not condition:
            self.failures.append((np.inf, message))

    def finish(self):
        if self.failures:
            order = sorted(self.failures, key=lambda f: -f[0] if f[0] == f[0] else -np.inf)
            lines = [text for _, text in order[:12]]
            pytest.fail(
                f"{len(order)} errors above {self.tolerance:g}, on {self.variant}, in {self.case!r}"
                " (errors as multiples of the tolerance, worst first):\n  " + "\n  ".join(lines),
                pytrace=False,
            )


def check_top_k(tally, field, x, t, want, where):
    n = len(want[0].weights)
    k = min(n, 3)
    indices, weights = field.top_k(x, t, k)
    for i, answer in enumerate(want):
        order = np.argsort(-answer.weights, kind="stable")
        exact = answer.weights[order]
        wrong = np.abs(weights[i] - exact[:k]).max()
        wrong = max(wrong, np.abs(weights[i] - answer.weights[indices[i]]).max())
        tally.require(wrong <= tally.tolerance, f"top_k weights {where} query {i}: off by {wrong}")
        tally.require(len(set(indices[i].tolist())) == k, f"top_k {where} query {i}: repeats")
        for rank in range(k):
            separated = rank + 1 == n or exact[rank] - exact[rank + 1] > 1e-4
            separated &= rank == 0 or exact[rank - 1] - exact[rank] > 1e-4
            if separated:
                tally.require(indices[i][rank] == order[rank], f"top_k {where} query {i}: wrong index")


def check_batch(tally, p, field, x, t, want, chosen, kinds, where):
    """All quantities of one call; ``chosen`` are the rows of x that the oracle has answered."""
    got = field.evaluate(x, t, quantities=p.quantities(t))
    for name, value in got.items():
        tally.check(name, value[chosen], want, where, kinds)
    alone = field.velocity(x, t)
    tally.require(alone.dtype == x.dtype, f"velocity {where}: dtype {alone.dtype}")
    tally.require(alone.shape == x.shape, f"velocity {where}: shape {alone.shape}")
    tally.require(np.array_equal(alone, got["velocity"]), f"velocity {where}: differs from evaluate's")


def check_case(case: Case, variant, times, kinds=QUERIES):
    """The queries one by one, together (a small batch) and among typical others in a batch of 20."""
    p = problem(case)
    field = p.field(variant)
    tally = Tally(case, variant)
    for t in times:
        if t not in p.times():
            continue
        x, want = questions(case, t, kinds)
        everyone = list(range(len(x)))
        check_batch(tally, p, field, x, t, want, everyone, kinds, f"t={t} B={len(x)}")
        for i in everyone:
            own = slice(i, i + 1)
            check_batch(tally, p, field, x[own], t, want[own], [0], kinds[own], f"t={t} B=1 of {i}")
        tally.check("weights", field.weights(x, t), want, f"t={t} B={len(x)}", kinds)
        check_top_k(tally, field, x, t, want, f"t={t} B={len(x)}")
        large = make_queries(p, t, ("path",) * 20, case.random(t, "filler"))
        chosen = np.linspace(0, 19, len(x)).astype(int)
        large[chosen] = x
        check_batch(tally, p, field, large, t, want, chosen, kinds, f"t={t} B=20")
    tally.finish()


# ------------------------------------------------------------------------------------------------
# The oracle itself


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "_".join(str(v) for v in s))
def test_the_oracle_is_the_definition(schedule):
    """Its expanded form agrees with one-component-at-a-time evaluation, to all of float64."""
    rng = np.random.default_rng(7)
    data, mean = rng.standard_normal((5, 3)), rng.standard_normal(3)
    weights = np.array([0.3, 1.0, 0.0, 2.0, 0.7])
    for t in (0.0, 1e-6, 0.3, 0.99):
        for variance in (0.0, 0.05):
            x = rng.standard_normal(3)
            answer = oracle.Oracle(
                data,
                weights=weights,
                variance=variance,
                source_mean=mean,
                source_variance=1.7,
                schedule=schedule,
            )(x, t)
            plain = oracle.by_components(x, t, data, weights, variance, mean, 1.7, schedule)
            for name, value in plain.items():
                np.testing.assert_allclose(getattr(answer, name), value, rtol=1e-15, atol=1e-300)
            assert abs(answer.weights.sum() - 1) < 1e-15


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "_".join(str(v) for v in s))
def test_the_oracle_differentiates_its_schedules(schedule):
    step = oracle.mpf(10) ** -16
    for t in (0.1, 0.5, 0.95):
        c = oracle.coefficients(schedule, t)
        up = oracle.coefficients(schedule, oracle.mpf(t) + step)
        down = oracle.coefficients(schedule, oracle.mpf(t) - step)
        assert abs((up.alpha - down.alpha) / (2 * step) - c.dalpha) < 1e-25
        assert abs((up.beta - down.beta) / (2 * step) - c.dbeta) < 1e-25
        assert abs(c.alpha * c.dalpha - c.half_square) < 1e-40


# ------------------------------------------------------------------------------------------------
# The package


def test_no_backend_is_missing(backend):
    """The fixture fails for a backend that cannot run here, unless it was left out on purpose."""
    assert ff.backends()[backend].available


def test_the_registry_has_the_three_backends():
    assert {"native", "numba", "numpy"} <= set(ff.backends())


SMALL = [
    Case(("linear",), d, n, dtype, situation)
    for situation in SITUATIONS
    for d in (1, 2, 3, 17)
    for n in (1, 2, 31)
    for dtype in DTYPES
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_linear_in_full(variant, case):
    check_case(case, variant, TIMES)


# Sizes in an order that meets every schedule and every situation with small and large d and N.
SIZES = (
    (1, 31),
    (2, 1000),
    (3, 31),
    (17, 31),
    (64, 2),
    (784, 31),
    (1, 1000),
    (64, 31),
    (17, 1000),
    (3, 1),
    (784, 2),
    (64, 1000),
    (2, 2),
    (784, 1),
    (3, 1000),
)
COVERING = [
    Case(schedule, *SIZES[(5 * i + 4 * k + 7 * m) % len(SIZES)], dtype, situation)
    for i, schedule in enumerate(SCHEDULES)
    for k, situation in enumerate(SITUATIONS)
    for m, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_schedules_and_sizes(variant, case):
    check_case(case, variant, TIMES, QUERIES[:3])


LARGE = [
    (Case(schedule, 784, 1000, dtype, situation), times)
    for dtype in DTYPES
    for schedule, situation, times in (
        (("linear",), "plain", (0.0, 0.3, 0.9, 0.999, 1.0)),
        (("linear",), "near_shifted", (0.3, 0.9, 0.999)),
        (("cosine",), "shifted", (0.3, 0.99)),
        (("vp", 0.1, 20.0), "everything", (0.7, 0.999)),
    )
]


@pytest.mark.parametrize("case, times", LARGE, ids=[str(case) for case, _ in LARGE])
def test_large(variant, case, times):
    check_case(case, variant, times, QUERIES[:3])


# More points than any tile holds, and counts that no tile size divides.
UNEVEN = [
    Case(("linear",), 20, 5000, "float32", "everything"),
    Case(("linear",), 20, 5000, "float64", "near_shifted"),
    Case(("cosine",), 17, 1003, "float32", "weights"),
    Case(("cosine",), 5, 257, "float64", "weights"),
    Case(("linear",), 3, 4097, "float32", "near_shifted"),
    Case(("linear",), 33, 129, "float64", "variance"),
    Case(("linear",), 65, 63, "float32", "shifted"),
]


@pytest.mark.parametrize("case", UNEVEN, ids=str)
def test_uneven_sizes(variant, case):
    check_case(case, variant, (0.01, 0.3, 0.9, 0.999), QUERIES[:3])


BATCHES = [
    Case(schedule, d, n, dtype, situation)
    for schedule, d, n, situation in (
        (("linear",), 3, 31, "near_shifted"),
        (("cosine",), 17, 31, "weights"),
        (("vp", 0.1, 20.0), 2, 100, "everything"),
    )
    for dtype in DTYPES
]


@pytest.mark.parametrize("case", BATCHES, ids=str)
@pytest.mark.parametrize("size", [1, 3, 20, 70])
def test_times_per_query(variant, case, size):
    """Each query at a time of its own, t of shape (B,) and (B, 1), batches of every kernel."""
    p = problem(case)
    field = p.field(variant)
    tally = Tally(case, variant)
    regular = [t for t in p.times() if not p.singular(t)]
    for times, quantities in ((regular, REGULAR), (p.times(), SINGULAR)):
        t = np.array([times[(5 * i + 3) % len(times)] for i in range(size)])
        rows, want, kinds = [], [], []
        for i, one in enumerate(t):
            x, answers = questions(case, float(one))
            rows.append(x[i % len(x)])
            want.append(answers[i % len(x)])
            kinds.append(f"{QUERIES[i % len(x)]} t={one}")
        x = np.array(rows)
        got = field.evaluate(x, t, quantities=quantities)
        column = field.evaluate(x, t[:, None], quantities=quantities)
        for name in quantities:
            tally.check(name, got[name], want, f"per-query t, B={size}", kinds)
            tally.require(np.array_equal(got[name], column[name]), f"{name} B={size}: (B,) is not (B, 1)")
        tally.check("weights", field.weights(x, t), want, f"per-query t, B={size}", kinds)
        tally.require(
            np.array_equal(field.velocity(x, t), got["velocity"]),
            f"velocity B={size}: differs from evaluate's",
        )
    tally.finish()


@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_one_event(variant, case):
    """x without a batch axis gives the result of a batch of one, without the axis."""
    p = problem(case)
    field = p.field(variant)
    for t in (0.0, 0.3, 0.999):
        x, _ = questions(case, t)
        one = field.evaluate(x[0], t, quantities=p.quantities(t))
        batch = field.evaluate(x[:1], t, quantities=p.quantities(t))
        for name, value in one.items():
            assert np.shape(value) == np.shape(batch[name])[1:], name
            assert np.array_equal(value, batch[name][0]), name
        assert np.array_equal(field.weights(x[0], t), field.weights(x[:1], t)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_event_shapes(variant, dtype):
    """Events of any shape are vectors to the mathematics: the same numbers, in that shape."""
    rng = np.random.default_rng(3)
    data = rng.standard_normal((31, 2, 3, 4)).astype(dtype)
    x = rng.standard_normal((5, 2, 3, 4)).astype(dtype)
    mean = rng.standard_normal((2, 3, 4))
    shaped = variant.field(data, source_mean=mean)
    flat = variant.field(data.reshape(31, 24), source_mean=mean.reshape(24))
    for name, value in shaped.evaluate(x, 0.4, quantities=REGULAR).items():
        other = flat.evaluate(x.reshape(5, 24), 0.4, quantities=(name,))[name]
        assert value.shape in ((5,), x.shape)
        assert np.array_equal(value, other.reshape(value.shape)), name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "_".join(str(v) for v in s))
def test_score_at_the_data_is_refused(variant, schedule):
    field = variant.field(np.eye(2), schedule=SCHEDULES[schedule]())
    if oracle.coefficients(schedule, 1.0).alpha == 0:
        with pytest.raises(ValueError, match=r"score.*t = 1"):
            field.score(np.zeros((1, 2)), 1.0)
        with pytest.raises(ValueError, match=r"score.*t = 1"):
            field.score(np.zeros((2, 2)), np.array([0.5, 1.0]))
    else:
        assert np.isfinite(field.score(np.zeros((1, 2)), 1.0)).all()
    smooth = variant.field(np.eye(2), schedule=SCHEDULES[schedule](), variance=0.1)
    assert np.isfinite(smooth.score(np.zeros((1, 2)), 1.0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_at_the_data_share_by_mass(variant, dtype):
    """At t = 1 equally near points share the weight in proportion to C_j."""
    data = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [5.0, 5.0]], dtype=dtype)
    weights = np.array([1.0, 2.0, 0.0, 7.0])
    field = variant.field(data, weights=weights)
    exact = oracle.Oracle(data, weights=weights)
    x = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0], [4.0, 5.0]], dtype=dtype)
    tolerance = TOLERANCE[dtype]
    want = [exact(row, 1.0) for row in x]
    assert want[0].weights.tolist() == [1 / 3, 2 / 3, 0.0, 0.0]
    got = field.evaluate(x, 1.0, quantities=SINGULAR)
    got["weights"] = field.weights(x, 1.0)
    for name, value in got.items():
        assert (errors(name, value, want) <= tolerance).all(), name


@cache
def near_points(size, away):
    """Data, and for each of some times queries, their exact velocities, and the weight of all other points over that of
    the heaviest one: from nothing to as much as it has."""
    rng = np.random.default_rng(size)
    data = rng.normal(size=(300, size)).astype(np.float32)
    exact = ff.VelocityField(data.astype(np.float64), backend="numpy")
    cases = []
    # The logit of another point, (t / (1 - t))^2 |s - s'|^2 / 2 below, reaches -log(300) here.
    for ratio in np.sqrt(np.log(300) / size * np.geomspace(0.4, 4.0, 12)):
        t = ratio / (1 + ratio)
        x = (t * data[:30] + (1 - t) * away * rng.normal(size=(30, size))).astype(np.float32)
        weights = exact.weights(x.astype(np.float64), t)
        cases.append((t, x, exact.velocity(x.astype(np.float64), t), 1 / weights.max(axis=1) - 1))
    return data, cases


@pytest.mark.parametrize("size", [40, 300, 1500])
@pytest.mark.parametrize("away", [0.0, 0.3, 1.0])
def test_on_and_near_a_heavy_point(variant, size, away):
    """On a heavy point the velocity is what all the others add, each of them little: their weights may be those of
    float32, or not."""
    data, cases = near_points(size, away)
    field = variant.field(data)
    for t, x, want, _ in cases:
        error = np.linalg.norm(field.velocity(x, t) - want, axis=1)
        # and differences of points and queries, which are rounded as they are stored
        assert (error <= 1e-5 * np.linalg.norm(want, axis=1) + 1e-7 * np.linalg.norm(data[:30], axis=1)).all(), t
    met = np.digitize(np.concatenate([others for *_, others in cases]), [0.01, 0.1, 0.25, 0.5, 1.0])
    assert set(met) == set(range(6))
