"""VelocityField: a data set, validated once, whose exact velocity is evaluated many times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _arrays, samplers, schedules
from .backends import Points, choose
from .limit import LOGIT_BLOCK, limit_moments, nearest
from .moments import Moments
from .path import Path, path_at
from .quantities import QUANTITIES, Model
from .schedules import Schedule


class VelocityField:
    """The exact optimal velocity field of flow matching for a finite data set.

    The source is `x_i ~ N(m_i, s_i I)`, the target `x_f ~ sum_j C_j N(mu_j, s_f I)` over the data points `mu_j`, and
    `x_t = alpha(t) x_i + beta(t) x_f`. The velocity is `v(x, t) = E[alpha' x_i + beta' x_f | x_t = x]` (Gao 3.2,
    Fan 46): what a network trained to zero loss would return.

    Time runs from 0 (source, noise) to 1 (target, data). Variances are variances, not standard deviations.

    Args:
        data: (N, *event) real array or memory map, N >= 1. float32 and float64 in C order are used in place, and
            must not be changed while the field is in use; float16, bfloat16 and 8-bit integers are converted to
            float32, other integers to float64.
        weights: (N,) masses `C_j >= 0`, normalised inside; equal by default.
        variance: variance `s_f >= 0` of every data point; 0 is the plain data set.
        source_mean: `m_i`, a scalar or one event.
        source_variance: variance `s_i > 0` of the source.
        schedule: name or `Schedule`; see `fastflow.schedules`.
        scale, offset: the points are `scale * data + offset`.
        backend: "auto", "native", "numba" or "numpy"; "auto" takes the first of these that can run, or the one
            that the environment variable FASTFLOW_BACKEND names.
        num_threads: threads per call, at least 1; by default FASTFLOW_NUM_THREADS or the number of usable cores.
            Results do not depend on it, bit for bit.

    Raises:
        TypeError: an argument is not of real numbers.
        ValueError: a shape, value or name that is not accepted, or an environment override that cannot be honoured.
        MemoryError: not enough memory.
    """

    def __init__(
        self,
        data: Any,
        *,
        weights: Any = None,
        variance: float = 0.0,
        source_mean: Any = 0.0,
        source_variance: float = 1.0,
        schedule: str | Schedule = "linear",
        scale: float = 1.0,
        offset: float = 0.0,
        backend: str = "auto",
        num_threads: int | None = None,
    ):
        self.schedule = schedules.get(schedule)
        choice = choose(backend, num_threads)
        scale, offset = _arrays.real_number("scale", scale), _arrays.real_number("offset", offset)
        target_variance = _arrays.real_number("variance", variance, minimum=0.0)
        source_variance = _arrays.real_number("source_variance", source_variance, minimum=0.0)
        if source_variance == 0.0:
            raise ValueError("source_variance is 0.0; accepted is a finite number above zero")
        matrix, self.event_shape = _arrays.data_matrix(data, scale, offset)
        self.num_points, self._size = matrix.shape
        log_mass = _arrays.log_mass(weights, self.num_points)
        mean = _arrays.event_vector("source_mean", source_mean, self.event_shape, self._size)
        self._model = Model(mean, source_variance, target_variance, self._size)
        self._choice = choice
        self._points = Points(matrix, log_mass, mean)
        self._prepared = choice.backend.prepare(self._points, choice.isa, choice.num_threads)

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._choice.name

    @property
    def backend_reason(self) -> str:
        """Why this backend was chosen."""
        return self._choice.reason

    @property
    def isa(self) -> str | None:
        """Instruction set in use, or None where the backend has no choice of one."""
        return self._choice.isa

    def __repr__(self) -> str:
        isa = f" ({self.isa})" if self.isa else ""
        return (
            f"VelocityField({self.num_points} points of shape {self.event_shape}, schedule={self.schedule!r}, "
            f"variance={self._model.target_variance:g}, backend={self.backend!r}{isa})"
        )

    # Quantities -----------------------------------------------------------------------------------------------

    def __call__(self, x: Any, t: Any, *, out: np.ndarray | None = None) -> np.ndarray:
        """Same as `velocity`."""
        return self.velocity(x, t, out=out)

    def velocity(self, x: Any, t: Any, *, out: np.ndarray | None = None) -> np.ndarray:
        """The optimal velocity `E[alpha' x_i + beta' x_f | x]` (Gao 3.2, Fan 46).

        Args:
            x: (B, *event) or one event, real and finite.
            t: scalar, (B,) or (B, 1), in [0, 1].
            out: where to put the result; shape and dtype of the result.

        Returns:
            Array of the shape and dtype of x (float64 for integer x). At t = 1 without variance this is the finite
            limit `alpha' m_i + beta' x` (Fan 9).
        """
        return self._evaluate(x, t, ("velocity",), out)["velocity"]

    def target_mean(self, x: Any, t: Any) -> np.ndarray:
        """`E[x_f | x]`, the denoiser (Fan 21); at t = 1 without variance the nearest data point (Gao 4.11)."""
        return self._evaluate(x, t, ("target_mean",))["target_mean"]

    def source_mean(self, x: Any, t: Any) -> np.ndarray:
        """`E[x_i | x]`, the noise prediction (Fan 21); at t = 1 without variance its value `m_i` (Fan 9)."""
        return self._evaluate(x, t, ("source_mean",))["source_mean"]

    def score(self, x: Any, t: Any) -> np.ndarray:
        """`grad_x log p_t(x)`, shape and dtype of x.

        Raises ValueError at t = 1 without variance, where `p_1` is a sum of point masses and has no score.
        """
        return self._evaluate(x, t, ("score",))["score"]

    def log_density(self, x: Any, t: Any) -> np.ndarray:
        """`log p_t(x)` in nats (Gao 4.3), (B,); at t = 1 without variance +inf on a data point and -inf elsewhere."""
        return self._evaluate(x, t, ("log_density",))["log_density"]

    def entropy(self, x: Any, t: Any) -> np.ndarray:
        """Entropy of the posterior weights, `-sum_j w_j log w_j` in nats, (B,)."""
        return self._evaluate(x, t, ("entropy",))["entropy"]

    def effective_sample_size(self, x: Any, t: Any) -> np.ndarray:
        """`1 / sum_j w_j^2`, between 1 and N, (B,)."""
        return self._evaluate(x, t, ("effective_sample_size",))["effective_sample_size"]

    def evaluate(self, x: Any, t: Any, quantities: Sequence[str] = ("velocity",)) -> dict[str, np.ndarray]:
        """Several quantities from one pass over the data, by name.

        Args:
            x, t: as for `velocity`.
            quantities: names out of velocity, target_mean, source_mean, score, log_density, entropy,
                effective_sample_size.

        Returns:
            dict from name to array, each as the method of that name returns it.
        """
        return self._evaluate(x, t, quantities)

    # Posterior weights ----------------------------------------------------------------------------------------

    def weights(self, x: Any, t: Any) -> np.ndarray:
        """The posterior weights `w_j(x, t)` (Fan 32), dense, (B, N) float64. Each row sums to one."""
        matrix, batch_shape, _, path = self._queries(x, t)
        coefficients = path.kernel_coefficients()
        weights = self._prepared.logits(matrix, coefficients, 0, self.num_points)
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=1, keepdims=True)
        for row, (index, limit) in self._limits(matrix, coefficients, path):
            weights[row] = 0.0
            weights[row, index] = limit
        return weights.reshape(*batch_shape, self.num_points)

    def top_k(self, x: Any, t: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k data points of largest posterior weight, from one pass and without the B x N weights.

        Args:
            x, t: as for `velocity`.
            k: how many, 1 to N.

        Returns:
            `(indices, weights)`, both (B, k), int64 and float64, largest weight first; equal weights in the order
            of their indices. The weights are those among all N points, so they sum to at most one.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise TypeError(f"k is {k!r}; accepted is a whole number from 1 to {self.num_points}")
        if not 1 <= k <= self.num_points:
            raise ValueError(f"k is {k}; accepted is a whole number from 1 to {self.num_points}")
        matrix, batch_shape, _, path = self._queries(x, t)
        count = len(matrix)
        step = max(k, LOGIT_BLOCK // max(count, 1))
        coefficients = path.kernel_coefficients()
        best = np.empty((count, 0))
        indices = np.empty((count, 0), dtype=np.int64)
        largest, total = np.full((count, 1), -np.inf), np.zeros((count, 1))
        for start in range(0, self.num_points, step):
            stop = min(start + step, self.num_points)
            block = self._prepared.logits(matrix, coefficients, start, stop)
            raised = np.maximum(largest, block.max(axis=1, keepdims=True))
            total = total * np.exp(largest - raised) + np.exp(block - raised).sum(axis=1, keepdims=True)
            largest = raised
            best = np.concatenate((best, block), axis=1)
            indices = np.concatenate((indices, np.broadcast_to(np.arange(start, stop), block.shape)), axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]  # earlier points come first among equals
            best, indices = np.take_along_axis(best, order, 1), np.take_along_axis(indices, order, 1)
        weights = np.exp(best - largest) / total
        for row, (index, limit) in self._limits(matrix, coefficients, path):
            others = indices[row][~np.isin(indices[row], index)]
            order = np.argsort(-limit, kind="stable")
            indices[row] = np.concatenate((index[order], others))[:k]
            weights[row] = np.concatenate((limit[order], np.zeros(len(others))))[:k]
        return indices.reshape(*batch_shape, k), weights.reshape(*batch_shape, k)

    # Partial results ------------------------------------------------------------------------------------------

    def moments(self, x: Any, t: Any) -> Moments:
        """Posterior moments of x under this field's data, to be merged with those of other parts (Fan 22-26).

        The masses of a field sum to one: give a part that holds the share q of the whole as `moments.scaled(q)`.
        """
        matrix, batch_shape, dtype, path = self._queries(x, t)
        moments = self._moments(matrix, path, True, True)
        shape = (*batch_shape, *self.event_shape)
        return Moments(
            log_total=moments.log_total.reshape(batch_shape),
            mean=moments.mean.reshape(shape).astype(dtype, copy=False),
            residual=moments.residual.reshape(shape).astype(dtype, copy=False),
            entropy=moments.entropy.reshape(batch_shape),
            collision=moments.collision.reshape(batch_shape),
        )

    def finish(
        self, moments: Moments, x: Any, t: Any, quantities: Sequence[str] = ("velocity",)
    ) -> dict[str, np.ndarray]:
        """Turn (merged) moments of the queries x at times t into quantities, as `evaluate` does for its own.

        Args:
            moments: of these x and t; the fields that the quantities read must be there.
            x, t, quantities: as for `evaluate`.
        """
        matrix, batch_shape, dtype, path = self._queries(x, t)
        self._check_quantities(quantities, path)
        shapes = {"log_total": batch_shape, "mean": np.shape(x), "residual": np.shape(x)}
        flat = {}
        for name in Moments.__slots__:
            value = getattr(moments, name)
            if value is not None:
                if np.shape(value) != shapes.get(name, batch_shape):
                    raise ValueError(
                        f"moments.{name} has shape {np.shape(value)}; for this x it is {shapes.get(name, batch_shape)}"
                    )
                value = np.reshape(value, matrix.shape if name in ("mean", "residual") else len(matrix))
            flat[name] = value
        for quantity in quantities:
            rule = QUANTITIES[quantity]
            needed = ("mean", "residual") * rule.mean + ("entropy", "collision") * rule.spread
            for name in needed:
                if flat[name] is None:
                    raise ValueError(f"moments.{name} is None; {quantity} needs it")
        return self._finish(Moments(**flat), path, quantities, batch_shape, dtype)

    # Sampling -------------------------------------------------------------------------------------------------

    def sample(
        self,
        num_or_x0: Any,
        *,
        steps: Any = 50,
        method: str = "euler",
        t_span: tuple[float, float] | None = None,
        seed: int | np.random.Generator | None = None,
        progress: bool = False,
        callback: samplers.Callback | None = None,
        return_path: bool = False,
        rtol: float = 1e-5,
        atol: float = 1e-6,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Follow the flow `dx = v(x, t) dt`: from noise to samples, or from data to noise.

        Without variance the samples end on data points, and the last step into t = 1 holds the posterior as it is at
        the step's start; see `fastflow.samplers`.

        Args:
            num_or_x0: how many starting points to draw from the marginal at the first time (at t = 0, for most
                schedules, the source), or the starting points: (B, *event) or one event.
            steps: number of equal steps, at least 1; or the times themselves, (T,), T >= 2, strictly increasing or
                strictly decreasing (then `t_span` must be left out).
            method: "euler", "heun", "rk4" (1, 2 and 4 evaluations a step, errors of that order in the step), or
                "dopri5", SciPy's adaptive Dormand-Prince pair in float64, which chooses its own steps for the batch
                as a whole; `steps` then only says at which times the path is given.
            t_span: first and last time, (0, 1) by default; (1, 0) runs from data to noise.
            seed: whole number or `numpy.random.Generator` for the starting points. The same number gives the same
                samples, bit for bit, for any number of threads.
            progress: show a progress bar (tqdm, from the extra "progress").
            callback: called as `callback(step, t, x)` after each step (for dopri5, each accepted one), with the
                number of the step from 0, the time reached, and a read-only view of the states there. What it
                returns is ignored; an exception ends the integration.
            return_path: return the states at all times.
            rtol, atol: relative and absolute tolerance of dopri5, above zero; the others do not read them.

        Returns:
            The final states, shaped as the starting points; or, with `return_path`, `(times, path)` of shapes (T,)
            and (T, B, *event), `path[0]` being the start. The dtype is that of the starting points (float64 for
            integers); drawn ones are float32 where the field works on float32 data, else float64.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: a value that is not accepted; among them a start at t = 1 of a field without variance, where
                the distribution is a set of points and no flow out of it is defined.
            RuntimeError: dopri5 could not meet its tolerances.
            ImportError: `progress` without tqdm.
        """
        return samplers.sample(
            self,
            num_or_x0,
            steps=steps,
            method=method,
            t_span=t_span,
            seed=seed,
            progress=progress,
            callback=callback,
            return_path=return_path,
            rtol=rtol,
            atol=atol,
        )

    # Inside ---------------------------------------------------------------------------------------------------

    def _queries(self, x: Any, t: Any) -> tuple[np.ndarray, tuple[int, ...], np.dtype, Path]:
        """Checked queries as a matrix, their batch shape and result dtype, and the path at their times."""
        matrix, batch_shape, dtype = _arrays.query_matrix(x, self.event_shape, self._size)
        t = _arrays.query_times(t, batch_shape)
        path = path_at(self.schedule, t, self._model.source_variance, self._model.target_variance)
        return matrix, batch_shape, dtype, path

    def _moments(self, matrix: np.ndarray, path: Path, mean: bool, spread: bool) -> Moments:
        coefficients = path.kernel_coefficients()
        moments = self._prepared.moments(matrix, coefficients, mean, spread)
        if path.singular is False or not np.any(path.singular):
            return moments
        singular = np.broadcast_to(path.singular, len(matrix))
        return limit_moments(moments, singular, self._prepared, self._points, matrix, coefficients)

    def _limits(self, matrix: np.ndarray, coefficients: np.ndarray, path: Path):
        """Pairs of row and (indices, weights) of the queries where D = 0."""
        rows = np.flatnonzero(np.broadcast_to(path.singular, len(matrix)))
        if not len(rows):
            return ()
        some = np.ascontiguousarray(np.broadcast_to(coefficients, (3, len(matrix)))[:, rows])
        return zip(rows, nearest(self._prepared, self._points, matrix[rows], some), strict=True)

    def _check_quantities(self, quantities: Sequence[str], path: Path) -> tuple[bool, bool]:
        """Whether the mean and the spread moments are needed; unknown names and undefined values raise."""
        if isinstance(quantities, str):
            raise TypeError(f"quantities is the string {quantities!r}; accepted is a sequence of names")
        mean = spread = False
        for name in quantities:
            rule = QUANTITIES.get(name)
            if rule is None:
                raise ValueError(f"quantity {name!r} is unknown; known are {', '.join(QUANTITIES)}")
            if rule.regular and np.any(path.singular):
                raise ValueError(
                    f"{name} does not exist at t = 1 with variance 0, where the density is a sum of point masses; "
                    "accepted are t < 1, or a field with variance > 0"
                )
            mean |= rule.mean
            spread |= rule.spread
        if "velocity" in quantities and self._model.source_mean is not None and not np.all(np.isfinite(path.d_alpha)):
            raise ValueError(
                f"the velocity of schedule {self.schedule.name} with non-zero source_mean is unbounded at t = 1; "
                "accepted is t < 1"
            )
        return mean, spread

    def _evaluate(
        self, x: Any, t: Any, quantities: Sequence[str], out: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        matrix, batch_shape, dtype, path = self._queries(x, t)
        mean, spread = self._check_quantities(quantities, path)
        if out is not None:
            _arrays.output_array(out, (*batch_shape, *self.event_shape), dtype)
        moments = self._moments(matrix, path, mean, spread)
        results = self._finish(moments, path, quantities, batch_shape, dtype)
        if out is not None:
            name = quantities[0]
            np.copyto(out, results[name])
            results[name] = out
        return results

    def _finish(
        self,
        moments: Moments,
        path: Path,
        quantities: Sequence[str],
        batch_shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> dict[str, np.ndarray]:
        results = {}
        for name in quantities:
            value = QUANTITIES[name].compute(moments, path, self._model)
            if value.ndim == 2:
                value = value.astype(dtype, copy=False).reshape((*batch_shape, *self.event_shape))
            else:
                value = value.reshape(batch_shape)
            results[name] = value
        return results
