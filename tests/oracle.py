"""What the answers are, to 50 digits, from the definition.

The model is a joint distribution: a source point ``x_i ~ N(m, s_i I)``, a target point
``x_f ~ sum_j C_j N(mu_j, s_f I)``, and what is observed, ``x = alpha x_i + beta x_f``. Given the
component j everything is jointly Gaussian, so Bayes' rule and Gaussian conditioning give

- the marginal density of x:    ``N(x; alpha m + beta mu_j, (alpha^2 s_i + beta^2 s_f) I)``,
- the posterior weights:        ``w_j = C_j density_j / sum_k C_k density_k``,
- ``E[x_i | x, j] = m    + Cov(x_i, x | j) Var(x | j)^-1 (x - E[x | j])``, ``Cov = alpha s_i``,
- ``E[x_f | x, j] = mu_j + Cov(x_f, x | j) Var(x | j)^-1 (x - E[x | j])``, ``Cov = beta s_f``,

and every quantity is an average of these under w. Nothing here is shared with the package.

Inputs are binary floating-point numbers, which are dyadic rationals. The squared distances are
therefore expanded into inner products that are computed *exactly*, in Python integers; only the
final combination with alpha and beta is rounded, to 50 digits. That is also what makes an oracle
for a thousand points in 784 dimensions affordable. :func:`by_components` is the same definition
without the trick, one component at a time, with the score by numerical differentiation; the tests
compare the two.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import mpmath
import numpy as np

DIGITS = 50
CTX = mpmath.MPContext()  # a context of its own: other users of mpmath cannot change its precision
CTX.dps = DIGITS
mpf = CTX.mpf

# Fixed-point numbers are Python integers with this many bits after the point: absolute errors of
# 1e-135, beside residuals that are 1e-25 at the smallest here.
BITS = 448
ONE = 1 << BITS
# exp(-200) is 1e-87: far below what any sum here can notice.
NEGLIGIBLE = 200


# ------------------------------------------------------------------------------------------------
# Schedules


@dataclass(frozen=True)
class Coefficients:
    """alpha, beta and derivatives at one time; ``half_square`` is ``(alpha^2)' / 2``.

    The last one stays finite where alpha' does not (alpha = sqrt(1 - t^2) at t = 1) and is then
    what the product ``alpha alpha'`` tends to.
    """

    alpha: object
    beta: object
    dalpha: object
    dbeta: object
    half_square: object


def coefficients(schedule: tuple, t) -> Coefficients:
    """``schedule`` is a tuple of a name and its parameters; t is a float, taken exactly."""
    name, *parameters = schedule
    t = mpf(t)
    p = [mpf(v) for v in parameters]
    half_square = None
    if name == "linear":
        alpha, beta, dalpha, dbeta = 1 - t, t, mpf(-1), mpf(1)
    elif name == "cosine":
        # cospi and sinpi are exact at the ends, unlike cos(pi / 2).
        half_pi = CTX.pi / 2
        alpha, beta = CTX.cospi(t / 2), CTX.sinpi(t / 2)
        dalpha, dbeta = -half_pi * beta, half_pi * alpha
    elif name == "polynomial":
        n = p[0]
        beta = t**n
        dbeta = n * t ** (n - 1)
        alpha, dalpha = 1 - beta, -dbeta
    elif name == "linear_vp":
        beta, dbeta = t, mpf(1)
        alpha = CTX.sqrt(1 - t * t)
        half_square = -t
        dalpha = half_square / alpha if alpha else mpf("-inf")
    elif name == "vp":
        low, high = p
        total = (1 - t) ** 2 * (high - low) / 2 + (1 - t) * low
        dtotal = -(1 - t) * (high - low) - low
        beta = CTX.exp(-total / 2)
        dbeta = -dtotal / 2 * beta
        alpha = CTX.sqrt(-CTX.expm1(-total))
        half_square = dtotal * CTX.exp(-total) / 2
        dalpha = half_square / alpha if alpha else mpf("-inf")
    elif name == "ve":
        low, high = p
        beta, dbeta = mpf(1), mpf(0)
        alpha = low**t * high ** (1 - t)
        dalpha = alpha * CTX.log(low / high)
    elif name == "optimal_transport":
        alpha, dalpha = 1 - (1 - p[0]) * t, p[0] - 1
        beta, dbeta = t, mpf(1)
    else:
        raise ValueError(f"the oracle knows no schedule {name!r}")
    if half_square is None:
        half_square = alpha * dalpha
    return Coefficients(alpha, beta, dalpha, dbeta, half_square)


# ------------------------------------------------------------------------------------------------
# Exact numbers


def dyadic(values) -> tuple[np.ndarray, int]:
    """Integers (an object array) and an exponent e with ``values == integers * 2**-e`` exactly."""
    values = np.asarray(values, dtype=np.float64)
    mantissa, exponent = np.frexp(values)
    mantissa = (mantissa * 2.0**53).astype(np.int64).ravel()
    exponent = exponent.ravel().astype(np.int64) - 53
    nonzero = mantissa != 0
    if not nonzero.any():
        return np.array([0] * values.size, dtype=object).reshape(values.shape), 0
    # Trailing zero bits would only make the integers longer.
    trailing = np.zeros_like(mantissa)
    low_bit = mantissa & -mantissa
    trailing[nonzero] = np.log2(low_bit[nonzero].astype(np.float64)).astype(np.int64)
    mantissa = mantissa >> trailing
    exponent = np.where(nonzero, exponent + trailing, 0)
    e = int(max(0, -exponent[nonzero].min()))
    integers = [m << s for m, s in zip(mantissa.tolist(), (exponent + e).tolist(), strict=True)]
    return np.array(integers, dtype=object).reshape(values.shape), e


def fixed(value) -> int:
    """An mpmath number in fixed point."""
    return int(CTX.floor(CTX.ldexp(value, BITS)))


def unfixed(value: int):
    return CTX.ldexp(mpf(value), -BITS)


def fixed_dyadic(integers, e: int):
    """``integers * 2**-e`` (an array or one) in fixed point, exactly."""
    assert e <= BITS, "an input with more fractional bits than fixed point holds"
    return integers << (BITS - e)


def times(a, b):
    """The product of fixed-point numbers or arrays of them."""
    return (a * b) >> BITS


def norm(vector: np.ndarray):
    return CTX.ldexp(CTX.sqrt(mpf(int(vector.dot(vector)))), -BITS)


def rounded(vector: np.ndarray) -> np.ndarray:
    """Fixed point to float64; dividing Python integers rounds correctly."""
    return np.array([int(v) / ONE for v in vector])


# ------------------------------------------------------------------------------------------------
# The oracle


@dataclass
class Answer:
    """All quantities of one query, rounded to float64, and what cancellations in them cancel from.

    ``terms[name]`` is the sum of the norms of the terms that add up to the quantity: of m, the
    average data point and the average residual, each times its factor. ``residuals[name]`` is the
    sum of the norms of ``x``, ``alpha m`` and ``beta E[mu|x]``, times the factor that their
    difference enters with.
    """

    velocity: np.ndarray
    target_mean: np.ndarray
    source_mean: np.ndarray
    score: np.ndarray | None
    log_density: float
    weights: np.ndarray
    entropy: float
    effective_sample_size: float
    terms: dict = field(default_factory=dict)
    residuals: dict = field(default_factory=dict)


class Oracle:
    """The exact answers for one data set; call it with one query and one time."""

    def __init__(
        self,
        data,
        *,
        weights=None,
        variance=0.0,
        source_mean=0.0,
        source_variance=1.0,
        schedule=("linear",),
    ):
        data = np.asarray(data)
        self.n, self.d = data.shape
        self.schedule = schedule
        self.variance = mpf(float(variance))
        self.source_variance = mpf(float(source_variance))
        mass = np.ones(self.n) if weights is None else np.asarray(weights, dtype=np.float64)
        exact = [mpf(float(c)) for c in mass]
        total = CTX.fsum(exact)
        self.mass = [c / total for c in exact]  # normalised C_j
        self.positive = mass > 0
        self.log_mass = np.array([fixed(CTX.log(c)) if c else 0 for c in self.mass], dtype=object)
        source = np.broadcast_to(np.asarray(source_mean, dtype=np.float64), (self.d,))
        self._points, self._points_e = dyadic(data)
        self._source, self._source_e = dyadic(source)
        self.source = fixed_dyadic(self._source, self._source_e)
        squares = (self._points * self._points).sum(axis=1)
        self._point_square = fixed_dyadic(squares, 2 * self._points_e)
        self._point_source = fixed_dyadic(self._points.dot(self._source), self._points_e + self._source_e)

    def _squared_distances(self, x, alpha, beta):
        """``|x - alpha m - beta mu_j|^2`` for every j, in fixed point: exact inner products."""
        x, xe = dyadic(x)
        pe, se = self._points_e, self._source_e
        x_x = fixed_dyadic(int(x.dot(x)), 2 * xe)
        x_s = fixed_dyadic(int(x.dot(self._source)), xe + se)
        s_s = fixed_dyadic(int(self._source.dot(self._source)), 2 * se)
        x_p = fixed_dyadic(self._points.dot(x), xe + pe)
        a, b = fixed(alpha), fixed(beta)
        common = x_x - 2 * times(a, x_s) + times(times(a, a), s_s)
        cross = x_p - times(a, self._point_source)
        return common - 2 * times(b, cross) + times(times(b, b), self._point_square)

    def _average_point(self, w):
        """``sum_j w_j mu_j`` in fixed point; w is fixed point too."""
        keep = np.flatnonzero(w != 0)
        return (self._points[keep].T.dot(w[keep])) >> self._points_e

    def __call__(self, x, t) -> Answer:
        x = np.asarray(x, dtype=np.float64)
        assert x.shape == (self.d,), x.shape
        c = coefficients(self.schedule, float(t))
        marginal = c.alpha**2 * self.source_variance + c.beta**2 * self.variance
        squares = self._squared_distances(x, c.alpha, c.beta)
        if marginal == 0:
            return self._at_the_data(x, c, squares)

        # Bayes' rule. The normalising constant of the Gaussian is the same for every component.
        constant = mpf(self.d) / 2 * CTX.log(2 * CTX.pi * marginal)
        per_square = fixed(1 / (2 * marginal))
        logits = self.log_mass - times(per_square, squares)
        logits[~self.positive] = logits[self.positive].min() - ONE
        top = int(logits[self.positive].max())
        joint = {
            int(j): CTX.exp(unfixed(logits[j] - top))
            for j in np.flatnonzero((logits > top - NEGLIGIBLE * ONE) & self.positive)
        }
        evidence = CTX.fsum(joint.values())
        log_evidence = CTX.log(evidence)
        some = {j: v / evidence for j, v in joint.items()}
        entropy = -CTX.fsum(p * (unfixed(logits[j] - top) - log_evidence) for j, p in some.items())
        w = np.array([0] * self.n, dtype=object)
        for j, p in some.items():
            w[j] = fixed(p)

        # Conditional means are affine in mu_j, so their averages need the average point only.
        point = self._average_point(w)
        xs = fixed_dyadic(*dyadic(x))
        alpha_source = times(fixed(c.alpha), self.source)
        beta_point = times(fixed(c.beta), point)
        residual = xs - alpha_source - beta_point
        gain_i = c.alpha * self.source_variance / marginal
        gain_f = c.beta * self.variance / marginal
        source_mean = self.source + times(fixed(gain_i), residual)
        target_mean = point + times(fixed(gain_f), residual)
        score = times(fixed(-1 / marginal), residual)
        if CTX.isinf(c.dalpha):
            # alpha' alpha stays finite; alpha' m does not, and is asked for only with m = 0.
            assert not self.source.any()
            rate_i = c.half_square * self.source_variance / marginal
            source_term = times(fixed(rate_i), residual)
            source_size = mpf(0)
        else:
            rate_i = c.dalpha * gain_i
            source_term = times(fixed(c.dalpha), source_mean)
            source_size = abs(c.dalpha) * norm(self.source)
        target_term = times(fixed(c.dbeta), target_mean)
        velocity = source_term + target_term

        spread = norm(xs) + norm(alpha_source) + norm(beta_point)
        size = norm(residual)
        rate_f = c.dbeta * gain_f
        rates = abs(rate_i) + abs(rate_f)
        terms = {
            "velocity": source_size + abs(c.dbeta) * norm(point) + rates * size,
            "target_mean": norm(point) + gain_f * size,
            "source_mean": norm(self.source) + gain_i * size,
            "score": size / marginal,
        }
        residuals = {
            "velocity": rates * spread,
            "target_mean": gain_f * spread,
            "source_mean": gain_i * spread,
            "score": spread / marginal,
        }
        return Answer(
            velocity=rounded(velocity),
            target_mean=rounded(target_mean),
            source_mean=rounded(source_mean),
            score=rounded(score),
            log_density=float(unfixed(top) + log_evidence - constant),
            weights=rounded(w),
            entropy=float(entropy),
            effective_sample_size=float(1 / CTX.fsum(v * v for v in some.values())),
            terms={k: float(v) for k, v in terms.items()},
            residuals={k: float(v) for k, v in residuals.items()},
        )

    def _at_the_data(self, x, c, squares):
        """The limit at alpha = 0, s_f = 0: x *is* beta times a data point, the nearest ones."""
        assert c.beta == 1, "squared distances are exact, and ties decidable, at beta = 1 only"
        nearest = squares[self.positive].min()
        ties = np.flatnonzero((squares == nearest) & self.positive)
        total = CTX.fsum(self.mass[j] for j in ties)
        some = {int(j): self.mass[j] / total for j in ties}
        w = np.array([0] * self.n, dtype=object)
        for j, p in some.items():
            w[j] = fixed(p)
        point = self._average_point(w)
        xs = fixed_dyadic(*dyadic(x))
        # m = 0 makes the first term 0 even where alpha' is infinite.
        zero = not self.source.any()
        source_term = self.source if zero else times(fixed(c.dalpha), self.source)
        target_term = times(fixed(c.dbeta), xs)
        terms = {
            "velocity": norm(source_term) + norm(target_term),
            "target_mean": norm(point),
            "source_mean": norm(self.source),
        }
        return Answer(
            velocity=rounded(source_term + target_term),
            target_mean=rounded(point),
            source_mean=rounded(self.source),
            score=None,
            log_density=float("inf") if nearest == 0 else float("-inf"),
            weights=rounded(w),
            entropy=float(-CTX.fsum(p * CTX.log(p) for p in some.values())),
            effective_sample_size=float(1 / CTX.fsum(p * p for p in some.values())),
            terms={k: float(v) for k, v in terms.items()},
            residuals=dict.fromkeys(terms, 0.0),
        )


def _vector(values):
    return np.array([float(v) for v in values])


# ------------------------------------------------------------------------------------------------
# Answers that another process has found


# What answers follow from, beside their inputs
SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("oracle*.py")))


def remembered(compute, *inputs):
    """``compute()``, which must follow from ``inputs``. It costs a hundred times what the package takes, so the
    processes that test one change share it: the environment's FASTFLOW_ORACLE_CACHE names a folder for that.
    """
    folder = os.environ.get("FASTFLOW_ORACLE_CACHE")
    if not folder:
        return compute()
    file = Path(folder, hashlib.sha256(SOURCES + pickle.dumps((mpmath.__version__, inputs))).hexdigest())
    if file.exists():
        return pickle.loads(file.read_bytes())
    result = compute()
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as whole:
        pickle.dump(result, whole)
    os.replace(whole.name, file)  # at once: another process sees all of it or nothing
    return result


# ------------------------------------------------------------------------------------------------
# The definition again, without any trick, for small cases


def log_density_by_components(x, t, data, weights, variance, source_mean, source_variance, schedule):
    """log of ``sum_j C_j N(x; alpha m + beta mu_j, (alpha^2 s_i + beta^2 s_f) I)``, x in mp."""
    c = coefficients(schedule, t)
    spread = c.alpha**2 * mpf(source_variance) + c.beta**2 * mpf(variance)
    total = CTX.fsum(mpf(float(v)) for v in weights)
    density = mpf(0)
    for mass, row in zip(weights, data, strict=True):
        term = mpf(float(mass)) / total
        for k, value in enumerate(row):
            mean = c.alpha * mpf(float(source_mean[k])) + c.beta * mpf(float(value))
            term *= CTX.exp(-((x[k] - mean) ** 2) / (2 * spread)) / CTX.sqrt(2 * CTX.pi * spread)
        density += term
    return CTX.log(density)


def by_components(x, t, data, weights, variance, source_mean, source_variance, schedule):
    """Velocity, means, score and log density, one component and one coordinate at a time.

    The conditional means solve the 2 x 2 (per coordinate) Gaussian conditioning of (x_i, x_f) on
    ``alpha x_i + beta x_f = x`` as a weighted least squares problem would; the score is the
    numerical derivative of the log density.
    """
    c = coefficients(schedule, t)
    s_i, s_f = mpf(source_variance), mpf(variance)
    x = [mpf(float(v)) for v in x]
    arguments = (data, weights, variance, source_mean, source_variance, schedule)
    log_p = log_density_by_components(x, t, *arguments)
    d = len(x)
    source = [mpf(0)] * d
    target = [mpf(0)] * d
    for j, row in enumerate(data):
        if not weights[j]:
            continue
        one = log_density_by_components(x, t, data[j : j + 1], [1.0], *arguments[2:])
        mass = mpf(float(weights[j])) / CTX.fsum(mpf(float(v)) for v in weights)
        w = mass * CTX.exp(one - log_p)
        for k, value in enumerate(row):
            m, mu = mpf(float(source_mean[k])), mpf(float(value))
            # Minimise (a - m)^2 / s_i + (b - mu)^2 / s_f subject to alpha a + beta b = x.
            multiplier = (x[k] - c.alpha * m - c.beta * mu) / (c.alpha**2 * s_i + c.beta**2 * s_f)
            source[k] += w * (m + c.alpha * s_i * multiplier)
            target[k] += w * (mu + c.beta * s_f * multiplier)
    step = mpf(10) ** (-DIGITS // 3)
    score = []
    for k in range(d):
        up = [v + step * (i == k) for i, v in enumerate(x)]
        down = [v - step * (i == k) for i, v in enumerate(x)]
        difference = log_density_by_components(up, t, *arguments) - log_density_by_components(down, t, *arguments)
        score.append(difference / (2 * step))
    velocity = [c.dalpha * a + c.dbeta * b for a, b in zip(source, target, strict=True)]
    return {
        "velocity": _vector(velocity),
        "source_mean": _vector(source),
        "target_mean": _vector(target),
        "score": _vector(score),
        "log_density": float(log_p),
    }
