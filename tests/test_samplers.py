"""The samplers, against closed forms, against each other, and against what they promise.

For one data point everything is Gaussian: `x_t ~ N(m_t, D_t I)` with `m_t = alpha m_i + beta mu`, and the velocity
`m_t' + (D_t' / 2 D_t) (x - m_t)` has the solution `x(t) = m_t + sqrt(D_t / D_0) (x(0) - m_0)`.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

import fastflow as ff
from fastflow import samplers
from fastflow.path import path_at

FIXED = tuple(samplers.TABLEAUX)
ORDER = {"euler": 1, "heun": 2, "rk4": 4}
SMOOTH = ("linear", "cosine", "polynomial", "optimal_transport")
ENDING_ON_DATA = ("linear", "cosine", "polynomial", "linear_vp", "vp")


def cloud(num=40, size=3, seed=0, spread=1.0):
    return spread * np.random.default_rng(seed).normal(size=(num, size))


def distance_to(data, x):
    return np.linalg.norm(x[:, None] - data[None], axis=-1).min(axis=1)


def affine_solution(field, point, x0, start, stop):
    """Where the flow of a field with the single data point `point` carries x0."""
    mean = 0.0 if field._model.source_mean is None else field._model.source_mean
    a, b = (path_at(field.schedule, t, field._model.source_variance, field._model.target) for t in (start, stop))
    scale = math.sqrt(b.variance / a.variance)
    return b.alpha * mean + b.beta * point + scale * (x0 - a.alpha * mean - a.beta * point)


def dense_near_one(num):
    """Times whose steps shrink towards t = 1, where the schedules with infinite alpha' are fast."""
    return 1.0 - np.linspace(1.0, 0.0, num + 1) ** 4


# Accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SMOOTH)
@pytest.mark.parametrize("method", FIXED)
def test_order_of_convergence_on_the_affine_flow(method, schedule):
    point = np.array([0.7, -1.2])
    field = ff.VelocityField(point[None], variance=0.5, source_mean=[0.3, 0.1], source_variance=2.0, schedule=schedule)
    x0 = cloud(5, 2)
    exact = affine_solution(field, point, x0, 0.0, 1.0)
    errors = [np.abs(field.sample(x0, steps=n, method=method) - exact).max() for n in (32, 64, 128)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > ORDER[method] - 0.35), (errors, orders)


@pytest.mark.parametrize("method", FIXED)
def test_order_of_convergence_on_a_mixture(method):
    field = ff.VelocityField(cloud(6, 2), variance=0.3, schedule="cosine")
    x0 = cloud(8, 2, seed=1)
    exact = field.sample(x0, method="dopri5", rtol=1e-12, atol=1e-13)
    errors = [np.abs(field.sample(x0, steps=n, method=method) - exact).max() for n in (40, 80, 160)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > ORDER[method] - 0.35), (errors, orders)


@pytest.mark.parametrize("schedule", [name for name in ff.schedules.names() if name != "ve"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.8)])
def test_dopri5_on_the_affine_flow(schedule, span):
    point = np.array([0.7, -1.2])
    field = ff.VelocityField(point[None], variance=0.5, schedule=schedule)
    x0 = cloud(5, 2)
    found = field.sample(x0, method="dopri5", t_span=span, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found, affine_solution(field, point, x0, *span), rtol=0, atol=1e-7)


def test_the_tableaux_are_consistent():
    for name, (nodes, stages, weights) in samplers.TABLEAUX.items():
        assert len(nodes) == len(stages) == len(weights), name
        assert [len(row) for row in stages] == list(range(len(nodes)))
        np.testing.assert_allclose([sum(row) for row in stages], nodes, atol=1e-15)
        assert sum(weights) == pytest.approx(1.0, abs=1e-15)
    assert set(ORDER) == set(FIXED)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("schedule", ff.schedules.names())
