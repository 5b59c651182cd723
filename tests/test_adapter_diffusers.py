"""A field as the network of diffusers' own schedulers and pipelines, against the field's samplers."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from fastflow import VelocityField
from fastflow.adapters.diffusers import FlowModel

SCHEDULES = ("linear", "cosine", "vp", "ve", "polynomial")


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=(40, 1, 2, 2))


@pytest.fixture
def noise():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(8, 1, 2, 2))).float()


def run(scheduler, model, sample, steps, **options):
    """The loop of every pipeline."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        sample = scheduler.step(model(sample, t, **options).sample, t, sample).prev_sample
    return sample.numpy()


def linear(data, **options):
    return VelocityField(data, schedule="linear", **options)


def grid(scheduler):
    """The field's times of the scheduler's noise levels."""
    return 1.0 - scheduler.sigmas.double().numpy()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("source", [{}, {"source_mean": 0.7, "source_variance": 2.0}])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_sampler_of_the_field(data, noise, schedule, source, shift):
    """Whatever schedule and source the field has: the scheduler has its own, which is the linear one."""
    model = FlowModel(VelocityField(data, variance=0.02, schedule=schedule, **source))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    found = run(scheduler, model, noise, 25)
    expected = linear(data, variance=0.02).sample(noise.double().numpy(), steps=grid(scheduler))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_heun_and_dpm_solver_come_to_the_exact_flow(data, noise):
    field = VelocityField(data, variance=0.02, schedule="cosine")
    exact = linear(data, variance=0.02).sample(noise.double().numpy(), method="dopri5", rtol=1e-6, atol=1e-7)
    heun = run(FlowMatchHeunDiscreteScheduler(), FlowModel(field), noise, 100)
    np.testing.assert_allclose(heun, exact, rtol=0, atol=0.01)
    dpm = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    np.testing.assert_allclose(run(dpm, FlowModel(field), noise, 100), exact, rtol=0, atol=0.02)


def test_stochastic_sampling_ends_on_data(data, noise):
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    found = run(scheduler, FlowModel(linear(data)), noise, 50).reshape(8, 4)
    assert np.linalg.norm(found[:, None] - data.reshape(1, 40, 4), axis=-1).min(axis=1).max() < 0.02


def test_sign_and_time(data, noise):
    field = linear(data, variance=0.02)
    model = FlowModel(field)
    for timestep in (1000.0, 731.0, 3.0, 0.0):
        output = model(noise.double(), torch.tensor(timestep)).sample.numpy()
        velocity = field.velocity(noise.double().numpy(), 1.0 - timestep / 1000)
        np.testing.assert_allclose(output, -velocity, rtol=1e-9, atol=1e-9)
    flux = FlowModel(field, num_train_timesteps=1)
    torch.testing.assert_close(flux(noise, torch.tensor(0.25)).sample, model(noise, torch.tensor(250.0)).sample)


