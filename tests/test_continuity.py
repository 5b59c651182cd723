"""The continuity equation, dp/dt = -div(p v), which ties velocity, density and score together.

Divided by p it reads ``d log p/dt + div v + v . grad log p = 0``, a sum of three terms of moderate
size wherever p itself under- or overflows. The derivatives are central differences of sixth order:
their truncation error is about ``(step / scale)^6 / 140``, where the smallest scale on which
anything varies here (the bandwidth sqrt(D), or the time in which the schedule changes) is above
0.03, so below 1e-11; rounding adds ``2e-16 |log p| / step``, below 1e-11 too. The tolerance of 1e-9,
relative to the sum of the three terms' sizes, leaves room for the factors in front.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from test_models import MODELS

import fastflow as ff

STEP = 1e-3
OFFSETS = np.array([-3, -2, -1, 1, 2, 3])
FACTORS = np.array([-1, 9, -45, 45, -9, 1]) / (60 * STEP)
TOLERANCE = 1e-9

SCHEDULES = (
    ff.schedules.Linear(),
    ff.schedules.Cosine(),
    ff.schedules.Polynomial(2),
    ff.schedules.Polynomial(3),
    ff.schedules.LinearVP(),
    ff.schedules.VP(beta_min=0.1, beta_max=20.0),
    ff.schedules.VE(0.05, 5.0),
    ff.schedules.OptimalTransport(0.01),
)


def terms(field, x: np.ndarray, t: float):
    """``d log p/dt``, ``div v`` and ``grad log p`` by differences; v and score as given."""
    count, d = x.shape
    later = np.repeat(t + STEP * OFFSETS, count)
    log_p = field.log_density(np.tile(x, (6, 1)), later).reshape(6, count)
    rate = FACTORS @ log_p
    divergence = np.zeros(count)
    gradient = np.empty_like(x)
    for k in range(d):
        moved = np.repeat(x[None], 6, axis=0)
        moved[:, :, k] += STEP * OFFSETS[:, None]
        got = field.evaluate(moved.reshape(-1, d), t, quantities=("velocity", "log_density"))
        divergence += FACTORS @ got["velocity"][:, k].reshape(6, count)
        gradient[:, k] = FACTORS @ got["log_density"].reshape(6, count)
    at = field.evaluate(x, t, quantities=("velocity", "score"))
    return rate, divergence, at["velocity"], at["score"], gradient


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("smooth", [False, True], ids=["points", "smoothed"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_continuity(variant, schedule, smooth, d):
    rng = np.random.default_rng(d)
    n = 7
    data = rng.standard_normal((n, d))
    field = variant.field(
        data,
        weights=rng.exponential(size=n),
        variance=0.05 if smooth else 0.0,
        source_mean=rng.standard_normal(d),
        source_variance=1.7,
        schedule=schedule,
    )
    check(field, data, rng, (0.1, 0.45, 0.8))


def check(field, data, rng, times):
    """The equation holds at some queries and times."""
    for t in times:
        c = field.schedule(t)
        x = c.alpha * 1.3 * rng.standard_normal((6, data.shape[1])) + c.beta * data[:6]
        rate, divergence, velocity, score, gradient = terms(field, x, t)
        transport = (velocity * score).sum(axis=1)
        size = np.abs(rate) + np.abs(divergence) + np.abs(velocity * score).sum(axis=1)
        worst = np.max(np.abs(rate + divergence + transport) / size)
        assert worst <= TOLERANCE, (t, worst)
        # With the package's own divergence, which is no difference, too
        worst = np.max(np.abs(rate + field.divergence(x, t) + transport) / size)
        assert worst <= TOLERANCE, (t, worst)
        # With the score taken for grad log p above, it has to be that.
        gap = np.abs(score - gradient).max() / (1 + np.abs(score).max())
        assert gap <= TOLERANCE, (t, gap)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("model", MODELS)
def test_continuity_of_models(variant, model, schedule):
    """Variances and covariances of each point, and of the source. The narrow ones are left out: as wide as a step."""
    rng = np.random.default_rng(3)
    n, d = 7, 2 + (MODELS[model](rng, 1, 2).get("covariance") is None)
    data, options = rng.standard_normal((n, d)), MODELS[model](rng, n, d)
    if model.startswith("wide"):
        options["variance"] = np.where(options["variance"] > 0.0, np.maximum(options["variance"], 1e-2), 0.0)
    if model == "each_diagonal":
        options["covariance"] = np.where(options["covariance"] > 0.0, np.maximum(options["covariance"], 1e-2), 0.0)
    options |= {"weights": rng.exponential(size=n), "source_mean": rng.standard_normal(d), "schedule": schedule}
    check(variant.field(data, **options), data, rng, (0.1, 0.45, 0.7))


@pytest.mark.parametrize("which", [{"label": 1}, {"subset": [0, 2, 3, 6]}, {"exclude": 4}], ids=str)
def test_continuity_of_parts(variant, which):
    """What is left of the data is a distribution of its own."""
    rng = np.random.default_rng(8)
    data = rng.standard_normal((7, 2))
    field = variant.field(data, variance=rng.uniform(0.05, 1.0, 7), labels=np.arange(7) % 2, schedule="cosine")

    class Part:
        schedule = field.schedule

        def __getattr__(self, name):
            return partial(getattr(field, name), **which)

    check(Part(), data, rng, (0.1, 0.45, 0.8))
