"""The random samplers: the same marginals as the flow, by two-sample tests with fixed seeds, and their single steps.

Distributions are compared on projections by the test of Kolmogorov and Smirnov. Seeds are fixed, so a test either
passes or fails for good; a level of 1e-3 for each of its few comparisons leaves a wrong sampler little room.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

import fastflow as ff
from fastflow import samplers, stochastic

RANDOM = ("path_switching", "sde")
NUM = 3000


def cloud(num=30, size=2, seed=0):
    return np.random.default_rng(seed).normal(size=(num, size))


def modes(num=30, seed=0):
    """Points in three well separated clusters of different shapes."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.5]])
    return centres[np.arange(num) % 3] + rng.normal(size=(num, 2)) * [0.5, 0.2]


def assert_same_law(a, b):
    """Two sets of points (n, 2), on the axes, diagonals and the radius."""
    for view in (np.eye(2)[0], np.eye(2)[1], np.array([1.0, 1.0]), np.array([1.0, -1.0])):
        assert stats.ks_2samp(a @ view, b @ view).pvalue > 1e-3
    assert stats.ks_2samp(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)).pvalue > 1e-3


def direct(field, t, seed=99, num=NUM):
    return samplers.starting_points(field, num, t, np.random.default_rng(seed))


# Path switching -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("t", [0.5, 1.0])
def test_path_switching_has_the_marginals_at_every_number_of_steps(t, steps):
    field = ff.VelocityField(modes(), variance=0.05, source_mean=[0.5, 0.0])
    x = field.sample(NUM, steps=steps, t_span=(0.0, t), method="path_switching", seed=1)
    assert_same_law(x, direct(field, t))


@pytest.mark.parametrize("schedule", ["cosine", "vp", ff.schedules.VE(0.1, 4.0)], ids=str)
def test_path_switching_and_the_ode_have_one_law(schedule):
    field = ff.VelocityField(modes(), variance=0.05, schedule=schedule)
    span = (0.0, 0.8)
    ode = field.sample(NUM, steps=60, t_span=span, method="heun", seed=2)
    assert_same_law(field.sample(NUM, steps=6, t_span=span, method="path_switching", seed=1), ode)


@pytest.mark.parametrize("steps", [1, 12])
def test_path_switching_backwards(steps):
    field = ff.VelocityField(modes(), variance=0.05)
    x = direct(field, 1.0, seed=5)
    back = field.sample(x, steps=steps, t_span=(1.0, 0.3), method="path_switching", seed=1)
    assert_same_law(back, direct(field, 0.3))
    noise = field.sample(back, steps=steps, t_span=(0.3, 0.0), method="path_switching", seed=2)
    assert_same_law(noise, np.random.default_rng(3).normal(size=(NUM, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"variance": np.linspace(0.0, 0.4, 30)},
        {"covariance": [[0.3, 0.1], [0.1, 0.05]]},
        {"covariance": np.array([np.diag([0.01 * k, 0.3 - 0.01 * k]) for k in range(30)])},
        {"source_covariance": [[2.0, 0.6], [0.6, 0.5]], "variance": 0.05},
    ],
    ids=["variances", "covariance", "covariances", "source covariance"],
)
@pytest.mark.parametrize("method", RANDOM)
def test_other_models(method, options):
    field = ff.VelocityField(modes(), backend="numpy", **options)
    steps = 4 if method == "path_switching" else 40
    x = field.sample(1500, steps=steps, t_span=(0.0, 0.7), method=method, seed=1)
    assert_same_law(x, direct(field, 0.7, num=1500))