def test_pipeline_runs_unchanged(data):
    pipeline = DDPMPipeline(unet=FlowModel(linear(data)), scheduler=FlowMatchEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    options = {"batch_size": 3, "num_inference_steps": 30, "output_type": "np"}
    images = pipeline(generator=torch.Generator().manual_seed(0), **options).images
    assert images.shape == (3, 2, 2, 1)
    start = torch.randn((3, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    sigmas = pipeline.scheduler.sigmas
    expected = linear(data).sample(start.double().numpy(), steps=1.0 - sigmas.double().numpy())
    np.testing.assert_allclose(images, (expected / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1), atol=1e-4)


def test_classes_and_guidance(data, noise):
    labels = np.arange(40) % 3
    field = VelocityField(data, variance=0.02, labels=labels, schedule="cosine")
    whole = linear(data, variance=0.02, labels=labels)
    z, t = noise.double(), torch.tensor(600.0)
    own = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    guided = FlowModel(field, guidance=0.5)(z, t, class_labels=own).sample
    expected = whole.velocity(z.numpy(), 0.4, label=own.numpy(), guidance=0.5)
    np.testing.assert_allclose(guided.numpy(), -expected, rtol=1e-9)
    # A pipeline that guides by itself evaluates a batch of which half has no class.
    model = FlowModel(field, null_label=1000)
    both = model(torch.cat([z, z]), t, class_labels=torch.cat([own, torch.full((8,), 1000)])).sample
    with_class, without = both.chunk(2)
    np.testing.assert_allclose(without.numpy(), -whole.velocity(z.numpy(), 0.4), rtol=1e-9)
    np.testing.assert_allclose((without + 1.5 * (with_class - without)).numpy(), -expected, rtol=1e-9)
    np.testing.assert_array_equal(FlowModel(field)(z, t, class_labels=2).sample, model(z, t, class_labels=2).sample)


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_gradient(data, noise, guidance):
    labels = np.arange(40) % 3
    field = VelocityField(data, labels=labels, schedule="vp", source_mean=0.3, source_variance=0.5)
    model = FlowModel(field, guidance=guidance, null_label=-1)
    own, t = torch.tensor([1, 2, -1]), torch.tensor([900.0, 500.0, 200.0])
    z = noise[:3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: model(z, t, class_labels=own, return_dict=False)[0], (z,), atol=1e-6)


def test_dtype_device_and_config(data, noise):
    model = FlowModel(linear(data))
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert model.to(torch.float16).dtype == torch.float16
    assert dict(model.config) == {"num_train_timesteps": 1000, "in_channels": 1, "out_channels": 1, "sample_size": 2}
    assert not list(model.parameters()) and not model.state_dict()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert model(noise.to(dtype), torch.tensor(500.0, dtype=dtype)).sample.dtype == dtype
    (output,) = model(noise, 500, return_dict=False)
    assert torch.is_tensor(output) and output.dtype == noise.dtype
    assert FlowModel(VelocityField(data.reshape(40, 4))).config == {"num_train_timesteps": 1000}


def test_what_is_refused(data, noise):
    model = FlowModel(linear(data))
    for timestep in (1001.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"timestep is .*from 1000 \(noise\) to 0 \(data\)"):
            model(noise, timestep)
    with pytest.raises(ValueError, match="sample has shape"):
        model(noise[0], 500)
    with pytest.raises(ValueError, match="3 noise levels for 8 samples"):
        model(noise, torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="timestep has shape"):
        model(noise, torch.ones(2, 4))
    with pytest.raises(TypeError, match="sample is ndarray"):
        model(noise.numpy(), 500)
    with pytest.raises(TypeError, match=r"sample is torch\.int64"):
        model(noise.long(), 500)
    with pytest.raises(ValueError, match="label"):
        model(noise, 500, class_labels=1)
    with pytest.raises(ValueError, match="noise level is 0"):
        model(noise.clone().requires_grad_(), 0).sample.sum().backward()
    with pytest.raises(ValueError, match="source_covariance"):
        FlowModel(VelocityField(data.reshape(40, 4), source_covariance=np.diag([1.0, 2, 3, 4])))
    with pytest.raises(ValueError, match="num_train_timesteps"):
        FlowModel(linear(data), num_train_timesteps=0)
    with pytest.raises(TypeError, match="field is str"):
        FlowModel("field")


@pytest.mark.parametrize("sigma", [0.5, 1e-2, 1e-4])
@pytest.mark.parametrize("source", [{"source_variance": 1e6}, {"source_variance": 1e-6}, {"source_mean": 1000.0}])
def test_sources_of_other_units_cost_no_digits(data, noise, source, sigma):
    """In float32, whatever the units and the place of the field's own source."""
    own, plain = VelocityField(data, **source), linear(data)
    chosen = torch.from_numpy(data[:8]).float()
    z = sigma * noise + (1.0 - sigma) * chosen
    found = FlowModel(own)(z, 1000.0 * sigma).sample.numpy()
    exact = -plain(z.double().numpy(), 1.0 - sigma)
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_train_timesteps": "a"}, "num_train_timesteps"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"null_label": "a"}, "null_label"),
        ({"null_label": 1.5}, "null_label"),
        ({"guidance": "a"}, "guidance"),
        ({"guidance": None}, "guidance"),
    ],
)
def test_options_are_checked_when_the_model_is_made(data, options, word):
    with pytest.raises((TypeError, ValueError), match=rf"^{word} "):
        FlowModel(linear(data), **options)


def test_classes_are_one_or_one_for_each(data, noise):
    model = FlowModel(linear(data, labels=np.arange(40) % 3))
    with pytest.raises(TypeError, match="class_labels has dtype float32; accepted are whole numbers"):
        model(noise, 500, torch.ones(8))
    with pytest.raises(TypeError, match="sample is NoneType"):
        model(None, 500, 1)
    with pytest.raises(ValueError, match=r"class_labels has shape \(3,\); accepted is one class, or one for each of 8"):
        model(noise, 500, class_labels=torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match=r"^timestep is 'a'; accepted"):
        model(noise, "a")
