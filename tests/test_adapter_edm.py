"""A field as the denoiser of EDM and k-diffusion samplers, against the closed form and the flow of the field.

k-diffusion requires torchvision and half a dozen more, and EDM is no package: the samplers here are written from the
papers (Karras et al. 2022, algorithms 1 and 2; Lu et al. 2022, DPM-Solver++(2M)), with the calls that the published
code makes.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fastflow import VelocityField
from fastflow.adapters.edm import Denoiser

SCHEDULES = ("linear", "cosine", "vp", "ve", "polynomial", "optimal_transport")


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=(40, 1, 2, 2))


@pytest.fixture
def noise():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(8, 1, 2, 2)))


def closed_form(x, sigma, data, variance=0.0):
    """`E[x_f | x_f + sigma n = x]` by its definition."""
    points, x = data.reshape(len(data), -1), x.reshape(len(x), -1)
    spread = sigma**2 + variance
    residual = x[:, None] - points[None]
    logit = -(residual**2).sum(-1) / (2 * spread)
    weight = np.exp(logit - logit.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return (weight[..., None] * (points[None] + variance / spread * residual)).sum(1).reshape(-1, *data.shape[1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "options", [{}, {"variance": 0.02}, {"variance": 0.02, "source_mean": 1.5, "source_variance": 2.5}]
)
def test_denoiser_is_the_closed_form(data, noise, schedule, options):
    model = Denoiser(VelocityField(data, schedule=schedule, **options))
    for sigma in (0.0, 0.002, 0.1, 0.7, 5.0, 80.0, 1e4):
        x = torch.from_numpy(data[:8]) + sigma * noise + (0.01 if sigma == 0.0 else 0.0)
        expected = closed_form(x.numpy(), max(sigma, 1e-6), data, options.get("variance", 0.0))
        np.testing.assert_allclose(model(x, sigma).numpy(), expected, rtol=0, atol=1e-8)


def test_sigma_of_each_sample(data, noise):
    model = Denoiser(VelocityField(data))
    sigma = torch.tensor([0.1, 1.0, 2.0, 0.5, 80.0, 0.1, 0.3, 1.0], dtype=torch.float64)
    found = model(noise, sigma)
    torch.testing.assert_close(found, torch.cat([model(x[None], s) for x, s in zip(noise, sigma, strict=True)]))
    torch.testing.assert_close(model(noise, sigma.reshape(-1, 1, 1, 1)), found, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
def test_states_of_the_field_in_the_terms_of_edm(data, noise, schedule):
    field = VelocityField(data, schedule=schedule, source_mean=0.5, source_variance=2.0)
    model = Denoiser(field)
    for t in (0.1, 0.5, 0.95):
        at = field.schedule(t)
        x = noise.numpy()
        sample = torch.from_numpy((x - at.alpha * 0.5) / at.beta)
        np.testing.assert_allclose(model(sample, model.sigma_at(t)).numpy(), field.target_mean(x, t), rtol=0, atol=1e-9)


# Samplers -------------------------------------------------------------------------------------------------------


def edm_sampler(net, latents, class_labels=None, num_steps=18, churn=0.0, sigma_max=80.0, seed=0):
    """Algorithms 1 (churn 0) and 2 of Karras et al. (2022), with rho = 7 and the calls of the published code."""
    random = torch.Generator().manual_seed(seed)
    low, high = max(0.002, net.sigma_min), min(sigma_max, net.sigma_max)
    step = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    times = (high ** (1 / 7) + step * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    times = torch.cat([net.round_sigma(times), times.new_zeros(1)])
    x = latents.double() * times[0]
    for index, (t, stop) in enumerate(pairwise(times)):
        gamma = min(churn / num_steps, 2**0.5 - 1)
        raised = net.round_sigma(t + gamma * t)
        x = x + (raised**2 - t**2).sqrt() * torch.randn(x.shape, generator=random, dtype=torch.float64)
        slope = (x - net(x, raised, class_labels).double()) / raised
        end = x + (stop - raised) * slope
        if index < num_steps - 1:
            slope = 0.5 * slope + 0.5 * (end - net(end, stop, class_labels).double()) / stop
            end = x + (stop - raised) * slope
        x = end
    return x


def dpm_solver_pp_2m(model, x, sigmas, **extra_args):
    """DPM-Solver++(2M) of Lu et al. (2022) for alpha = 1, in h = log(sigma_i / sigma_{i+1}); k-diffusion's calls."""
    s_in, before, last_h = x.new_ones([len(x)]), None, None
    for sigma, stop in pairwise(sigmas):
        denoised = model(x, sigma * s_in, **extra_args)
        h = torch.log(sigma / stop)
        best = denoised if before is None or stop == 0 else denoised + h / (2 * last_h) * (denoised - before)
        x = (stop / sigma) * x - torch.expm1(-h) * best
        before, last_h = denoised, h
    return x


