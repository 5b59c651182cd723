"""Likelihoods: the log density of a point, by following it along the flow to a time where the density is known.

Along a solution of `dx/dt = v(x, t)` the continuity equation (Gao 3.3, Khungurn Thm 4) makes the density fall as the
flow expands, `d/dt log p_t(x(t)) = -div v(x(t), t)`: the instantaneous change of variables. So the state is
`(x, A)` with `dA/dt = div v` and `A(t_1) = 0`, integrated from the time t_1 of x to another time t_0, and

    log p_1(x) = log p_0(x(t_0)) + A(t_0) = log p_0(x(t_0)) - int_{t_0}^{t_1} div v dt.

The divergence is exact and comes from the same pass over the data as the velocity; no trace estimator is involved. For
the field as it is, `VelocityField.log_density` gives the same number in closed form; this is for where none exists
(guidance), for what a solver makes of it, and as a test.

The integration is that of `fastflow.samplers`, on a state with one more value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays, samplers

if TYPE_CHECKING:
    from .field import VelocityField

METHODS = (*samplers.TABLEAUX, "dopri5")


class _Expansion(samplers._Run):
    """The flow and the integral of its divergence: states (B, D + 1), `A` in the last column."""

    def velocity(self, x: np.ndarray, t: float) -> np.ndarray:
        self.evaluations += self.batch
        guidance, label = self.options["guidance"], self.options["label"]
        slope = self._slope(x, t, label)
        if guidance != 0.0:  # the divergence is linear in the field
            slope = (1.0 + guidance) * slope - guidance * self._slope(x, t, None)
        return slope

    def _slope(self, state: np.ndarray, t: float, label: Any) -> np.ndarray:
        x = state[:, :-1].reshape(len(state), *self.field.event_shape)
        found = self.field.evaluate(x, t, ("velocity", "divergence"), label=label)
        slope = np.empty_like(state)
        slope[:, :-1] = found["velocity"].reshape(state[:, :-1].shape)
        slope[:, -1] = found["divergence"]
        return slope


def log_likelihood(
    field: VelocityField,
    x: Any,
    *,
    t: float | None = None,
    t_span: tuple[float, float] | None = None,
    steps: Any = 50,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    label: Any = None,
    guidance: float = 0.0,
    progress: bool = False,
    return_noise: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Log density of x by integrating the divergence; see `VelocityField.log_likelihood`, which this implements."""
    _check_method(method)
    times = _times(steps, t, t_span)
    rtol, atol = samplers._tolerance("rtol", rtol), samplers._tolerance("atol", atol)
    guidance = _arrays.real_number("guidance", guidance)
    if label is None and guidance != 0.0:
        raise ValueError("guidance is given without label; accepted is a class to guide towards")
    matrix, batch_shape, dtype = _arrays.query_matrix(x, field.event_shape, field._size)
    path = field._path(times, field._parts.whole)
    field._require_regular("log_likelihood", path)
    field._require_bounded(path)
    state = np.zeros((len(matrix), field._size + 1))
    state[:, :-1] = matrix
    with samplers._progress(progress, times, method) as show:
        run = _Expansion(
            field, matrix.reshape(-1, *field.event_shape), None, show, {"label": label, "guidance": guidance}
        )
        if method == "dopri5":
            state, _ = samplers._adaptive(run, state, times, False, False, rtol, atol)
        else:
            state, _ = samplers._fixed(run, state, times, False, False, samplers.TABLEAUX[method])
    end = np.ascontiguousarray(state[:, :-1]).reshape(-1, *field.event_shape)
    known = field.log_density(end, float(times[-1]), label=label)
    value = (known + state[:, -1]).reshape(batch_shape)
    if return_noise:
        return value, end.astype(dtype).reshape((*batch_shape, *field.event_shape))
    return value


def encode(
    field: VelocityField, x: Any, *, t: float | None = None, steps: Any = 50, method: str = "dopri5", **options: Any
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The noise of x; see `VelocityField.encode`, which this implements. `**options` are those of `samplers.sample`."""
    _check_method(method)
    times = _times(steps, t, None)
    _arrays.query_matrix(x, field.event_shape, field._size)  # names x in errors, where `sample` would name num_or_x0
    return samplers.sample(field, np.asarray(x), steps=times, method=method, **options)


def _times(steps: Any, t: Any, t_span: Any) -> np.ndarray:
    """The times of an integration from t (or as `t_span` or `steps` say), by default from 1 to 0."""
    if t is not None:
        if t_span is not None:
            raise ValueError("t and t_span are both given; accepted is one of them")
        t = _arrays.real_number("t", t)
        if not 0.0 < t <= 1.0:
            raise ValueError(f"t is {t}; accepted is a time above 0, at most 1 (0 = source, 1 = data)")
        t_span = (t, 0.0)
    elif t_span is None and isinstance(steps, int | np.integer):
        t_span = (1.0, 0.0)
    return samplers.time_grid(steps, t_span)


def _check_method(method: Any) -> None:
    accepted = ", ".join(METHODS)
    if not isinstance(method, str):
        raise TypeError(f"method is {type(method).__name__}; accepted is one of {accepted}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown here; accepted is one of {accepted}")
