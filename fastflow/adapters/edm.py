"""A field as the denoiser that EDM and k-diffusion samplers call: `model(x, sigma)`.

Their samples are `x = x_f + sigma n` with standard normal n (Karras et al. 2022), at whatever schedule the field has;
`fastflow.adapters._noise` says how that is the same thing. The denoiser is `E[x_f | x]`, exact at every sigma.

    samples = edm_sampler(Denoiser(field), latents)  # the sampler of EDM, unchanged
    samples = sample_dpmpp_2m(Denoiser(field), x, sigmas)  # one of k-diffusion
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import real_number, whole_numbers
from .._optional import require
from ..field import VelocityField
from ._noise import LARGEST_NOISE, NoisePosterior, exact, levels
from ._tensors import real_values, strength, tensor

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch", "torch")

__all__ = ["Denoiser"]


class Denoiser(torch.nn.Module):
    """The exact denoiser, with the attributes of an EDM network. It has no parameters.

    Args:
        field: a field with an isotropic source.
        guidance: strength of guidance towards the class, for samples that have one.
        sigma_data: the standard deviation of the data that EDM's preconditioning assumes; only kept, nothing here
            depends on it.

    Attributes:
        sigma_min, sigma_max: 0 and inf: every noise level is known, along whatever schedule the field has.
        sigma_data: as given.
        label_dim: number of classes, 0 without labels.
        img_channels, img_resolution: of a field whose events are square images (C, H, H), else None.

    Raises:
        TypeError: field is no field, or guidance no number.
        ValueError: the source of the field is not isotropic, or sigma_data not positive.
    """

    def __init__(self, field: VelocityField, *, guidance: float = 0.0, sigma_data: float = 0.5):
        super().__init__()
        self._posterior = NoisePosterior(field)
        self.field, self.guidance = field, real_number("guidance", strength(guidance))
        self.sigma_data = real_number("sigma_data", sigma_data, positive=True)
        self.sigma_min, self.sigma_max = 0.0, math.inf
        self.label_dim = len(field.classes)
        square = len(field.event_shape) == 3 and field.event_shape[1] == field.event_shape[2]
        self.img_channels, self.img_resolution = (
            (field.event_shape[0], field.event_shape[2]) if square else (None, None)
        )

    def forward(
        self, x: torch.Tensor, sigma: Any, class_labels: Any = None, force_fp32: bool = False, *, label: Any = None
    ) -> torch.Tensor:
        """`E[x_f | x_f + sigma n = x]`, differentiable in x where sigma > 0.

        Args:
            x: (B, *event), floating point.
            sigma: number or tensor, of one value, (B,) or (B, 1, ..., 1), at least 0 and finite.
            class_labels: as EDM gives them, one-hot rows (B, label_dim) or (1, label_dim), in the order of
                `field.classes`; a row of zeros, and None, is no class.
            force_fp32: taken for EDM's sake; results follow x.
            label: instead of class_labels, a class of the field or (B,) with one for each (`extra_args` of
                k-diffusion).

        Returns:
            Tensor of the shape, dtype and device of x.

        Raises:
            TypeError: x is no tensor of floating point numbers.
            ValueError: a shape, noise level or class that is not accepted.
        """
        self._posterior.check(x)
        sigma = levels("sigma", sigma, 0.0, LARGEST_NOISE, "a noise level, from 0 (data) up to large ones (noise)")
        free = None
        if class_labels is not None:
            if label is not None:
                raise ValueError("class_labels and label are both given; accepted is one of them")
            label, free = self._classes(class_labels, len(x))
        elif label is not None:
            label = real_values("label", label)
            if label.shape not in ((), (1,), (len(x),)):
                accepted = f"one class, or one for each of {len(x)} samples"
                raise ValueError(f"label has shape {label.shape}; accepted is {accepted}")
            label = np.broadcast_to(whole_numbers("label", label.reshape(-1)), len(x))
        one = np.ones_like(sigma)
        return self._posterior(x, sigma, one, label=label, free=free, guidance=self.guidance)[1]

    def round_sigma(self, sigma: Any) -> torch.Tensor:
        """The nearest noise level that the network knows: sigma itself, as a tensor."""
        return tensor("sigma", sigma)

    def sigma_at(self, t: Any) -> torch.Tensor:
        """The noise level along the field's own schedule, `alpha(t) sqrt(s_i) / beta(t)`.

        A state x of the field at t is the sample `(x - alpha m_i) / beta` at this level.

        Args:
            t: number or tensor in [0, 1].

        Returns:
            float64 tensor of the shape of t; inf where beta is 0.

        Raises:
            TypeError: t is no number.
            ValueError: a time outside of [0, 1].
        """
        times = exact("t", t)
        bad = ~((times >= 0.0) & (times <= 1.0))
        if bad.any():
            raise ValueError(f"t is {times[bad].flat[0]:g}; times must lie in [0, 1] (0 = source, 1 = data)")
        at = self.field.schedule(times)
        alpha, beta = torch.from_numpy(at.alpha), torch.from_numpy(at.beta)
        return alpha * math.sqrt(self.field.source.variance) / beta

    def _classes(self, one_hot: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Class of each row, and which rows have none."""
        rows = real_values("class_labels", one_hot)
        accepted = f"one-hot rows (batch, {self.label_dim}), one for each of the {self.label_dim} classes of the field"
        if rows.ndim != 2 or rows.shape[1] != self.label_dim or len(rows) not in (1, count) or not self.label_dim:
            raise ValueError(f"class_labels has shape {rows.shape}; accepted is {accepted}")
        if not (((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) <= 1).all()):
            raise ValueError(f"class_labels is not one-hot; accepted is {accepted}, or zeros for no class")
        rows = np.broadcast_to(rows, (count, self.label_dim))
        return np.array(self.field.classes)[rows.argmax(axis=1)], ~rows.any(axis=1)
