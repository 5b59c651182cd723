"""What the answers are where points have variances or covariances of their own, to 50 digits.

The joint distribution is that of :mod:`oracle` with matrices in place of numbers: ``x_i ~ N(m, S_i)``,
``x_f ~ sum_j C_j N(mu_j, S_j)``, ``x = alpha x_i + beta x_f``. Given the component j the three are
jointly Gaussian, and conditioning on x gives, with ``M_j = alpha^2 S_i + beta^2 S_j`` (inverted as
it stands, in every query's time) and ``r_j = x - alpha m - beta mu_j``,

- ``E[x_i | x, j] = m + alpha S_i M_j^-1 r_j``,   ``Cov(x_i | x, j) = S_i - alpha^2 S_i M_j^-1 S_i``,
- ``E[x_f | x, j] = mu_j + beta S_j M_j^-1 r_j``, ``Cov(x_f | x, j) = S_j - beta^2 S_j M_j^-1 S_j``,
- ``Cov(x_i, x_f | x, j) = -alpha beta S_i M_j^-1 S_j``,

and Bayes' rule the weights. :func:`by_definition` does just that in mpmath, one component at a
time, and takes the score and the Jacobian by numerical differentiation. :class:`Oracle` is the same
in fixed point, for all components at once, with the derivative of a posterior average by the product
rule, ``d E[f] . u = E[f' u] + Cov(f_j, grad logit_j . u)``: fast enough for 300 points in 64
dimensions. The tests compare the two. Nothing is shared with the package: no eigenvectors, no
frame, no choice of gains, no identity between quantities.

At alpha = 0 where some S_j is singular, ``alpha^2`` stands for its limit in M_j: a number so small
that it settles which points are nearest, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from oracle import BITS, CTX, NEGLIGIBLE, ONE, coefficients, dyadic, fixed, fixed_dyadic, mpf, unfixed

# Stands for alpha^2 at alpha = 0 beside singular covariances.
LIMIT = mpf(10) ** -60

VECTORS = ("velocity", "target_mean", "source_mean", "score")
PRODUCTS = ("jvp", "vjp", "target_covariance_product")


def exact(values) -> np.ndarray:
    """Floats in fixed point, without rounding."""
    return fixed_dyadic(*dyadic(values))


def floats(values: np.ndarray) -> np.ndarray:
    """Fixed point to float64; dividing Python integers rounds correctly."""
    values = np.asarray(values, dtype=object)
    return np.array([int(v) / ONE for v in values.ravel()]).reshape(values.shape)


def times(a, b):
    return (a * b) >> BITS


# Matrices are (n, k, k) with k = D, or k = 1 for multiples of the identity; n is 1 where all points share one.


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :, :, None] * b[:, None, :, :]).sum(axis=2) >> BITS


def applied(a: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``a_j v_j``, (n, D)."""
    if a.shape[1] == 1:
        return (a[:, 0] * vectors) >> BITS
    return (a * vectors[:, None, :]).sum(axis=2) >> BITS


def transposed(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, 1, 2)


