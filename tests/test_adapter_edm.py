"""A field as the denoiser of EDM and k-diffusion samplers, against the closed form and the flow of the field.

The samplers of k-diffusion are its own, from requirements-no-deps.txt. EDM is no package: its sampler is written from
the paper (Karras et al. 2022, algorithms 1 and 2), with the calls that the published code makes.
"""

import importlib.util
import sys
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import without_dependencies

from fastflow import VelocityField, schedules
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


@pytest.fixture(scope="module")
def k_diffusion():
    """Its module `sampling`. The package as such imports its training code and much that this needs; the module
    itself imports torchvision, of which it uses nothing."""
    with pytest.MonkeyPatch.context() as patch:
        found = importlib.util.find_spec("k_diffusion")
        if found is not None:
            patch.setitem(sys.modules, "k_diffusion", importlib.util.module_from_spec(found))
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
        return without_dependencies("k_diffusion.sampling")


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


def straight(largest):
    """A schedule whose time is EDM's noise level, counted down in a straight line."""
    return schedules.Custom(alpha=lambda t: largest * (1.0 - t), beta=lambda t: 1.0 + 0.0 * t)


@pytest.mark.parametrize(("sampler", "ours"), [("sample_euler", "euler"), ("sample_heun", "heun")])
def test_k_diffusion_takes_the_steps_of_the_field(k_diffusion, data, noise, sampler, ours):
    """Both in the same variable: they differ by rounding. The last step of k-diffusion is one of Euler."""
    sigmas = k_diffusion.get_sigmas_karras(30, 0.01, 10.0).double()
    model = Denoiser(VelocityField(data, variance=0.02, schedule="cosine"))
    field = VelocityField(data, variance=0.02, schedule=straight(float(sigmas[0])))
    times = 1.0 - sigmas.numpy() / float(sigmas[0])
    to_data = getattr(k_diffusion, sampler)(model, 10.0 * noise, sigmas, disable=True)
    before = field.sample(10.0 * noise.numpy(), steps=times[:-1], method=ours)
    last = field.sample(before, steps=times[-2:], method="euler")
    np.testing.assert_allclose(to_data.numpy(), last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", ["sample_heun", "sample_dpm_2", "sample_lms", "sample_dpmpp_2m"])
def test_samplers_of_k_diffusion_arrive_where_the_flow_does(k_diffusion, data, noise, sampler):
    model = Denoiser(VelocityField(data, variance=0.02, schedule="cosine"))
    sigmas = k_diffusion.get_sigmas_exponential(120, 1e-3, 10.0).double()
    start = float(sigmas[0]) * noise
    found = getattr(k_diffusion, sampler)(model, start, sigmas, disable=True)
    expected = exact(data, start, float(sigmas[0]), variance=0.02)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=5e-3)


def test_stochastic_samplers_of_k_diffusion_end_on_data(k_diffusion, data, noise):
    model, sigmas = Denoiser(VelocityField(data)), k_diffusion.get_sigmas_karras(40, 0.01, 10.0)
    for sampler in (k_diffusion.sample_euler_ancestral, k_diffusion.sample_dpmpp_2m_sde):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = sampler(model, 10.0 * noise.float(), sigmas, disable=True)
        assert found.dtype == torch.float32
        distance = np.linalg.norm(found.numpy().reshape(8, 1, 4) - data.reshape(1, 40, 4), axis=-1).min(axis=1)
        assert distance.max() < 1e-3


def test_log_likelihood_of_k_diffusion(k_diffusion):
    """It differentiates the denoiser. In one dimension its estimate of the divergence is exact, and the density at the
    smallest level is a known mixture; at the largest it takes a normal one, off by (1 / sigma)^2 of data about 0."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 1, 1, 1))
    points -= points.mean()
    model = Denoiser(VelocityField(points, variance=0.05, schedule="cosine"))
    x = torch.from_numpy(rng.normal(size=(6, 1, 1, 1)))
    found, _ = k_diffusion.log_likelihood(model, x, 0.01, 200.0, atol=1e-8, rtol=1e-7)
    width = 0.05 + 0.01**2
    density = np.exp(-((x.numpy().reshape(6, 1) - points.reshape(1, 20)) ** 2) / (2 * width)).mean(axis=1)
    np.testing.assert_allclose(found.numpy(), np.log(density / np.sqrt(2 * np.pi * width)), rtol=0, atol=5e-4)


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


def ends_on(own, found):
    distance = np.linalg.norm(found.numpy().reshape(8, 1, 4) - own.reshape(-1, 4)[None], axis=-1).min(axis=1)
    return distance.max() < 0.02


def test_edm_passes_classes_on(data, noise, classes):
    model = Denoiser(VelocityField(data, labels=classes))
    assert ends_on(data[classes == 7], edm_sampler(model, noise, torch.eye(3)[[1] * 8]))


def test_k_diffusion_passes_classes_on(k_diffusion, data, noise, classes):
    model, sigmas = Denoiser(VelocityField(data, labels=classes)), k_diffusion.get_sigmas_karras(40, 0.01, 10.0)
    found = k_diffusion.sample_dpmpp_2m(model, 10.0 * noise, sigmas, extra_args={"label": 7}, disable=True)
    assert ends_on(data[classes == 7], found)


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
    with pytest.raises(TypeError, match="sample is NoneType"):
        labelled(None, 1.0, label=7)
    for x in (noise.to("meta"), noise.to_sparse()):
        with pytest.raises(TypeError, match="the sample is a tensor that is"):
            model(x, 1.0)
    for sigma in ("a", None, 1j, torch.ones(8).to_sparse(), torch.ones(8, device="meta")):
        with pytest.raises(TypeError, match=r"sigma is .*; accepted are"):
            model(noise, sigma)
        with pytest.raises(TypeError, match=r"t is .*; accepted are"):
            model.sigma_at(sigma)
    for t in (1.5, -0.1, float("nan"), [0.5, 2.0]):
        with pytest.raises(ValueError, match=r"t is .*; times must lie in \[0, 1\]"):
            model.sigma_at(t)
    for label in (True, 7.0, torch.ones(8, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"label has dtype .*; accepted are whole numbers"):
            labelled(noise, 1.0, label=label)
    with pytest.raises(ValueError, match=r"label has shape \(2,\); accepted is one class, or one for each of 8"):
        labelled(noise, 1.0, label=[7, 7])
    for label in ("a", {}, torch.ones(8, device="meta")):
        with pytest.raises(TypeError, match=r"label is .*; accepted are"):
            labelled(noise, 1.0, label=label)
        with pytest.raises(TypeError, match=r"class_labels is .*; accepted are"):
            labelled(noise, 1.0, label)
    with pytest.raises(ValueError, match="guidance is nan; accepted is a finite number"):
        Denoiser(labelled.field, guidance=float("nan"))
    with pytest.raises(ValueError, match="sigma_data is -1"):
        Denoiser(labelled.field, sigma_data=-1.0)


def test_one_hot_rows_in_half_precision(data, noise, classes):
    model, one_hot = Denoiser(VelocityField(data, labels=classes)), torch.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    torch.testing.assert_close(model(noise, 0.5, one_hot.bfloat16()), model(noise, 0.5, one_hot), rtol=0, atol=0)