def test_there_and_back_again(schedule, method):
    field = ff.VelocityField(
        cloud(5, 2), variance=0.2, schedule=ff.schedules.VE(0.1, 5.0) if schedule == "ve" else schedule
    )
    x0 = cloud(7, 2, seed=3)
    options = {"rtol": 1e-9, "atol": 1e-10} if method == "dopri5" else {"steps": 1000}
    data = field.sample(x0, method=method, **options)
    back = field.sample(data, method=method, t_span=(1.0, 0.0), **options)
    np.testing.assert_allclose(back, x0, rtol=0, atol=2e-4)
    assert np.abs(data - x0).max() > 0.1


# The end of time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", samplers.METHODS)
@pytest.mark.parametrize("schedule", ENDING_ON_DATA)
def test_samples_end_on_data_points(schedule, method):
    data = cloud(40, 3, spread=2.0)
    field = ff.VelocityField(data, schedule=schedule)
    x = field.sample(30, steps=dense_near_one(60), method=method, seed=0)
    assert distance_to(data, x).max() < 1e-6


@pytest.mark.parametrize("mean", [0.0, 1.5])
@pytest.mark.parametrize("variance", [0.0, 0.1])
@pytest.mark.parametrize("method", samplers.METHODS)
@pytest.mark.parametrize("schedule", ff.schedules.names())
@pytest.mark.filterwarnings("error")
def test_every_schedule_stays_finite(schedule, method, variance, mean):
    data = cloud()
    field = ff.VelocityField(data, schedule=schedule, variance=variance, source_mean=mean)
    _, path = field.sample(6, steps=20, method=method, seed=1, return_path=True)
    assert np.isfinite(path).all()
    # Within the data's bounds, give or take the width that is left around each point.
    assert distance_to(data, path[-1]).max() < 1.5 + 4.0 * math.sqrt(variance * 3)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
def test_the_last_step_lands_on_the_posterior_mean(schedule):
    data = cloud()
    field = ff.VelocityField(data, schedule=schedule)
    times, path = field.sample(6, steps=10, seed=0, return_path=True)
    np.testing.assert_allclose(path[-1], field.target_mean(path[-2], times[-2]), rtol=1e-12, atol=1e-12)


def test_the_last_step_is_eulers_for_the_linear_schedule():
    field = ff.VelocityField(cloud())
    _, path = field.sample(6, steps=10, seed=0, return_path=True)
    euler = path[-2] + (1.0 - 0.9) * field.velocity(path[-2], 0.9)
    np.testing.assert_allclose(path[-1], euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", samplers.METHODS)
def test_no_start_from_a_set_of_points(method):
    data = cloud()
    field = ff.VelocityField(data)
    for start in (data[:3], data[:3] + 0.1, 3):
        with pytest.raises(ValueError, match=r"cannot start from .* t = 1, .* variance > 0"):
            field.sample(start, t_span=(1.0, 0.0), method=method)
    assert np.isfinite(field.sample(data[:3], t_span=(0.999, 0.0), method=method)).all()
    assert np.isfinite(ff.VelocityField(data, variance=1e-4).sample(data, t_span=(1.0, 0.0), method=method)).all()


def test_no_start_where_the_velocity_is_unbounded():
    field = ff.VelocityField(cloud(), schedule="vp", variance=0.1, source_mean=1.0)
    with pytest.raises(ValueError, match=r"velocity is unbounded.*source_mean 0"):
        field.sample(2, t_span=(1.0, 0.0))


def test_no_way_through_a_singular_time():
    schedule = ff.schedules.Custom(lambda t: 1.0 - 2.0 * t, lambda t: t + 0.5)
    field = ff.VelocityField(cloud(), schedule=schedule)
    with pytest.raises(ValueError, match=r"pass through t = 0\.5"):
        field.sample(2, steps=[0.0, 0.5, 1.0])
    assert np.isfinite(field.sample(2, steps=[0.0, 0.25, 0.5])).all()


def test_dopri5_grid_times_inside_the_last_frozen_step():
    data = cloud()
    field = ff.VelocityField(data)
    grid = [0.0, 0.5, 1.0 - 1e-6, 1.0 - 1e-7, 1.0]
    _, path = field.sample(4, steps=grid, method="dopri5", seed=0, return_path=True)
    np.testing.assert_allclose(path[2:4], path[-1][None].repeat(2, 0), atol=1e-5)
    assert distance_to(data, path[-1]).max() < 1e-12


# Starting points ----------------------------------------------------------------------------------------------


def test_the_marginal_of_a_two_point_mixture():
    field = ff.VelocityField(np.array([[-2.0], [3.0]]), weights=[1.0, 3.0])
    x = field.sample(4000, steps=40, method="heun", seed=0)[:, 0]
    assert np.abs(np.minimum(np.abs(x + 2.0), np.abs(x - 3.0))).max() < 1e-6
    share = np.mean(x > 0.0)
    assert abs(share - 0.75) < 4.0 * math.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "vp", ff.schedules.VE(0.1, 3.0)], ids=str)