def traces(a: np.ndarray, d: int) -> np.ndarray:
    return sum(a[:, i, i] for i in range(a.shape[1])) * (d // a.shape[1])


def inverse(a: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of positive definite matrices by Gauss-Jordan elimination, and the logs of their determinants."""
    n, k, _ = a.shape
    identity = np.array([[ONE * (i == j) for j in range(k)] for i in range(k)], dtype=object)
    rows = np.concatenate([a, np.broadcast_to(identity, a.shape)], axis=2)
    determinant = [mpf(1)] * n
    for i in range(k):
        pivot = rows[:, i, i].copy()
        determinant = [v * unfixed(p) for v, p in zip(determinant, pivot, strict=True)]
        rows[:, i] = (rows[:, i] << BITS) // pivot[:, None]
        for j in range(k):
            if j != i:
                rows[:, j] = rows[:, j] - times(rows[:, j, i][:, None], rows[:, i])
    return rows[:, :, k:], np.array([fixed(CTX.log(v)) * (d // k) for v in determinant], dtype=object)


def average(w: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``sum_j w_j values_j``, of values that may be shared by all."""
    w = w.reshape(-1, *(1,) * (values.ndim - 1))
    return (w * values).sum(axis=0) >> BITS


def norms(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(floats(vectors), axis=1)


def largest(matrices: np.ndarray) -> np.ndarray:
    """Spectral norms."""
    if matrices.shape[1] == 1:
        return np.abs(floats(matrices[:, 0, 0]))
    return np.linalg.norm(floats(matrices), 2, axis=(1, 2))


@dataclass
class Answer:
    """The quantities of one query, rounded to float64, by name in ``values``; and what errors in them are measured by.

    ``terms[name]`` is the size of the terms that add up to the quantity, averages of norms under the
    posterior weights. Where a quantity is a covariance, its terms are products of *deviations from
    the average*, plus what is inside the components. ``residuals[name]`` is what a relative error of
    one in x, alpha m and beta mu would change, and where the quantity is a covariance the size of its
    terms as deviations from the *centre of the data*: what there is to subtract where one point has
    all the weight. ``conditions[name]`` is what a relative error of one
    in the covariance matrices would change, in z = M_j^(-1/2) r_j, and with a full source covariance
    in the points as they are seen through its root: eigenvectors are not exact numbers, however
    exact the matrix. It is zero without matrices. ``weights`` have the last one only.
    """

    values: dict = field(default_factory=dict)
    terms: dict = field(default_factory=dict)
    residuals: dict = field(default_factory=dict)
    conditions: dict = field(default_factory=dict)


class Oracle:
    """The answers for one data set and model; call it with one query, a time and a direction u for the products."""

    def __init__(
        self,
        data,
        *,
        weights=None,
        variance=0.0,
        covariance=None,
        source_mean=0.0,
        source_variance=1.0,
        source_covariance=None,
        schedule=("linear",),
    ):
        data = np.asarray(data, dtype=np.float64)
        self.n, self.d = data.shape
        self.schedule = schedule
        self.points = exact(data)
        self.centre = self.points.sum(axis=0) // self.n
        self.source = exact(np.broadcast_to(np.asarray(source_mean, dtype=np.float64), (self.d,)))
        mass = np.ones(self.n) if weights is None else np.asarray(weights, dtype=np.float64)
        numbers = [mpf(float(c)) for c in mass]
        total = CTX.fsum(numbers)
        self.positive = mass > 0
        self.log_mass = np.array([fixed(CTX.log(c / total)) if c else 0 for c in numbers], dtype=object)
        size = 1 if covariance is None and source_covariance is None else self.d

        def matrices(full, numbers):
            if full is None:
                full = np.atleast_1d(np.asarray(numbers, dtype=np.float64))[:, None, None] * np.eye(size)
            full = np.asarray(full, dtype=np.float64)
            return full[None] if full.ndim == 2 else full

        own_source, own_target = matrices(source_covariance, source_variance), matrices(covariance, variance)
        self.source_spread, self.target_spread = exact(own_source), exact(own_target)
        self.matrices = covariance is not None or source_covariance is not None
        self.condition = float(np.linalg.cond(own_source[0]))
        self.largest = np.linalg.norm(own_target, 2, axis=(1, 2))
        self.singular = np.broadcast_to(np.linalg.eigvalsh(own_target)[:, 0] <= 1e-13 * self.largest, self.n)
        self._gains = lru_cache(maxsize=4)(self._gains_at)

    def is_singular(self, t) -> bool:
        """Whether some component has no density at this time."""
        return coefficients(self.schedule, float(t)).alpha == 0 and bool(self.singular.any())

    def _gains_at(self, t: float):
        c = coefficients(self.schedule, t)
        d, si, sf = self.d, self.source_spread, self.target_spread
        a2, b2 = fixed(c.alpha**2), fixed(c.beta**2)
        in_marginal = fixed(LIMIT) if c.alpha == 0 and self.singular.any() else a2
        inverted, log_det = inverse(times(in_marginal, si) + times(b2, sf), d)
        si_m, sf_m = product(si, inverted), product(sf, inverted)
        cov_i = si - times(a2, product(si_m, si))
        cov_f = sf - times(b2, product(sf_m, sf))
        cov_if = -times(fixed(c.alpha * c.beta), product(si_m, sf))
        gains = {
            "source_mean": times(fixed(c.alpha), si_m),
            "target_mean": times(fixed(c.beta), sf_m),
            "velocity": times(fixed(c.half_square), si_m) + times(fixed(c.beta * c.dbeta), sf_m),
        }
        variance = None
        if CTX.isfinite(c.dalpha):
            variance = times(fixed(c.dalpha**2), traces(cov_i, d)) + times(fixed(c.dbeta**2), traces(cov_f, d))
            variance = variance + 2 * times(fixed(c.dalpha * c.dbeta), traces(cov_if, d))
        # How much larger a relative error in S_j is in M_j^-1
        loss = np.zeros(len(inverted))
        if self.matrices:
            loss = 1.0 + self.condition * float(c.beta**2) * self.largest * largest(inverted)
        rates = abs(float(c.half_square)) * largest(si_m) + abs(float(c.beta * c.dbeta)) * largest(sf_m)
        return c, inverted, log_det, gains, variance, cov_f, loss, rates

    def __call__(self, x, t, u=None) -> Answer:
        d = self.d
        x = np.asarray(x, dtype=np.float64)
        assert x.shape == (d,), x.shape
        c, inverted, log_det, gains, variance, cov_f, loss, rates = self._gains(float(t))
        alpha, beta = fixed(c.alpha), fixed(c.beta)
        xs = exact(x)
        residual = (xs - times(alpha, self.source))[None] - times(beta, self.points)
        solved = applied(inverted, residual)
        squares = (residual * solved).sum(axis=1) >> BITS
        logits = self.log_mass - ((log_det + squares) >> 1)
        top = max(logits[self.positive])
        keep = np.flatnonzero(self.positive & (logits > top - NEGLIGIBLE * ONE).astype(bool))
        joint = [CTX.exp(unfixed(int(logits[j] - top))) for j in keep]
        evidence = CTX.fsum(joint)
        log_evidence = CTX.log(evidence)
        p = [v / evidence for v in joint]
        w = np.array([fixed(v) for v in p], dtype=object)

        def some(values):
            return values[keep] if len(values) == self.n else values

        points, residual, solved = self.points[keep], residual[keep], solved[keep]
        squares = floats(squares[keep])
        gains = {name: some(gain) for name, gain in gains.items()}
        inverted, cov_f, loss, rates = some(inverted), some(cov_f), some(loss), some(rates)
        moved = {name: applied(gain, residual) for name, gain in gains.items()}
        own = {
            "velocity": times(fixed(c.dbeta), points) + moved["velocity"],
            "target_mean": points + moved["target_mean"],
            "source_mean": self.source + moved["source_mean"],
            "score": -solved,
        }
        if self.source.any():
            assert CTX.isfinite(c.dalpha), "the velocity is unbounded"
            own["velocity"] = own["velocity"] + times(fixed(c.dalpha), self.source)
        mean = {name: average(w, values) for name, values in own.items()}
        values = {name: floats(v) for name, v in mean.items()}
        weights = np.zeros(self.n)
        weights[keep] = floats(w)
        constant = mpf(d) / 2 * CTX.log(2 * CTX.pi)
        values["log_density"] = float(unfixed(int(top)) + log_evidence - constant)
        best = int(np.argmax(w))
        if self.is_singular(t) and self.singular[keep[best]]:
            # On the points (lines, planes) of components that have no density, or off those of all components
            values["log_density"] = np.inf if squares[best] < 1e30 else -np.inf
            if values["log_density"] < 0.0:
                # The velocity is what it is with a little variance added (Fan 9)
                source = 0 if not self.source.any() else times(fixed(c.dalpha), self.source)
                values["velocity"] = floats(source + times(fixed(c.dbeta / c.beta), xs))
        values["weights"] = weights
        values["entropy"] = float(
            -CTX.fsum(v * (unfixed(int(logits[j] - top)) - log_evidence) for j, v in zip(keep, p, strict=True))
        )
        values["effective_sample_size"] = float(1 / CTX.fsum(v * v for v in p))
        beside = {name: own[name] - mean[name] for name in own}
        if variance is not None:
            variance = some(variance)
            total = average(w, (beside["velocity"] ** 2).sum(axis=1) >> BITS) + average(w, variance)
            values["velocity_variance"] = floats(total)[()]
        rate = gains["velocity"]
        trace = average(w, traces(rate, d))
        across = (beside["velocity"] * beside["score"]).sum(axis=1) >> BITS
        values["divergence"] = floats(trace + average(w, across))[()]
        if u is not None:
            direction = exact(np.asarray(u, dtype=np.float64))
            along = {name: ((beside[name] * direction).sum(axis=1) >> BITS)[:, None] for name in beside}
            pairs = {
                "jvp": (rate, "velocity", "score"),
                "vjp": (transposed(rate), "score", "velocity"),
                "target_covariance_product": (cov_f, "target_mean", "target_mean"),
            }
            inside = {name: average(w, applied(m, direction[None])) for name, (m, _, _) in pairs.items()}
            for name, (_, f, g) in pairs.items():
                values[name] = floats(inside[name] + average(w, times(beside[f], along[g])))

        # What errors are measured by; float64 will do.
        w = floats(w)
        parts = {
            "velocity": (times(fixed(c.dbeta), points), moved["velocity"]),
            "target_mean": (points, moved["target_mean"]),
            "source_mean": (self.source[None], moved["source_mean"]),
            "score": (np.zeros_like(self.source[None]), solved),
        }
        source = norms(self.source[None]) if self.source.any() else np.zeros(1)
        factor = {name: largest(gain) for name, gain in gains.items()}
        factor["velocity"], factor["score"] = rates, largest(inverted)

        def mean_of(numbers):
            return float(np.sum(w * numbers))

        spread = np.linalg.norm(x) + abs(float(c.alpha)) * source + abs(float(c.beta)) * norms(points)
        length = norms(residual)
        apart = {name: norms(v) for name, v in beside.items()}
        # The same with the point and the residual taken apart, which is how it may have been computed
        wide = {name: sum(norms(f - average(exact(w), f)) for f in pair) for name, pair in parts.items()}
        full = {name: norms(parts[name][0]) + factor[name] * length for name in VECTORS}
        centre = {"velocity": times(fixed(c.dbeta), self.centre), "target_mean": self.centre}
        about = {name: norms(parts[name][0] - centre.get(name, 0)) + factor[name] * length for name in VECTORS}
        logit_loss = loss * (squares + d) / 2
        if self.condition > 1.0:
            logit_loss = logit_loss + np.sqrt(self.condition) * norms(solved) * spread
        answer = Answer(values)
        for name in VECTORS:
            answer.terms[name] = mean_of(full[name])
            answer.residuals[name] = mean_of(factor[name] * spread)
            answer.conditions[name] = mean_of(loss * factor[name] * length + logit_loss * apart[name])
        if self.source.any():
            answer.terms["velocity"] += float(abs(c.dalpha) * source[0])
        answer.conditions["weights"] = answer.conditions["log_density"] = mean_of(logit_loss)
        log_w = np.log(np.maximum(w, 1e-300))
        answer.conditions["entropy"] = mean_of(logit_loss * (1 + abs(log_w)))
        answer.conditions["effective_sample_size"] = mean_of(logit_loss) * values["effective_sample_size"]

        def covariance(name, f, g, inside, size=1.0):
            """Sizes for `inside_j + Cov(f_j, g_j)`."""
            answer.terms[name] = size * mean_of(inside + wide[f] * wide[g])
            moving = mean_of(spread * (wide[f] * factor[g] + wide[g] * factor[f]))
            answer.residuals[name] = size * (moving + mean_of(about[f] * about[g]))
            moving = loss * (inside + length * (factor[f] * wide[g] + factor[g] * wide[f]))
            answer.conditions[name] = size * mean_of(moving + logit_loss * (inside + apart[f] * apart[g]))

        # What is inside a component is the difference of S_j and beta^2 S_j M_j^-1 S_j, or of the smaller
        # (alpha / beta)^2 S_i and its like, and is zero only as those cancel
        a, b, widest = float(c.alpha), float(c.beta), largest(self.source_spread)[0]
        inside_f = min(a * a * widest / (b * b) if b else np.inf, self.largest.max())
        if variance is not None:
            inside_v = min(widest / (b * b) if b else np.inf, self.largest.max() / (a * a) if a else np.inf)
            turn = (a * float(c.dbeta) - b * float(c.dalpha)) ** 2
            covariance("velocity_variance", "velocity", "velocity", floats(variance))
            answer.residuals["velocity_variance"] += d * turn * inside_v
        covariance("divergence", "velocity", "score", d * rates)
        if u is not None:
            size = float(np.linalg.norm(np.asarray(u, dtype=np.float64)))
            covariance("jvp", "velocity", "score", rates, size)
            covariance("vjp", "score", "velocity", rates, size)
            covariance("target_covariance_product", "target_mean", "target_mean", largest(cov_f), size)
            answer.terms["target_covariance_product"] += size * inside_f
        return answer


def by_definition(
    x,
    t,
    u,
    data,
    *,
    weights=None,
    variance=0.0,
    covariance=None,
    source_mean=0.0,
    source_variance=1.0,
    source_covariance=None,
    schedule=("linear",),
) -> dict:
    """All quantities at one query, in mpmath, one component at a time; derivatives by central differences."""
    c = coefficients(schedule, t)
    n, d = np.shape(data)
    weights = np.ones(n) if weights is None else weights

    def matrix(values):
        return CTX.matrix([[mpf(float(v)) for v in row] for row in values])

    def column(values):
        return CTX.matrix([mpf(float(v)) for v in values])

    def target(j):
        if covariance is None:
            return matrix(float(np.broadcast_to(variance, (n,))[j]) * np.eye(d))
        return matrix(np.broadcast_to(covariance, (n, d, d))[j])

    si = matrix(source_variance * np.eye(d) if source_covariance is None else source_covariance)
    m = column(np.broadcast_to(source_mean, (d,)))
    total = CTX.fsum(mpf(float(v)) for v in weights)
    components = []
    for j in range(n):
        if weights[j]:
            sf = target(j)
            spread = c.alpha**2 * si + c.beta**2 * sf
            inverted = CTX.inverse(spread)
            cov_i, cov_f = si - c.alpha**2 * si * inverted * si, sf - c.beta**2 * sf * inverted * sf
            cov_if = -c.alpha * c.beta * si * inverted * sf
            cov_v = c.dalpha**2 * cov_i + c.dbeta**2 * cov_f + c.dalpha * c.dbeta * (cov_if + cov_if.T)
            scale = mpf(float(weights[j])) / total / CTX.sqrt(CTX.det(2 * CTX.pi * spread))
            components.append((column(data[j]), sf, inverted, scale, cov_v, cov_f))

    def posterior(x):
        """Density, weights, and conditional means of source and target by component."""
        joint, sources, targets = [], [], []
        for mu, sf, inverted, scale, _, _ in components:
            r = x - c.alpha * m - c.beta * mu
            joint.append(scale * CTX.exp(-(r.T * inverted * r)[0] / 2))
            sources.append(m + c.alpha * si * inverted * r)
            targets.append(mu + c.beta * sf * inverted * r)
        density = CTX.fsum(joint)
        return density, [v / density for v in joint], sources, targets

    def mean(w, values):
        return sum((p * v for p, v in zip(w[1:], values[1:], strict=True)), w[0] * values[0])

    def velocity(x):
        _, w, sources, targets = posterior(x)
        return c.dalpha * mean(w, sources) + c.dbeta * mean(w, targets)

    def log_density(x):
        return CTX.log(posterior(x)[0])

    def derivative(f, x, direction):
        step = mpf(10) ** -15
        return (f(x + step * direction) - f(x - step * direction)) / (2 * step)

    x, u = column(x), column(u)
    density, w, sources, targets = posterior(x)
    source, target_mean = mean(w, sources), mean(w, targets)
    v = c.dalpha * source + c.dbeta * target_mean
    second = mean(w, [p[4] for p in components])
    cov_f = mean(w, [p[5] for p in components])
    for p, a, b in zip(w, sources, targets, strict=True):
        own = c.dalpha * a + c.dbeta * b - v
        second = second + p * own * own.T
        cov_f = cov_f + p * (b - target_mean) * (b - target_mean).T
    axes = [CTX.matrix([mpf(int(i == k)) for i in range(d)]) for k in range(d)]
    jacobian = [derivative(velocity, x, axis) for axis in axes]  # columns
    exact_weights = np.zeros(n)
    exact_weights[np.flatnonzero(weights)] = [float(p) for p in w]

    def array(values):
        return np.array([float(value) for value in values])

    return {
        "velocity": array(v),
        "source_mean": array(source),
        "target_mean": array(target_mean),
        "score": np.array([float(derivative(log_density, x, axis)) for axis in axes]),
        "log_density": float(CTX.log(density)),
        "weights": exact_weights,
        "entropy": float(-CTX.fsum(p * CTX.log(p) for p in w if p)),
        "effective_sample_size": float(1 / CTX.fsum(p * p for p in w)),
        "velocity_variance": float(CTX.fsum(second[k, k] for k in range(d))),
        "divergence": float(CTX.fsum(jacobian[k][k] for k in range(d))),
        "jvp": array(derivative(velocity, x, u)),
        "vjp": array([(u.T * jacobian[k])[0] for k in range(d)]),
        "target_covariance_product": array(cov_f * u),
    }