def test_one_step_forgets_and_many_follow_the_flow():
    """Independent of the start after one step; off the ODE by the square root of the step in many."""
    field = ff.VelocityField(modes(), variance=0.3)
    x0 = direct(field, 0.0)
    once = field.sample(x0, steps=1, method="path_switching", seed=0)
    assert np.abs(np.corrcoef(x0.T, once.T)[:2, 2:]).max() < 4.0 / np.sqrt(NUM)
    x0 = x0[:400]
    flow = field.sample(x0, method="rk4", steps=100)
    off = []
    for steps in (25, 100, 400):
        x = field.sample(x0, steps=steps, method="path_switching", seed=0)
        off.append(np.sqrt(np.mean((x - flow) ** 2)))
    ratios = np.divide(off[:-1], off[1:])
    assert np.all((ratios > 1.4) & (ratios < 2.8)), off


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_path_switching_ends_on_data_points_by_their_mass(steps):
    data = modes(4)
    weights = np.array([1.0, 2.0, 3.0, 4.0]) / 10.0
    field = ff.VelocityField(data, weights=weights)
    x = field.sample(NUM, steps=steps, method="path_switching", seed=0)
    distance = np.linalg.norm(x[:, None] - data, axis=-1)
    assert distance.min(axis=1).max() < 1e-12
    counts = np.bincount(distance.argmin(axis=1), minlength=4)
    assert stats.chisquare(counts, NUM * weights).pvalue > 1e-3


def test_a_step_follows_the_drawn_path():
    field = ff.VelocityField(modes(), variance=0.1, schedule="cosine")
    x = cloud(8, seed=4)
    x_i, x_f = field.posterior_draw(x, 0.3, rng=7)
    end = field.schedule(0.55)
    moved = field.sample(x, steps=[0.3, 0.55], method="path_switching", seed=7)
    np.testing.assert_allclose(moved, end.alpha * x_i + end.beta * x_f, rtol=1e-14, atol=1e-14)


def test_path_switching_needs_no_velocity():
    """The last step does not freeze, also where the velocity is unbounded."""
    field = ff.VelocityField(modes(), schedule="vp", variance=0.05, source_mean=1.0)
    x = field.sample(NUM, steps=3, method="path_switching", seed=0)
    assert_same_law(x, direct(field, 1.0))
    back = field.sample(x, steps=3, t_span=(1.0, 0.2), method="path_switching", seed=1)
    assert_same_law(back, direct(field, 0.2))


# The SDE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "noise", [0.5, 1.0, 2.0, lambda t: 0.8, lambda t: 1.5 * t], ids=["0.5", "1", "2", "constant", "rising"]
)
@pytest.mark.parametrize("t", [0.5, 1.0])
def test_the_sde_has_the_marginals_of_the_flow(noise, t):
    field = ff.VelocityField(modes(), variance=0.05)
    x = field.sample(NUM, steps=100, t_span=(0.0, t), method="sde", noise=noise, seed=1)
    assert_same_law(x, direct(field, t))


@pytest.mark.parametrize("schedule", ["cosine", "vp", ff.schedules.VE(0.1, 4.0)], ids=str)
def test_the_sde_and_the_ode_have_one_law(schedule):
    field = ff.VelocityField(modes(), variance=0.05, schedule=schedule)
    ode = field.sample(NUM, steps=60, t_span=(0.0, 0.8), method="heun", seed=2)
    assert_same_law(field.sample(NUM, steps=200, t_span=(0.0, 0.8), method="sde", seed=1), ode)


@pytest.mark.parametrize("noise", [1.0, lambda t: 1.0], ids=["shape", "constant"])
def test_the_sde_backwards(noise):
    field = ff.VelocityField(modes(), variance=0.05)
    x = direct(field, 0.9, seed=5)
    for t in (0.4, 0.0):
        back = field.sample(x, steps=100, t_span=(0.9, t), method="sde", noise=noise, seed=1)
        assert_same_law(back, direct(field, t))


def test_the_marginals_would_not_come_by_themselves():
    """The tests above can fail: without the drift, and with the drift of the other direction, the law is another."""
    field = ff.VelocityField(modes(), variance=0.05)
    x = direct(field, 0.9, seed=5)
    rng = np.random.default_rng(1)
    for t, stop in zip(np.linspace(0.9, 0.4, 101)[:-1], np.linspace(0.9, 0.4, 101)[1:], strict=True):
        x = stochastic.maruyama_step(field, x, t, stop, 1.0, rng)
        x -= 2.0 * 0.5 * abs(stop - t) * field.score(x, t)
    with pytest.raises(AssertionError):
        assert_same_law(x, direct(field, 0.4))