def test_drawn_starting_points_follow_the_marginal(schedule, t):
    """Mean and variance of the mixture: those of its components' means, plus D."""
    data, weights, mean = np.array([-2.0, 1.0, 4.0]), np.array([0.2, 0.5, 0.3]), 0.5
    field = ff.VelocityField(
        data, weights=weights, variance=0.3, source_mean=mean, source_variance=1.7, schedule=schedule
    )
    num = 40_000
    x = samplers.starting_points(field, num, t, np.random.default_rng(0))
    path = path_at(field.schedule, t, 1.7, 0.3)
    centres = path.alpha * mean + path.beta * data
    expected = weights @ centres
    variance = weights @ (centres - expected) ** 2 + path.variance
    assert abs(x.mean() - expected) < 5.0 * math.sqrt(variance / num)
    assert x.var() == pytest.approx(variance, rel=0.05)


def test_no_data_are_drawn_where_beta_is_zero():
    a, b = (ff.VelocityField(cloud(n, 2)) for n in (3, 40))
    draws = [samplers.starting_points(field, 5, 0.0, np.random.default_rng(7)) for field in (a, b)]
    np.testing.assert_array_equal(*draws)
    np.testing.assert_array_equal(draws[0], np.random.default_rng(7).standard_normal((5, 2)))


def test_zero_weight_points_are_never_drawn():
    field = ff.VelocityField(np.array([0.0, 100.0]), weights=[1.0, 0.0], variance=0.1)
    assert samplers.starting_points(field, 1000, 1.0, np.random.default_rng(0)).max() < 50.0


@pytest.mark.parametrize("method", samplers.METHODS)
def test_the_seed_reproduces_bit_for_bit(backend, method):
    def draw(seed, num_threads=None):
        field = ff.VelocityField(cloud(300, 3), backend=backend, num_threads=num_threads, schedule="vp")
        return field.sample(9, steps=5, method=method, seed=seed)

    first = draw(3)
    np.testing.assert_array_equal(draw(3), first)
    np.testing.assert_array_equal(draw(np.random.default_rng(3)), first)
    for num_threads in (1, 2, 3):
        np.testing.assert_array_equal(draw(3, num_threads), first)
    assert not np.array_equal(draw(4), first)
    assert not np.array_equal(draw(None), draw(None))


