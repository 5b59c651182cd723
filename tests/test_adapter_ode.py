"""A field under the ODE solvers of PyTorch libraries, against the field's own integrators and closed forms.

All are the real packages. torchdyn and torchcfm are not among the requirements of the tests, as they require
torchvision: requirements-no-deps.txt has them.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchdiffeq
import zuko
from conftest import without_dependencies
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper

from fastflow import VelocityField, schedules
from fastflow.adapters.flow_matching import VelocityModel
from fastflow.adapters.ode import TimeFirst
from fastflow.adapters.torch import VelocityModule


@pytest.fixture
def field():
    return VelocityField(
        np.random.default_rng(0).normal(size=(40, 2)), variance=0.05, labels=np.arange(40) % 3, schedule="cosine"
    )


@pytest.fixture
def noise():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(16, 2)))


ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def exact(field, x, **options):
    """The end of the flow, to more digits than any solver here is asked for."""
    return field.sample(x, method="dopri5", rtol=1e-8, atol=1e-9, **options)


# torchdiffeq --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "ours"), [("euler", "euler"), ("heun2", "heun")])
def test_torchdiffeq_takes_the_steps_of_the_field(field, noise, method, ours):
    grid = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    path = torchdiffeq.odeint(TimeFirst(field), noise, grid, method=method)
    _, expected = field.sample(noise.numpy(), steps=grid.numpy(), method=ours, return_path=True)
    np.testing.assert_allclose(path.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_torchdiffeq_adaptive_looks_past_the_end_and_is_right(noise, method, schedule):
    field = VelocityField(np.random.default_rng(0).normal(size=(40, 2)), variance=0.05, schedule=schedule)
    times = []

    class Watched(TimeFirst):
        def forward(self, t, x, args=None):
            times.append(float(t))
            return super().forward(t, x, args)

    x = torchdiffeq.odeint(Watched(field), noise, ENDS, method=method, rtol=1e-6, atol=1e-7)[-1]
    assert max(times) > 1.0
    np.testing.assert_allclose(x.numpy(), exact(field, noise.numpy()), rtol=0, atol=2e-4)


def test_torchdiffeq_from_data_to_noise(field, noise):
    there = torchdiffeq.odeint(TimeFirst(field), noise, ENDS, rtol=1e-8, atol=1e-9)[-1]
    back = torchdiffeq.odeint(TimeFirst(field), there, ENDS.flip(0), rtol=1e-8, atol=1e-9)[-1]
    np.testing.assert_allclose(back.numpy(), noise.numpy(), rtol=0, atol=1e-5)


def test_torchdiffeq_without_variance_ends_on_data(noise):
    data = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    x = torchdiffeq.odeint(TimeFirst(VelocityField(data)), noise.float(), ENDS.float(), rtol=1e-4, atol=1e-4)[-1]
    assert x.dtype == torch.float32
    distance = np.linalg.norm(x.numpy()[:, None] - data[None], axis=-1).min(axis=1)
    assert distance.max() < 0.01


def test_gradients_through_torchdiffeq_and_its_adjoint(field, noise):
    start, direction = noise[:3], torch.from_numpy(np.random.default_rng(2).normal(size=(3, 2)))
    step = 1e-5
    ends = [
        field.sample((start + sign * step * direction).numpy(), method="dopri5", rtol=1e-10, atol=1e-11)
        for sign in (1, -1)
    ]
    expected = ((ends[0] - ends[1]) / (2 * step)).sum()
    solvers = (
        (torchdiffeq.odeint, {"options": {"first_step": 1e-3}, "rtol": 1e-9, "atol": 1e-10}),
        (torchdiffeq.odeint_adjoint, {"rtol": 1e-8, "atol": 1e-9}),
    )
    for odeint, options in solvers:
        x = start.clone().requires_grad_()
        odeint(TimeFirst(field), x, ENDS, **options)[-1].sum().backward()
        np.testing.assert_allclose(float((x.grad * direction).sum()), expected, rtol=1e-5)


def test_labels_and_guidance(field, noise):
    label = np.arange(16) % 3
    x = torchdiffeq.odeint(TimeFirst(field, label=label, guidance=0.5), noise, ENDS, rtol=1e-6, atol=1e-7)[-1]
    np.testing.assert_allclose(x.numpy(), exact(field, noise.numpy(), label=label, guidance=0.5), rtol=0, atol=1e-4)


# zuko ---------------------------------------------------------------------------------------------------------


def test_zuko_odeint(field, noise):
    x = zuko.utils.odeint(TimeFirst(field), noise, 0.0, 1.0, atol=1e-8, rtol=1e-7)
    np.testing.assert_allclose(x.numpy(), exact(field, noise.numpy()), rtol=0, atol=1e-4)


def test_zuko_flow_has_the_density_and_samples_of_the_field(field, noise):
    """Its transforms lead from data to the base, so from t = 1 to t = 0."""
    transform = zuko.transforms.FreeFormJacobianTransform(TimeFirst(field), t0=1.0, t1=0.0, atol=1e-8, rtol=1e-7)
    base = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2).double(), torch.ones(2).double()), 1
    )
    flow = zuko.distributions.NormalizingFlow(transform, base)
    points = 0.5 * noise[:6]
    np.testing.assert_allclose(flow.log_prob(points).numpy(), field.log_density(points.numpy(), 1.0), atol=1e-3)
    np.testing.assert_allclose(transform.inv(noise).numpy(), exact(field, noise.numpy()), rtol=0, atol=1e-4)


# flow_matching ------------------------------------------------------------------------------------------------


def test_flow_matching_sample(field, noise):
    model = VelocityModel(field)
    assert isinstance(model, ModelWrapper)
    solver = ODESolver(velocity_model=model)
    euler = solver.sample(x_init=noise, step_size=0.05, method="euler", time_grid=ENDS)
    np.testing.assert_allclose(euler.numpy(), field.sample(noise.numpy(), steps=20), rtol=0, atol=1e-10)
    adaptive = solver.sample(x_init=noise, step_size=None, method="dopri5", rtol=1e-6, atol=1e-7, time_grid=ENDS)
    np.testing.assert_allclose(adaptive.numpy(), exact(field, noise.numpy()), rtol=0, atol=1e-3)


def test_flow_matching_extras(field, noise):
    label = torch.arange(16) % 3
    x = ODESolver(VelocityModel(field)).sample(
        x_init=noise, step_size=None, method="dopri5", rtol=1e-6, atol=1e-7, time_grid=ENDS, label=label, guidance=0.5
    )
    expected = exact(field, noise.numpy(), label=label.numpy(), guidance=0.5)
    np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=1e-4)


def test_flow_matching_likelihood(field, noise):
    def log_p0(x):
        return -0.5 * x.square().sum(1) - np.log(2 * np.pi)

    points = 0.5 * noise[:6]
    _, log_p = ODESolver(VelocityModel(field)).compute_likelihood(
        x_1=points,
        log_p0=log_p0,
        step_size=None,
        method="dopri5",
        rtol=1e-8,
        atol=1e-9,
        time_grid=ENDS.flip(0),
        exact_divergence=True,
    )
    np.testing.assert_allclose(log_p.numpy(), field.log_density(points.numpy(), 1.0), atol=1e-4)


def test_flow_matching_trains_towards_this_velocity():
    """What its `CondOTProbPath` asks a network for is, on average over the data, the field of schedule linear."""
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2)))
    x, t = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(3, 2), torch.full((3,), 0.4, dtype=torch.float64)
    x_0 = (x - 0.4 * data) / 0.6  # the noise with which each point of the data passes through x
    path = CondOTProbPath().sample(x_0=x_0, x_1=data, t=t)
    np.testing.assert_allclose(path.x_t.numpy(), x.numpy(), atol=1e-12)
    weight = torch.softmax(-0.5 * x_0.square().sum(1), 0)
    expected = (weight[:, None] * path.dx_t).sum(0)
    found = VelocityModel(VelocityField(data.numpy()))(x=x[:1], t=t[0])
    np.testing.assert_allclose(found[0].numpy(), expected.numpy(), rtol=1e-10)


# torchdyn -----------------------------------------------------------------------------------------------------


@pytest.fixture
def neural_ode():
    return without_dependencies("torchdyn.core").NeuralODE


def midpoint(field, x, times):
    """A path by the midpoint rule."""
    path = [x]
    for start, stop in pairwise(times):
        half = 0.5 * (stop - start)
        path.append(path[-1] + 2 * half * field(path[-1] + half * field(path[-1], start), start + half))
    return np.stack(path)


def test_torchdyn_takes_the_steps_of_the_field(neural_ode, field, noise):
    grid = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    for times in (grid, grid.flip(0)):
        path = neural_ode(TimeFirst(field), solver="euler").trajectory(noise, times)
        _, expected = field.sample(noise.numpy(), steps=times.numpy(), return_path=True)
        np.testing.assert_allclose(path.numpy(), expected, rtol=0, atol=1e-12)
        path = neural_ode(TimeFirst(field), solver="midpoint").trajectory(noise, times)
        np.testing.assert_allclose(path.numpy(), midpoint(field, noise.numpy(), times.numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["dopri5", "tsit5"])
def test_torchdyn_adaptive(neural_ode, field, noise, solver):
    model = neural_ode(TimeFirst(field), solver=solver, atol=1e-7, rtol=1e-7)
    x = model.trajectory(noise, ENDS)[-1]
    np.testing.assert_allclose(x.numpy(), exact(field, noise.numpy()), rtol=0, atol=1e-4)
    times, path = model(noise, ENDS)  # as a module in a network
    np.testing.assert_array_equal(times, ENDS)
    torch.testing.assert_close(path[-1], x)


def test_torchdyn_with_classes_in_float32(neural_ode, field, noise):
    label = np.arange(16) % 3
    model = neural_ode(TimeFirst(field, label=label, guidance=0.5), solver="dopri5", atol=1e-5, rtol=1e-5)
    x = model.trajectory(noise.float(), ENDS.float())[-1]
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), exact(field, noise.numpy(), label=label, guidance=0.5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sensitivity", ["autograd", "adjoint"])
def test_gradients_through_torchdyn(neural_ode, field, noise, sensitivity):
    grid = np.linspace(0.0, 1.0, 61)
    start, direction = noise[:3], torch.from_numpy(np.random.default_rng(2).normal(size=(3, 2)))
    ends = [midpoint(field, (start + sign * 1e-5 * direction).numpy(), grid)[-1] for sign in (1, -1)]
    expected = ((ends[0] - ends[1]) / 2e-5).sum()
    x = start.clone().requires_grad_()
    model = neural_ode(TimeFirst(field), solver="midpoint", sensitivity=sensitivity)
    model(x, torch.from_numpy(grid))[1][-1].sum().backward()
    # The adjoint goes back by steps of its own, with an error of theirs.
    np.testing.assert_allclose(
        float((x.grad * direction).sum()), expected, rtol=1e-7 if sensitivity == "autograd" else 1e-2
    )


# torchcfm -----------------------------------------------------------------------------------------------------


def cfm(sigma):
    """The path of `ConditionalFlowMatcher(sigma)`: noise of deviation sigma is added at every time."""
    return schedules.Custom(
        alpha=lambda t: math.sqrt((1 - t) ** 2 + sigma**2),
        beta=lambda t: t,
        d_alpha=lambda t: (t - 1) / math.sqrt((1 - t) ** 2 + sigma**2),
        d_beta=lambda t: 1.0,
    )


MATCHERS = {
    "ConditionalFlowMatcher": (0.0, "linear"),
    "ConditionalFlowMatcher with noise": (0.3, cfm(0.3)),
    "TargetConditionalFlowMatcher": (0.2, schedules.OptimalTransport(0.2)),
    "VariancePreservingConditionalFlowMatcher": (0.0, "cosine"),
}


@pytest.mark.parametrize("name", MATCHERS)
def test_torchcfm_trains_towards_this_velocity(name):
    """The field is the minimiser of the loss over what the package draws: with it the loss has no slope in any
    direction that is tried, within the standard error; a field that is wrong by a twentieth would show."""
    sigma, schedule = MATCHERS[name]
    matcher = getattr(without_dependencies("torchcfm"), name.split()[0])(sigma=sigma)
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 2)))
    field = VelocityField(data.numpy(), schedule=schedule)
    count = 200_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        chosen = data[torch.randint(5, (count,))]
        times = torch.full((count,), 0.6, dtype=torch.float64)
        t, x, target = matcher.sample_location_and_conditional_flow(torch.randn_like(chosen), chosen, times)
    velocity = VelocityModule(field)(x, t)

    def slope(velocity, direction):
        """In standard errors."""
        found = ((target - velocity) * direction).sum(1)
        return abs(float(found.mean() / found.std())) * math.sqrt(count)

    directions = [velocity, *(torch.cos(k * x + 0.5 * k) for k in range(5))]
    assert max(slope(velocity, direction) for direction in directions) < 4.0
    assert slope(1.05 * velocity, velocity) > 8.0


def test_torchcfm_conditional_flow_averages_to_the_field():
    """The same without chance: each point of the data sends one sample of noise through x."""
    matcher = without_dependencies("torchcfm").ConditionalFlowMatcher(sigma=0.0)
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2)))
    x, t = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(3, 2), torch.full((3,), 0.4, dtype=torch.float64)
    x_0 = (x - 0.4 * data) / 0.6
    _, reached, flow = matcher.sample_location_and_conditional_flow(x_0, data, t)
    np.testing.assert_allclose(reached.numpy(), x.numpy(), atol=1e-12)
    weight = torch.softmax(-0.5 * x_0.square().sum(1), 0)
    found = VelocityModule(VelocityField(data.numpy()))(x[:1], t[:1])
    np.testing.assert_allclose(found[0].numpy(), (weight[:, None] * flow).sum(0).numpy(), rtol=1e-10)


def test_torchcfm_samples_as_its_examples_do(neural_ode, field, noise):
    """By its wrapper of networks that take (x, t) in one tensor, and by torchdyn."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.velocity = VelocityModule(field)

        def forward(self, both):
            return self.velocity(both[:, :-1], both[:, -1].clamp(0.0, 1.0))

    wrapped = without_dependencies("torchcfm.utils").torch_wrapper(Network())
    times = torch.linspace(0, 1, 30, dtype=torch.float64)
    node = neural_ode(wrapped, solver="dopri5", sensitivity="adjoint", atol=1e-7, rtol=1e-7)
    with torch.no_grad():
        path = node.trajectory(noise, t_span=times)
    _, expected = field.sample(
        noise.numpy(), method="dopri5", steps=times.numpy(), rtol=1e-8, atol=1e-9, return_path=True
    )
    np.testing.assert_allclose(path.numpy(), expected, rtol=0, atol=1e-4)


# Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lambda f, t, x: TimeFirst(f)(t, x), lambda f, t, x: VelocityModel(f)(x=x, t=t)])
def test_what_is_refused(field, noise, call):
    for t in (torch.tensor(500.0), 999, -20.0, torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match=r"time t is .* 0 \(noise\) to 1 \(data\)"):
            call(field, t, noise)
    with pytest.raises(ValueError, match="x has shape"):
        call(field, noise[:, 0] * 0.0 + 0.5, torch.tensor(0.5))  # swapped
    with pytest.raises(ValueError, match="x has shape"):
        call(field, 0.5, noise[:, :1])
    with pytest.raises(ValueError, match="t has shape"):
        call(field, torch.full((3,), 0.5), noise)
    with pytest.raises(TypeError, match=r"state x is torch\.int64"):
        call(field, 0.5, noise.long())
    with pytest.raises(TypeError, match="state x is ndarray"):
        call(field, 0.5, noise.numpy())
    for t in (torch.ones(16).to_sparse(), torch.ones((), device="meta"), "a", None, 10**400):
        with pytest.raises(TypeError, match=r"t is .*; accepted are"):
            call(field, t, noise)
    with pytest.raises(TypeError, match="field is int"):
        TimeFirst(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label": True}, TypeError, "label has dtype bool; accepted are whole numbers"),
        ({"label": "a"}, TypeError, "label has dtype .*; accepted are whole numbers"),
        ({"label": 9}, ValueError, "label 9 does not occur"),
        ({"label": [0, 9]}, ValueError, "label 9 does not occur"),
        ({"label": [[0, 1]]}, ValueError, r"label has shape \(1, 2\)"),
        ({"guidance": 0.5}, ValueError, "guidance is given without label"),
        ({"label": 1, "guidance": float("nan")}, ValueError, "guidance is nan"),
        ({"label": 1, "guidance": 10**400}, ValueError, "guidance is a whole number of some 401 digits"),
        ({"label": 1, "guidance": torch.ones((), device="meta")}, TypeError, "guidance is tensor"),
    ],
)
def test_refused_before_the_solver_starts(field, options, error, message):
    with pytest.raises(error, match=message):
        TimeFirst(field, **options)


def test_times_that_overshoot_are_the_ends(field, noise):
    f = TimeFirst(field)
    torch.testing.assert_close(f(1.5, noise), f(1.0, noise), rtol=0, atol=0)
    torch.testing.assert_close(f(-0.5, noise), f(0.0, noise), rtol=0, atol=0)
