"""A field as the network of a diffusers pipeline with a flow-matching scheduler.

`FlowMatchEulerDiscreteScheduler`, its Heun sibling and solvers with `prediction_type="flow_prediction"` keep samples
`z = (1 - sigma) x_f + sigma n` with standard normal n, and step by `dz / dsigma`: sigma, which is
`timestep / num_train_timesteps`, runs from 1 (noise) to 0 (data), against the time of a field, and so does the sign:

    model output = E[n - x_f | z] = -velocity(z, 1 - sigma)   of schedule "linear" and a standard normal source.

A field of any other schedule or isotropic source gives the same; `fastflow.adapters._noise` says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import real_number, whole_numbers
from .._optional import require
from ..field import VelocityField
from ._noise import NoisePosterior, levels
from ._tensors import real_values, strength

if TYPE_CHECKING:
    import torch
    from diffusers.configuration_utils import FrozenDict
    from diffusers.models.modeling_outputs import Transformer2DModelOutput
else:
    torch = require("torch", "diffusers")
    FrozenDict = require("diffusers.configuration_utils", "diffusers").FrozenDict
    Transformer2DModelOutput = require("diffusers.models.modeling_outputs", "diffusers").Transformer2DModelOutput

__all__ = ["FlowModel"]


class FlowModel(torch.nn.Module):
    """The exact network for a flow-matching scheduler. It has no parameters.

        scheduler.set_timesteps(50)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample, t).sample, t, sample).prev_sample

    Args:
        field: a field with an isotropic source.
        num_train_timesteps: that of the scheduler. (Pipelines that divide the timestep before they call their
            network, as that of Flux does, need 1.)
        null_label: a class label that stands for no class, such as pipelines give for the half of a batch that their
            own guidance subtracts.
        guidance: strength of guidance towards the class, for samples that have one.

    Attributes:
        config: `num_train_timesteps`, and for events that are images (C, H, W) `in_channels`, `out_channels` and
            `sample_size` (one number where H = W), which pipelines read.
        dtype, device: what pipelines make their noise of; they follow `model.to(...)`, results follow the sample.

    Raises:
        TypeError: field is no field.
        ValueError: the source of the field is not isotropic, or num_train_timesteps is not positive.
    """

    def __init__(
        self,
        field: VelocityField,
        *,
        num_train_timesteps: int = 1000,
        null_label: int | None = None,
        guidance: float = 0.0,
    ):
        super().__init__()
        num_train_timesteps = real_number("num_train_timesteps", num_train_timesteps, positive=True)
        if num_train_timesteps.is_integer():
            num_train_timesteps = int(num_train_timesteps)
        if null_label is not None:
            null_label = int(whole_numbers("null_label", null_label, ()))
        self._posterior = NoisePosterior(field)
        self.field, self.null_label = field, null_label
        self.guidance = real_number("guidance", strength(guidance))
        config = {"num_train_timesteps": num_train_timesteps}
        if len(field.event_shape) == 3:
            channels, height, width = field.event_shape
            size = height if height == width else (height, width)
            config |= {"in_channels": channels, "out_channels": channels, "sample_size": size}
        self.config = FrozenDict(config)
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the noise that pipelines make."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the noise that pipelines make."""
        return self._like.device

    def forward(
        self, sample: torch.Tensor, timestep: Any, class_labels: Any = None, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """`E[n - x_f | sample]`, differentiable in the sample where timestep > 0.

        Args:
            sample: (B, *event), floating point.
            timestep: number or tensor, of one value or (B,), one of the scheduler's `timesteps`: from
                num_train_timesteps (noise) to 0 (data).
            class_labels: None for all data; or a class of the field's labels, or (B,) with one for each.
            return_dict: return an object with the attribute `sample` instead of a tuple of one tensor.

        Returns:
            Tensor of the shape, dtype and device of sample.

        Raises:
            TypeError: sample is no tensor of floating point numbers.
            ValueError: a shape, timestep or class that is not accepted.
        """
        self._posterior.check(sample)
        last = self.config.num_train_timesteps
        meaning = f"one of the scheduler's timesteps, from {last} (noise) to 0 (data)"
        sigma = levels("timestep", timestep, 0.0, last, meaning) / last
        label = free = None
        if class_labels is not None:
            label = real_values("class_labels", class_labels)
            if label.size not in (1, len(sample)):
                accepted = f"one class, or one for each of {len(sample)} samples"
                raise ValueError(f"class_labels has shape {label.shape}; accepted is {accepted}")
            label = np.broadcast_to(whole_numbers("class_labels", label.reshape(-1)), len(sample))
            free = None if self.null_label is None else label == self.null_label
        noise, data = self._posterior(sample, sigma, 1.0 - sigma, label=label, free=free, guidance=self.guidance)
        output = noise - data
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)