def test_a_generator_moves_on():
    field, rng = ff.VelocityField(cloud()), np.random.default_rng(0)
    assert not np.array_equal(field.sample(3, steps=2, seed=rng), field.sample(3, steps=2, seed=rng))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_dtype_of_drawn_points_follows_the_data(dtype):
    field = ff.VelocityField(np.arange(12).reshape(4, 3).astype(dtype))
    expected = np.float64 if dtype is np.float64 else np.float32
    for method in samplers.METHODS:
        assert field.sample(2, steps=2, method=method).dtype == expected


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int32, ">f4"])
@pytest.mark.parametrize("method", samplers.METHODS)
def test_dtype_follows_the_starting_points(dtype, method):
    field = ff.VelocityField(cloud())
    x0 = np.ones((2, 3), dtype=dtype)
    expected = {"int32": "float64", ">f4": "float32"}.get(np.dtype(dtype).str, np.dtype(dtype).name)
    expected = "float64" if np.dtype(dtype).kind == "i" else np.dtype(dtype).newbyteorder("=").name
    times, path = field.sample(x0, steps=3, method=method, return_path=True)
    assert path.dtype == field.sample(x0, steps=3, method=method).dtype == np.dtype(expected)
    assert times.dtype == np.float64


@pytest.mark.parametrize("method", samplers.METHODS)
def test_starting_points_are_left_alone(method):
    field = ff.VelocityField(cloud())
    x0 = np.asfortranarray(cloud(4, 3, seed=9))
    before = x0.copy()
    x0.flags.writeable = False
    x = field.sample(x0, steps=3, method=method)
    np.testing.assert_array_equal(x0, before)
    assert not np.shares_memory(x, x0)


@pytest.mark.parametrize("method", samplers.METHODS)
@pytest.mark.parametrize("event", [(), (3,), (2, 2), (1, 2, 3)])
def test_shapes(event, method):
    data = np.random.default_rng(0).normal(size=(11, *event))
    field = ff.VelocityField(data)
    for start, batch in ((4, (4,)), (1, (1,)), (0, (0,)), (data[:4] * 0.5, (4,)), (data[0] * 0.5, ())):
        assert field.sample(start, steps=2, method=method).shape == (*batch, *event)
        times, path = field.sample(start, steps=2, method=method, return_path=True)
        assert times.shape == (3,) and path.shape == (3, *batch, *event)


def test_one_event_is_a_batch_of_one():
    field = ff.VelocityField(cloud())
    x0 = cloud(1, 3, seed=2)
    np.testing.assert_array_equal(field.sample(x0[0], steps=5), field.sample(x0, steps=5)[0])


# Time grids, path, callback, progress -------------------------------------------------------------------------


@pytest.mark.parametrize("method", samplers.METHODS)
def test_the_path_starts_at_the_start_and_ends_at_the_end(method):
    field = ff.VelocityField(cloud())
    x0 = cloud(4, 3, seed=5)
    times, path = field.sample(x0, steps=8, method=method, t_span=(0.1, 0.9), seed=0, return_path=True)
    np.testing.assert_allclose(times, np.linspace(0.1, 0.9, 9), rtol=0, atol=1e-15)
    assert (times[0], times[-1]) == (0.1, 0.9)
    np.testing.assert_array_equal(path[0], x0)
    final = field.sample(x0, steps=8, method=method, t_span=(0.1, 0.9), seed=0)
    np.testing.assert_allclose(path[-1], final, rtol=1e-13, atol=1e-13)


def test_the_dopri5_path_is_the_flow_at_the_grid():
    point = np.array([0.7, -1.2])
    field = ff.VelocityField(point[None], variance=0.5)
    x0 = cloud(5, 2)
    times, path = field.sample(x0, steps=7, method="dopri5", rtol=1e-8, atol=1e-9, return_path=True)
    for t, x in zip(times, path, strict=True):
        np.testing.assert_allclose(x, affine_solution(field, point, x0, 0.0, t), atol=1e-6)


@pytest.mark.parametrize("method", FIXED)
def test_a_grid_of_times_equals_a_number_of_steps(method):
    field = ff.VelocityField(cloud())
    x0 = cloud(4, 3, seed=5)
    for span in ((0.0, 1.0), (0.75, 0.25)):
        steps = field.sample(x0, steps=4, t_span=span, method=method)
        grid = field.sample(x0, steps=np.linspace(*span, 5), method=method)
        np.testing.assert_array_equal(steps, grid)
        np.testing.assert_array_equal(grid, field.sample(x0, steps=np.linspace(*span, 5).tolist(), method=method))


