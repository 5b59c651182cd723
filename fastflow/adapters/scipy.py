"""A field as the right-hand side that SciPy's ODE solvers take: flat float64 states, or columns of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _arrays
from ..field import VelocityField
from ._asked import FAR, a_field, check_label, far_from_time

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
        times that are no number or too far outside of [0, 1] to be an overshoot.

    Raises:
        TypeError, ValueError: an argument that is not accepted; among them a start at t = 1 of a field without
            variance, where the distribution is a set of points and no flow out of it is defined.
    """
    event = a_field(field).event_shape
    size = int(np.prod(event))
    field.sample(np.empty((0, *event)), steps=1, t_span=t_span)  # which makes the checks of the interval
    check_label(field, label, guidance)
    if label is not None:
        label = np.array(_arrays.any_array("label", label))

    def fun(t: float, y: np.ndarray) -> np.ndarray:
        y = _arrays.real_array("y", y)
        if y.ndim not in (1, 2) or y.shape[0] % size:
            raise ValueError(
                f"y has shape {y.shape}; accepted is (B * {size},), B events of shape {event} one after another, or "
                f"(B * {size}, k) with k such states in columns"
            )
        if type(t) is not float:
            t = _arrays.real_array("t", t)
            if t.size != 1:
                raise ValueError(f"t has shape {t.shape}; accepted is one time for all points")
            t = float(t.reshape(()))
        if not -FAR <= t <= 1.0 + FAR:
            raise far_from_time(t)
        time = min(max(t, 0.0), 1.0)
        states = np.ascontiguousarray(y.T, dtype=np.float64).reshape(-1, *event)
        labels = label
        if label is not None and label.ndim and y.ndim == 2:
            labels = np.tile(label, y.shape[1])
        velocity = field.velocity(states, time, label=labels, guidance=guidance)
        return velocity.reshape(y.T.shape).T

    return fun
