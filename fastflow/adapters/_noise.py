"""The posterior of a noisy observation `z = a n + b x_f` with standard normal n: what diffusion samplers ask a model.

Each sampler has its own a and b (sigma and 1 in EDM, sigma and 1 - sigma in flow-matching schedulers), which depend
neither on a field's schedule nor on its source `x_i = m_i + sqrt(s_i) n`. For a field of any schedule,

    x = c z + alpha m_i = alpha x_i + beta x_f    where    alpha sqrt(s_i) = c a,    beta = c b,

so at the time with `alpha sqrt(s_i) / beta = a / b` the observations z and x tell the same: `E[x_f | z] = E[x_f | x]`
and `E[n | z] = (E[x_i | x] - m_i) / sqrt(s_i)`, of which `z = a E[n | z] + b E[x_f | z]`. Neither is computed by
dividing by a or b, so both are accurate at either end. As every schedule gives the same, the linear one is used, which
has all ratios: `c = 1 / (a / sqrt(s_i) + b)`, `t = beta = c b`.

Derivatives. `p(z | x_f)` is `N(b x_f, a^2 I)`, so `d E[x_f | z] / dz = (b / a^2) C` with `C = Cov(x_f | z)`, and
`d E[n | z] / dz = (1 - (b / a)^2 C) / a`. Both are symmetric, and one product with C serves both gradients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._optional import require
from ..field import VelocityField
from ._asked import a_field
from ._tensors import real_values, tensor

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch", "torch")


LARGEST_NOISE = 1e70
"""The largest noise level, beyond which squares leave the range of float64 (the field's own limit of magnitudes)."""


class NoisePosterior:
    """`E[n | z]` and `E[x_f | z]` of a field, differentiable in z.

    Args:
        field: a field whose source is isotropic.

    Raises:
        TypeError: field is no field.
        ValueError: its source has a covariance, so that no multiple of it is standard normal.
    """

    def __init__(self, field: VelocityField):
        source = a_field(field).source
        if source.variance is None:
            raise ValueError(
                "field has a source_covariance, and samplers start from standard normal noise; accepted is a field "
                "with source_variance"
            )
        self.field = field.with_schedule("linear")
        self._mean = source.mean if np.any(source.mean) else None
        self._deviation = math.sqrt(source.variance)

    def __call__(
        self,
        z: torch.Tensor,
        a: np.ndarray,
        b: np.ndarray,
        *,
        label: np.ndarray | None = None,
        free: np.ndarray | None = None,
        guidance: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`E[n | z]` and `E[x_f | z]`, both of the shape, dtype and device of z.

        Args:
            z: (B, *event), floating point, as `check` has it; half precision is computed in float32.
            a, b: factors of noise and data, not negative, float64, both 0-d or both (B,).
            label: (B,) classes, or None for all data.
            free: (B,) bool, with label: queries that see all data nevertheless.
            guidance: strength of guidance towards the label.
        """
        if a.ndim and a.shape != (len(z),):
            raise ValueError(f"there are {a.size} noise levels for {len(z)} samples; accepted is one, or one for each")
        wide = z if z.dtype == torch.float64 else z.float()
        noise, data = _Means.apply(wide, _Query(self, a, b, label, free, float(guidance)))
        return noise.to(z.dtype), data.to(z.dtype)

    def check(self, z: Any) -> None:
        """Raise TypeError or ValueError where z is not (B, *event) of dense floating point numbers."""
        if not isinstance(z, torch.Tensor) or not z.is_floating_point():
            found = z.dtype if isinstance(z, torch.Tensor) else type(z).__name__
            raise TypeError(f"the sample is {found}; accepted is a tensor of floating point numbers")
        if z.is_meta or z.is_nested or z.layout is not torch.strided:
            kind = "without values" if z.is_meta else "nested or sparse"
            raise TypeError(f"the sample is a tensor that is {kind}; accepted is a dense one")
        event = self.field.event_shape
        if z.ndim != 1 + len(event) or tuple(z.shape[1:]) != event:
            accepted = f"(batch, {', '.join(map(str, event))}) with the events of the field"
            raise ValueError(f"the sample has shape {tuple(z.shape)}; accepted is {accepted}")

    def place(self, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x, of the shape of z, and t, of the shape of a and b.

        x is in float64 where the source is not standard normal: in units of its own, or far from zero, the rounding of
        float32 would be seen in what is taken back to z.
        """
        scale = 1.0 / (a / self._deviation + b)
        t = np.minimum(scale * b, 1.0)
        x = column(scale, z) * z
        if self._mean is not None:
            x = x + column(1.0 - t, z) * self._mean
        standard = self._mean is None and self._deviation == 1.0
        return x.astype(z.dtype if standard else np.float64), t

    def normal(self, source: np.ndarray) -> np.ndarray:
        """Source points in units of standard normal noise."""
        return ((source if self._mean is None else source - self._mean) / self._deviation).astype(source.dtype)


class _Query(NamedTuple):
    """What is asked beside z; names as for `NoisePosterior`."""

    posterior: NoisePosterior
    a: np.ndarray
    b: np.ndarray
    label: np.ndarray | None
    free: np.ndarray | None
    guidance: float

    def parts(self) -> list[tuple[Any, np.ndarray | None]]:
        """Rows that see all data, with None, and those of a class, with theirs."""
        if self.label is None or self.free is None:
            return [(slice(None), self.label)]
        both = ((np.flatnonzero(self.free), None), (np.flatnonzero(~self.free), self.label[~self.free]))
        return [(rows, label) for rows, label in both if len(rows)]

    def means(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`E[n | z]`, `E[x_f | z]`."""
        x, t = self.posterior.place(z, self.a, self.b)
        noise, data = np.empty_like(z), np.empty_like(z)
        for rows, label in self.parts():
            options = {} if label is None else {"label": label, "guidance": self.guidance}
            times = t[rows] if t.ndim else t
            found = self.posterior.field.evaluate(x[rows], times, ("source_mean", "target_mean"), **options)
            noise[rows], data[rows] = self.posterior.normal(found["source_mean"]), found["target_mean"]
        return noise, data

    def gradient(self, z: np.ndarray, of_noise: np.ndarray, of_data: np.ndarray) -> np.ndarray:
        """The gradient in z, given those in the two means."""
        if not self.a.all():
            raise ValueError("the noise level is 0, where the posterior has no gradient; accepted is one above 0")
        field = self.posterior.field
        x, t = self.posterior.place(z, self.a, self.b)
        ratio, inverse = column(self.b / self.a, z), column(1.0 / self.a, z)
        along = (ratio * inverse * (of_data - ratio * of_noise)).astype(z.dtype)
        result = inverse * of_noise
        for rows, label in self.parts():
            times, u = t[rows] if t.ndim else t, along[rows]
            product = field.target_covariance_product(x[rows], times, u, label=label)
            if label is not None and self.guidance != 0.0:  # guided means are linear in those that they are made of
                rest = field.target_covariance_product(x[rows], times, u)
                product = (1.0 + self.guidance) * product - self.guidance * rest
            result[rows] += product
        return result.astype(z.dtype)


class _Means(torch.autograd.Function):
    """`_Query.means` with its gradient."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, query: _Query) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(z)
        ctx.query = query
        return tuple(torch.from_numpy(mean).to(z.device) for mean in query.means(z.numpy(force=True)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_noise: torch.Tensor, of_data: torch.Tensor) -> tuple[torch.Tensor, None]:
        (z,) = ctx.saved_tensors
        arrays = (tensor.numpy(force=True) for tensor in (z, of_noise, of_data))
        return torch.from_numpy(ctx.query.gradient(*arrays)).to(z.device), None


def column(factor: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Factors, 0-d or (B,), shaped to multiply (B, *event)."""
    return factor.reshape(-1, *(1,) * (z.ndim - 1))


def exact(name: str, value: Any) -> np.ndarray:
    """Real numbers, or a tensor of them, as float64; lists and numbers are not rounded on the way."""
    if not isinstance(value, torch.Tensor):
        value = tensor(name, value, torch.float64)
    return real_values(name, value).astype(np.float64)


def levels(name: str, value: Any, least: float, largest: float, meaning: str) -> np.ndarray:
    """Noise levels that a sampler gave, as 0-d or (B,) float64.

    Args:
        name: of the argument.
        value: number or tensor, of one value, (B,) or (B, 1, ..., 1).
        least, largest: what is accepted.
        meaning: what that is, for the message.

    Raises:
        TypeError: no number, or a tensor without values.
        ValueError: a value outside, or a shape with more than one axis.
    """
    array = exact(name, value)
    array = array.reshape(()) if array.size == 1 else array
    if array.size != max(array.shape, default=1):
        raise ValueError(f"{name} has shape {array.shape}; accepted is one number, or one for each sample")
    array = array.reshape(-1) if array.ndim else array
    inside = (array >= least) & (array <= largest)
    if not inside.all():
        raise ValueError(f"{name} is {np.atleast_1d(array)[np.argmin(inside)]:g}; accepted is {meaning}")
    return array