@pytest.mark.parametrize("method", FIXED)
def test_a_path_in_two_halves(method):
    field = ff.VelocityField(cloud(), variance=0.1)
    x0 = cloud(4, 3, seed=5)
    half = field.sample(x0, steps=[0.0, 0.25, 0.5], method=method)
    whole = field.sample(x0, steps=[0.0, 0.25, 0.5, 0.75, 1.0], method=method)
    np.testing.assert_array_equal(field.sample(half, steps=[0.5, 0.75, 1.0], method=method), whole)


@pytest.mark.parametrize("method", samplers.METHODS)
def test_the_callback_sees_every_step(method):
    field = ff.VelocityField(cloud())
    seen = []
    times, path = field.sample(
        cloud(4, 3, seed=5), steps=6, method=method, return_path=True, callback=lambda *args: seen.append(args)
    )
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    reached = [t for _, t, _ in seen]
    assert all(type(t) is float for t in reached)
    assert np.all(np.diff(reached) > 0.0) and reached[0] > 0.0 and reached[-1] == 1.0
    np.testing.assert_array_equal(seen[-1][2], path[-1])
    if method != "dopri5":
        np.testing.assert_array_equal(reached, times[1:])
        np.testing.assert_array_equal([x for *_, x in seen], path[1:])


@pytest.mark.parametrize("method", samplers.METHODS)
def test_the_callback_cannot_disturb(method):
    field = ff.VelocityField(cloud())
    x0 = cloud(4, 3, seed=5)

    def meddle(step, t, x):
        with pytest.raises(ValueError, match="read-only"):
            x += 1.0
        return True

    np.testing.assert_array_equal(
        field.sample(x0, steps=6, method=method, seed=0, callback=meddle),
        field.sample(x0, steps=6, method=method, seed=0),
    )

    class Enough(Exception):
        pass

    def stop(step, t, x):
        raise Enough

    with pytest.raises(Enough):
        field.sample(x0, steps=6, method=method, callback=stop)


@pytest.mark.parametrize("method", samplers.METHODS)
def test_evaluations_are_counted(method):
    field = ff.VelocityField(cloud(), variance=0.1)
    result = samplers.integrate(field, 4, steps=6, method=method, seed=0)
    if method == "dopri5":
        assert result.evaluations > 4 * 12 and result.evaluations % 4 == 0
    else:
        stages = len(samplers.TABLEAUX[method].nodes) if method in FIXED else 1
        assert result.evaluations == 4 * 6 * stages


@pytest.mark.parametrize("method", samplers.METHODS)
def test_progress_is_shown_when_asked_for(method, capsys):
    pytest.importorskip("tqdm")
    field = ff.VelocityField(cloud())
    quiet = field.sample(2, steps=6, method=method, seed=0)
    assert capsys.readouterr().err == ""
    shown = field.sample(2, steps=6, method=method, seed=0, progress=True)
    err = capsys.readouterr().err
    assert method in err and "100%" in err
    np.testing.assert_array_equal(quiet, shown)


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    field = ff.VelocityField(cloud())
    with pytest.raises(ImportError, match=r'tqdm is not installed.*pip install "fastflow\[progress\]"'):
        field.sample(2, progress=True)


# Bad input ----------------------------------------------------------------------------------------------------