def exact(data, x, sigma, **options):
    """The end of the flow from x at a noise level: by the schedule linear, where it is x / (1 + sigma)."""
    return VelocityField(data, **options).sample(
        x.numpy() / (1 + sigma), t_span=(1 / (1 + sigma), 1.0), method="dopri5", rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
def test_heun_sampler_of_edm(data, noise, schedule):
    model = Denoiser(VelocityField(data, variance=0.02, schedule=schedule))
    found = edm_sampler(model, noise, num_steps=200)
    np.testing.assert_allclose(found.numpy(), exact(data, 80.0 * noise, 80.0, variance=0.02), rtol=0, atol=5e-3)


def test_stochastic_sampler_of_edm_ends_on_data(data, noise):
    found = edm_sampler(Denoiser(VelocityField(data)), noise, num_steps=40, churn=20.0).numpy().reshape(8, 4)
    assert np.linalg.norm(found[:, None] - data.reshape(1, 40, 4), axis=-1).min(axis=1).max() < 1e-3


def test_dpm_solver_of_k_diffusion(data, noise):
    model = Denoiser(VelocityField(data, variance=0.02, schedule="cosine"))
    sigmas = torch.cat([torch.logspace(1, -3, 120, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    found = dpm_solver_pp_2m(model, 10.0 * noise, sigmas)
    np.testing.assert_allclose(found.numpy(), exact(data, 10.0 * noise, 10.0, variance=0.02), rtol=0, atol=5e-3)


# Classes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def classes():
    return np.array([7, -2, 30])[np.arange(40) % 3]


def test_one_hot_classes_guidance_and_none(data, noise, classes):
    field = VelocityField(data, variance=0.02, labels=classes)
    model, guided = Denoiser(field), Denoiser(field, guidance=0.5)
    assert model.label_dim == 3 and field.classes == (-2, 7, 30)
    one_hot = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    one_hot[6:] = 0.0
    own, without = model(noise, 0.5, one_hot), model(noise, 0.5)
    for row, label in enumerate((-2, 7, 30, -2, 7, 30)):
        expected = closed_form(noise[row : row + 1].numpy(), 0.5, data[classes == label], 0.02)
        np.testing.assert_allclose(own[row].numpy(), expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(own[6:], without[6:])
    torch.testing.assert_close(guided(noise, 0.5, one_hot), own + 0.5 * (own - without))
    torch.testing.assert_close(model(noise, 0.5, one_hot[:1]), model(noise, 0.5, label=-2))
    torch.testing.assert_close(model(noise, 0.5, torch.zeros(1, 3)), without)


def test_samplers_pass_classes_on(data, noise, classes):
    field = VelocityField(data, labels=classes)
    model, own = Denoiser(field), data[classes == 7].reshape(-1, 4)
    one_hot = torch.eye(3)[[1] * 8]
    sigmas = torch.cat([torch.logspace(1, -2, 40, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    for found in (edm_sampler(model, noise, one_hot), dpm_solver_pp_2m(model, 10.0 * noise, sigmas, label=7)):
        distance = np.linalg.norm(found.numpy().reshape(8, 1, 4) - own[None], axis=-1).min(axis=1)
        assert distance.max() < 0.02


# The rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_gradient(data, noise, classes, guidance):
    field = VelocityField(data, labels=classes, schedule="cosine", source_mean=0.3, source_variance=0.5)
    model = Denoiser(field, guidance=guidance)
    one_hot, sigma = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]]), torch.tensor([0.3, 1.0, 20.0])
    x = noise[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, sigma, one_hot), (x,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: model(x, 0.5), (x,), atol=1e-6)


def test_attributes_of_an_edm_network(data, noise):
    model = Denoiser(VelocityField(data), sigma_data=0.7)
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.0, float("inf"), 0.7)
    assert (model.img_resolution, model.img_channels, model.label_dim) == (2, 1, 0)
    sigma = torch.tensor([0.1, 3.0])
    assert model.round_sigma(sigma) is sigma and model.round_sigma(3.0) == torch.tensor(3.0)
    assert not list(model.parameters()) and not model.state_dict()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert model(noise.to(dtype), torch.tensor(1.0, dtype=dtype), None, force_fp32=True).dtype == dtype
    flat = Denoiser(VelocityField(data.reshape(40, 4)))
    assert flat.img_resolution is None and flat.img_channels is None


def test_what_is_refused(data, noise, classes):
    model = Denoiser(VelocityField(data))
    for sigma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"sigma is .*; accepted is a noise level"):
            model(noise, sigma)
    with pytest.raises(ValueError, match="3 noise levels for 8 samples"):
        model(noise, torch.ones(3))
    with pytest.raises(ValueError, match="sample has shape"):
        model(noise[0], 1.0)
    with pytest.raises(TypeError, match=r"sample is torch\.int64"):
        model(noise.long(), 1.0)
    with pytest.raises(ValueError, match="0 classes"):
        model(noise, 1.0, torch.eye(3)[:1])
    labelled = Denoiser(VelocityField(data, labels=classes))
    with pytest.raises(ValueError, match="class_labels has shape"):
        labelled(noise, 1.0, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="not one-hot"):
        labelled(noise, 1.0, torch.full((8, 3), 0.5))
    with pytest.raises(ValueError, match="both given"):
        labelled(noise, 1.0, torch.eye(3)[:1], label=7)
    with pytest.raises(ValueError, match="noise level is 0"):
        model(noise.clone().requires_grad_(), 0.0).sum().backward()
    with pytest.raises(ValueError, match="source_covariance"):
        Denoiser(VelocityField(data.reshape(40, 4), source_covariance=np.diag([1.0, 2, 3, 4])))
    with pytest.raises(TypeError, match="field is ndarray"):
        Denoiser(data)
