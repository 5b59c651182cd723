"""A field as the velocity model of Meta's `flow_matching`.

    solver = ODESolver(VelocityModel(field))
    x = solver.sample(x_init=noise, step_size=0.01, method="midpoint")

Its solvers call `model(x=x, t=t, **extras)`, with time from 0 (noise) to 1 (data); its `CondOTScheduler` is the
schedule "linear".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._optional import require
from ..field import VelocityField
from .ode import velocity_near
from .torch import VelocityModule

if TYPE_CHECKING:
    import torch
    from flow_matching.utils import ModelWrapper
else:
    ModelWrapper = require("flow_matching.utils", "flow-matching").ModelWrapper

__all__ = ["VelocityModel"]


class VelocityModel(ModelWrapper):
    """The velocity as `model(x=x, t=t)`, for `ODESolver.sample` and `compute_likelihood`.

    Adaptive methods look past the ends of time; see `fastflow.adapters.ode`. Without variance there is no density at
    t = 1, where `compute_likelihood` starts.

    Args:
        field: the field.
    """

    def __init__(self, field: VelocityField):
        super().__init__(VelocityModule(field))

    def forward(self, x: torch.Tensor, t: Any, *, label: Any = None, guidance: float = 0.0) -> torch.Tensor:
        """The velocity at x and t, differentiable in x.

        Args:
            x: (B, *event) or one event, floating point.
            t: number or tensor, scalar, (B,) or (B, 1), clamped to [0, 1]; no gradient flows there.
            label: a class of the field's labels, or (B,) with one for each query; an extra of the solver's call.
            guidance: strength of guidance towards the label; an extra of the solver's call.

        Returns:
            Tensor of the shape, dtype and device of x.

        Raises:
            TypeError, ValueError: as `velocity_near` of `fastflow.adapters.ode`.
        """
        return velocity_near(self.model, x, t, label=label, guidance=guidance)