BAD = [
    ({"method": "rk5"}, ValueError, r"method 'rk5' is unknown; accepted is one of euler, heun, rk4, dopri5"),
    ({"method": 4}, TypeError, r"method is int; accepted is one of euler"),
    ({"steps": 0}, ValueError, r"steps is 0; accepted is a whole number of steps of at least 1"),
    ({"steps": -3}, ValueError, r"steps is -3"),
    ({"steps": 2.5}, ValueError, r"steps is 2\.5"),
    ({"steps": True}, ValueError, r"steps is True"),
    ({"steps": "many"}, TypeError, r"steps has dtype"),
    ({"steps": None}, TypeError, r"steps has dtype object"),
    ({"steps": [0.5]}, ValueError, r"steps has shape \(1,\)"),
    ({"steps": [[0.0, 1.0]]}, ValueError, r"steps has shape \(1, 2\)"),
    ({"steps": [0.0, 0.5, 0.5]}, ValueError, r"steps\[1\] is 0\.5 and steps\[2\] is 0\.5; times must be strictly"),
    ({"steps": [0.0, 0.8, 0.5, 0.9]}, ValueError, r"steps\[1\] is 0\.8 and steps\[2\] is 0\.5"),
    ({"steps": [0.0, 1.5]}, ValueError, r"steps\[1\] is 1\.5; times must lie in \[0, 1\]"),
    ({"steps": [0.0, math.nan, 1.0]}, ValueError, r"steps\[1\] is nan"),
    ({"steps": [0.0, 1.0], "t_span": (0.0, 1.0)}, ValueError, r"t_span is \(0\.0, 1\.0\) beside a grid of times"),
    ({"t_span": (0.0, 1.1)}, ValueError, r"t_span is \(0\.0, 1\.1\); times must lie in \[0, 1\]"),
    ({"t_span": (math.nan, 1.0)}, ValueError, r"t_span is \(nan, 1\.0\)"),
    ({"t_span": (0.5, 0.5)}, ValueError, r"t_span is \(0\.5, 0\.5\); the two times must differ"),
    ({"t_span": 1.0}, ValueError, r"t_span is 1\.0; accepted is a pair"),
    ({"t_span": "01"}, TypeError, r"t_span has dtype"),
    ({"seed": -1}, ValueError, r"seed is -1"),
    ({"seed": 1.5}, TypeError, r"seed is 1\.5; accepted is a whole number"),
    ({"seed": True}, TypeError, r"seed is True"),
    ({"callback": 3}, TypeError, r"callback is int; accepted is a function"),
    ({"rtol": 0.0}, ValueError, r"rtol is 0\.0; accepted is a finite number above zero"),
    ({"atol": math.nan}, ValueError, r"atol is nan"),
    ({"num_or_x0": -1}, ValueError, r"num_or_x0 is -1"),
    ({"num_or_x0": 2.0}, ValueError, r"num_or_x0 is not a whole number.*x has shape \(\)"),
    ({"num_or_x0": True}, ValueError, r"num_or_x0 .*x has shape \(\)"),
    ({"num_or_x0": np.zeros((2, 4))}, ValueError, r"num_or_x0 .*x has shape \(2, 4\)"),
    ({"num_or_x0": np.full((2, 3), math.inf)}, ValueError, r"num_or_x0 .*x\[0, 0\] is inf"),
    ({"num_or_x0": "many"}, TypeError, r"num_or_x0 .*x has dtype"),
    ({"num_or_x0": np.zeros((2, 3), dtype=complex)}, TypeError, r"num_or_x0 .*complex128"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(options) for options, *_ in BAD])
def test_bad_input(options, error, message):
    calls = []
    options = {"num_or_x0": 2, "callback": lambda *args: calls.append(args), **options}
    field = ff.VelocityField(cloud())
    with pytest.raises(error, match=message):
        field.sample(options.pop("num_or_x0"), **options)
    assert not calls


def test_a_failed_solve_says_so():
    """A velocity that runs away at t = 0.3 leaves the adaptive method no step small enough."""
    schedule = ff.schedules.Custom(
        lambda t: 1.0 - t,
        lambda t: t,
        d_alpha=lambda t: -1.0,
        d_beta=lambda t: 1.0 / (0.3 - t) ** 2 if t != 0.3 else 0.0,
    )
    field = ff.VelocityField(cloud(), schedule=schedule)
    with pytest.raises(RuntimeError, match=r"dopri5 stopped after t = 0\.\d+: .*[Ss]tep size"):
        field.sample(2, method="dopri5", seed=0)
