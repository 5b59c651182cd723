"""A field as the right-hand side that SciPy's ODE solvers take: flat float64 states, or columns of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _arrays
from ..field import VelocityField

__all__ = ["ode_function"]


def ode_function(
    field: VelocityField, *, t_span: tuple[float, float] = (0.0, 1.0), label: Any = None, guidance: float = 0.0
) -> Callable[[float, np.ndarray], np.ndarray]:
    """The right-hand side `fun(t, y)` of `dx/dt = v(x, t)` (Gao 3.2, Fan 46) for `scipy.integrate.solve_ivp`.

    For example `solve_ivp(ode_function(field), (0, 1), x0.reshape(-1))` with x0 of shape (B, *event). The final points
    are `solution.y[:, -1].reshape(x0.shape)`. Works with `vectorized=True` too.

    An adaptive solver chooses its steps for all B points together. Some probe past the end of the interval, where
    nothing is defined: times are clamped to [0, 1] there. Without variance the velocity at t = 1 is not what the flow
    tends to there; adaptive solvers take small steps beside it and arrive, fixed steps should end before.

    Args:
        field: the field.
        t_span: the interval that the solver will be given, for the checks that a solver does not make: two different
            times in [0, 1], in either direction, the first of them with a flow out of it.
        label: a class of the field's `labels`, or (B,) with one for each point. None: all data.
        guidance: strength, with `label`, as for `VelocityField.evaluate`.

    Returns:
        `fun(t, y)`, y of shape (B * D,), D the number of values in an event, or (B * D, k), k states in columns; the
        result has the shape of y and is float64. It raises TypeError or ValueError for a y of another kind, and for
        times that are no number.

    Raises:
        TypeError, ValueError: an argument that is not accepted; among them a start at t = 1 of a field without
            variance, where the distribution is a set of points and no flow out of it is defined.
    """
    if not isinstance(field, VelocityField):
        raise TypeError(f"field is {type(field).__name__}; accepted is a VelocityField")
    event = field.event_shape
    size = int(np.prod(event))
    # A sampler without points makes the checks of the interval, of the class and of the guidance.
    one_class = label if label is None or np.ndim(label) == 0 else np.empty(0, np.int64)
    field.sample(np.empty((0, *event)), steps=1, t_span=t_span, label=one_class, guidance=guidance)

    def fun(t: float, y: np.ndarray) -> np.ndarray:
        y = _arrays.real_array("y", y)
        if y.ndim not in (1, 2) or y.shape[0] % size:
            raise ValueError(
                f"y has shape {y.shape}; accepted is (B * {size},), B events of shape {event} one after another, or "
                f"(B * {size}, k) with k such states in columns"
            )
        time = float(t)
        if time == time:  # NaN is left for the field to refuse
            time = min(max(time, 0.0), 1.0)
        states = np.ascontiguousarray(y.T, dtype=np.float64).reshape(-1, *event)
        labels = label
        if one_class is not label and y.ndim == 2:
            labels = np.tile(label, y.shape[1])
        velocity = field.velocity(states, time, label=labels, guidance=guidance)
        return velocity.reshape(y.T.shape).T

    return fun