@pytest.mark.parametrize("noise", [0, 0.0, lambda t: 0.0], ids=["0", "0.0", "function"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.9, 0.1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_noise_it_is_euler(noise, span, dtype):
    field = ff.VelocityField(modes().astype(dtype), schedule="vp")
    options = {"steps": 7, "t_span": span, "seed": 3}
    euler = field.sample(20, method="euler", **options)
    np.testing.assert_array_equal(field.sample(20, method="sde", noise=noise, **options), euler)
    x0 = cloud(5).astype(dtype)
    np.testing.assert_array_equal(
        field.sample(x0, method="sde", noise=noise, **options), field.sample(x0, method="euler", **options)
    )


@pytest.mark.parametrize("span", [(0.3, 0.35), (0.35, 0.3)])
@pytest.mark.parametrize("event", [(2,), (2, 1), ()])
def test_one_step_of_the_sde(span, event):
    data = modes().reshape(-1, *event) if event else modes()[:, 0]
    field = ff.VelocityField(data, variance=0.1)
    x0 = data[:8] * 0.5
    moved = field.sample(x0, steps=list(span), method="sde", noise=lambda t: 0.7, seed=4)
    normal = np.random.default_rng(4).standard_normal(x0.shape)
    velocity, score = field.velocity(x0, span[0]), field.score(x0, span[0])
    h = span[1] - span[0]
    expected = x0 + h * velocity + 0.5 * 0.49 * abs(h) * score + 0.7 * np.sqrt(abs(h)) * normal
    np.testing.assert_allclose(moved, expected, rtol=1e-13, atol=1e-13)


def test_one_step_with_a_source_covariance():
    """The noise is that of the source: g^2 Sigma_i in place of g^2."""
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    field = ff.VelocityField(modes(), source_covariance=covariance, backend="numpy")
    x = np.repeat(cloud(1), 20_000, axis=0)
    moved = field.sample(x, steps=[0.3, 0.34], method="sde", noise=lambda t: 3.0, seed=4)
    mean = x[0] + 0.04 * (field.velocity(x[0], 0.3) + 0.5 * 9.0 * covariance @ field.score(x[0], 0.3))
    np.testing.assert_allclose(np.cov(moved.T), 9.0 * 0.04 * covariance, rtol=0, atol=0.02)
    assert np.abs(moved.mean(axis=0) - mean).max() < 4.5 * np.sqrt(9.0 * 0.04 * 2.0 / 20_000)


def test_a_label_for_each_sample():
    labels = np.arange(30) % 3
    field = ff.VelocityField(modes(), labels=labels, variance=0.01, backend="numpy")
    wanted = np.arange(60) % 3
    for method in RANDOM:
        x = field.sample(60, steps=60, method=method, seed=0, label=wanted)
        near = np.linalg.norm(x[:, None] - modes(), axis=-1).argmin(axis=1)
        np.testing.assert_array_equal(labels[near], wanted)
    guided = field.sample(60, steps=60, method="sde", seed=0, label=wanted, guidance=0.5)
    assert np.isfinite(guided).all() and not np.array_equal(guided, x)


# The default noise --------------------------------------------------------------------------------------------


def levels(field, noise, times, only_limit=False):
    return np.array(stochastic.noise_levels(field, noise, np.asarray(times, dtype=float), only_limit))


def test_the_shape_of_the_default_noise():
    field = ff.VelocityField(cloud(), source_variance=2.0)
    t = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
    g = np.sqrt(2.0 * 2.0 * t * (1.0 - t) / (t**2 + (1.0 - t) ** 2))
    np.testing.assert_allclose(levels(field, 1.0, t), np.minimum(g[:-1], g[1:]), rtol=1e-13)
    np.testing.assert_allclose(levels(field, 0.5, t[::-1]), 0.5 * np.minimum(g[:-1], g[1:])[::-1], rtol=1e-13)
    np.testing.assert_array_equal(levels(field, lambda t: t, t), t[:-1])
    np.testing.assert_array_equal(levels(field, lambda t: t, t, only_limit=True), [0.0, 0.2, 0.5, 0.0])


def test_the_default_noise_is_that_of_diffusion_at_the_data():
    for schedule in ("linear", "cosine", "vp", "linear_vp"):
        field = ff.VelocityField(cloud(), source_variance=1.5, schedule=schedule)
        t = 1.0 - 1e-9
        end = field.schedule(t)
        omega = end.alpha * end.d_beta - end.d_alpha * end.beta
        assert stochastic._shape(field, t) ** 2 == pytest.approx(2.0 * 1.5 * end.alpha * omega / end.beta, rel=1e-6)


@pytest.mark.parametrize("schedule", ff.schedules.names())
def test_the_default_noise_is_finite_everywhere(schedule):
    field = ff.VelocityField(cloud(), schedule=schedule)
    g = levels(field, 1.0, np.linspace(0.0, 1.0, 101))
    assert np.isfinite(g).all() and g.max() > 0.0
    first = field.schedule(0.0)
    if first.beta == 0.0:
        assert g[0] == 0.0


def test_the_drift_of_the_default_noise_stays_of_the_size_of_the_velocity():
    """Without variance g^2 S / 2 is at most beta |theta'| |E[x_i]|, which is finite at the data."""
    field = ff.VelocityField(cloud())
    for t in (0.9, 0.99, 0.999, 1.0 - 1e-6):
        x = t * field._parts.whole.points.data + (1.0 - t) * cloud(30, seed=1)
        drift = 0.5 * stochastic._shape(field, t) ** 2 * field.score(x, t)
        assert np.abs(drift).max() < 1.3 * np.abs(cloud(30, seed=1)).max()


# Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": -0.1}, ValueError, r"noise is -0\.1; accepted is a finite number of at least 0"),
        ({"noise": np.nan}, ValueError, r"noise is nan"),
        ({"noise": "much"}, TypeError, r"noise has dtype"),
        ({"noise": [1.0, 2.0]}, ValueError, r"noise has shape \(2,\); accepted is one number of at least 0"),
        ({"noise": lambda t: -1.0}, ValueError, r"noise\(0\.0\) is -1\.0; accepted is a finite number of at least 0"),
        ({"noise": lambda t: np.inf if t == 0.5 else 1.0}, ValueError, r"noise\(0\.5\) is inf"),
        ({"noise": lambda t: "much"}, TypeError, r"noise\(0\.0\) has dtype"),
        ({"noise": -1.0, "method": "euler"}, ValueError, r"noise is -1\.0"),
        ({"method": "path_switching", "label": 1, "guidance": 0.5}, ValueError, r"guidance .*path_switching.*is 0"),
        ({"guidance": 0.5}, ValueError, r"guidance is given without label"),
        ({"method": "langevin"}, ValueError, r"accepted is one of euler, heun, rk4, dopri5, path_switching, sde"),
    ],
)
def test_bad_input(options, error, message):
    calls = []
    field = ff.VelocityField(cloud(), labels=np.arange(30) % 2)
    options = {"method": "sde", "steps": 4, "callback": lambda *args: calls.append(args), **options}
    with pytest.raises(error, match=message):
        field.sample(2, **options)
    assert not calls


# The command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RANDOM)
def test_the_command_line_takes_them(method, tmp_path, monkeypatch):
    for name in ("typer", "rich", "matplotlib", "sklearn"):
        pytest.importorskip(name)
    from fastflow import cli

    monkeypatch.chdir(tmp_path)
    np.save("data.npy", modes())
    words = f"--data data.npy --num 6 --steps 5 --seed 3 --method {method} --variance 0.1 --save s.npz --out p.png"
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--no-progress", *words.split()])
    assert not stop.value.code
    with np.load("s.npz") as saved:
        assert json.loads(str(saved["options"]))["method"] == method
        expected = ff.VelocityField(modes(), variance=0.1).sample(6, steps=5, method=method, seed=3)
        np.testing.assert_array_equal(saved["samples"], expected)
