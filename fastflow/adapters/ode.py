"""A field as the right-hand side that ODE solvers of PyTorch call.

Solvers disagree on the order of state and time, and on what they pass beside. `TimeFirst` is called as `f(t, x)`:
torchdiffeq, zuko, and torchdyn (and with it torchcfm, whose examples wrap their networks in the same way).
`fastflow.adapters.flow_matching` is called as `f(x=x, t=t)`.

Time runs from 0 (noise) to 1 (data), as the examples of these tools have it; integrate from 1 to 0 for the way back.

Solvers that choose their steps look past the end of the time span, and interpolate back. No velocity is defined there,
so times beyond an end are taken as that end: what a solver returns inside the span does not depend on it but by its
error control, which may then shorten the last step.

Gradients in x flow through the steps; times are taken as constants, so nothing is learned here about a grid of times.
The adaptive methods of `torchdiffeq.odeint` record how they choose their first step from the state, which is then an
error of the gradient, small as that step is: `odeint_adjoint`, or a first step of your own
(`options={"first_step": 1e-3}`), has none.

Two methods of torchdyn 1.0.6 go wrong with any velocity that depends on time: "rk4" gives its stages the times of
others, and an adaptive method that is sent from 1 to 0 starts with a velocity of the wrong sign. Its "euler" and
"midpoint" are right both ways, its adaptive ones from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._optional import require
from ..field import VelocityField
from ._asked import FAR, check_label, far_from_time
from ._tensors import strength, tensor
from .torch import VelocityModule

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch", "torch")

__all__ = ["TimeFirst", "velocity_near"]


class TimeFirst(VelocityModule):
    """The velocity as `f(t, x)`.

        odeint(TimeFirst(field), x, torch.tensor([0.0, 1.0]))  # torchdiffeq

    Args:
        field: the field.
        label: a class of the field's labels, or (B,) with one for each query.
        guidance: strength of guidance towards the label.

    Raises:
        TypeError, ValueError: field is no field, label none of its classes, or guidance no number or without label.
    """

    def __init__(self, field: VelocityField, *, label: Any = None, guidance: float = 0.0):
        super().__init__(field)
        self.label, self.guidance = label, strength(guidance)
        check_label(field, label, self.guidance)

    def forward(self, t: Any, x: torch.Tensor, args: Any = None) -> torch.Tensor:
        """The velocity at x and t, differentiable in x.

        Args:
            t: number or tensor, scalar, (B,) or (B, 1), clamped to [0, 1]; no gradient flows there.
            x: (B, *event) or one event, floating point.
            args: what torchdyn passes along, ignored.

        Returns:
            Tensor of the shape, dtype and device of x.

        Raises:
            TypeError: x is no tensor of floating point numbers.
            ValueError: t is too far outside [0, 1] to be an overshoot, or x and t have other shapes, as when they are
                swapped.
        """
        return velocity_near(super().forward, x, t, label=self.label, guidance=self.guidance)


def velocity_near(velocity: Callable[..., torch.Tensor], x: torch.Tensor, t: Any, **options: Any) -> torch.Tensor:
    """A velocity at the time of [0, 1] that is nearest to t.

    Args:
        velocity: called as `velocity(x, t, **options)`.
        x: the state, of floating point numbers.
        t: number or tensor.
        **options: `label` and `guidance`.

    Raises:
        TypeError: x is no tensor of floating point numbers.
        ValueError: t is not finite, or further outside of [0, 1] than solvers look ahead.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"the state x is {found}; accepted is a tensor of floating point numbers")
    t = tensor("t", t, torch.float64)
    if t.is_meta or t.is_complex():
        raise TypeError(f"the time t is a tensor of {t.dtype} on {t.device}; accepted are real numbers with values")
    near = (t >= -FAR) & (t <= 1.0 + FAR)
    if not bool(near.all()):
        raise far_from_time(t[~near].flatten()[0].item())
    return velocity(x, t.detach().clamp(0.0, 1.0), **options)
