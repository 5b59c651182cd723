"""VelocityField: a data set, validated once, whose exact velocity is evaluated many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, likelihood, mixtures, quick, samplers, schedules, stochastic, training
from ._interop import follows
from .backends import Points, Tangent, Want, choose, choose_again
from .backends.cores import threads
from .model import Model, factorise, target_range
from .moments import NAMES, VECTORS, Moments, checked
from .parts import Group, Part, Parts, largest_weights
from .path import Path, path_at
from .posterior import Posterior, ends_of_path, needs_noise
from .quantities import PRODUCTS, QUANTITIES, Quantity
from .schedules import Schedule

# Attributes of a field that hold what a backend has prepared, which stays in its process.
_PREPARED = ("_choice", "_parts", "_posterior", "_quick_velocity")

# Weights that underflow to zero are meant, also where the caller has set NumPy to raise for underflow.
_quiet = np.errstate(under="ignore")


class VelocityField:
    """The exact optimal velocity field of flow matching for a finite data set.

    The source is `x_i ~ N(m_i, s_i I)`, the target `x_f ~ sum_j C_j N(mu_j, s_f I)` over the data points `mu_j`, and
    `x_t = alpha(t) x_i + beta(t) x_f`. The velocity is `v(x, t) = E[alpha' x_i + beta' x_f | x_t = x]` (Gao 3.2,
    Fan 46): what a network trained to zero loss would return.

    Time runs from 0 (source, noise) to 1 (target, data). Variances are variances, not standard deviations.

    Values that are computed with have a range, so that no square leaves that of float64: points, queries and
    `source_mean` are at most 1e70 in magnitude, variances lie between 1e-80 and 1e80 (or are 0, for the data), and
    alpha and beta are at most 1e10. Others raise ValueError.

    Arrays may be NumPy's, tensors of PyTorch, arrays of JAX or of any library that speaks DLPack. Results are of the
    library of `x`, on its device, where the docstrings say array; what lies on an accelerator is copied over and back,
    with one warning. Through a tensor that requires grad, `velocity` without `subset`, `exclude` and `out` records its
    gradient in x (`fastflow.adapters.torch`); other methods take it detached, or under `torch.no_grad()`.

    A field can be copied and pickled. Its data travel with it (those of a memory map too, as an array), and where it
    arrives they are prepared again, for the same backend, instruction set and number of threads; if these cannot run
    there, for the best that can, which `backend_reason` tells.

    Args:
        data: (N, *event) real array or memory map, N >= 1. float64, float32, float16, bfloat16, uint8 and int8 in C
            order are used in place, and must not be changed while the field is in use (the numba backend alone copies
            all but the first two, to float32); others are converted to float64.
        weights: (N,) masses `C_j >= 0`, normalised inside; equal by default.
        variance: variance `s_f >= 0` of every data point, one number or (N,), one for each; 0 is the plain data set.
        covariance: instead of `variance`, covariances of the data points, symmetric positive semi-definite matrices
            over the D values of an event: (D, D) shared or (N, D, D). Factorised once, here.
        source_mean: `m_i`, a scalar or one event.
        source_variance: variance `s_i > 0` of the source.
        source_covariance: instead of `source_variance`, (D, D), symmetric positive definite.
        schedule: name or `Schedule`; see `fastflow.schedules`.
        labels: (N,) whole numbers, the class of each point, for `label=` in the calls.
        scale, offset: the points are `scale * data + offset`, which is exact in the native and numpy backends and is
            never formed: images of uint8 stay that in memory. (numba rounds points of narrow types to float32.)
        backend: "auto", "native", "numba" or "numpy"; "auto" takes the first of these that can run, or the one
            that the environment variable FASTFLOW_BACKEND names.
        num_threads: threads per call, 1 to 1024; by default FASTFLOW_NUM_THREADS or the number of physical cores
            that this process may use, within the limits of its control group. Results do not depend on it, bit for bit.

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
        variance: Any = 0.0,
        covariance: Any = None,
        source_mean: Any = 0.0,
        source_variance: float = 1.0,
        source_covariance: Any = None,
        schedule: str | Schedule = "linear",
        labels: Any = None,
        scale: float = 1.0,
        offset: float = 0.0,
        backend: str = "auto",
        num_threads: int | None = None,
    ):
        self._schedule = schedules.get(schedule)
        choice = choose(backend, num_threads)
        scale, offset = _arrays.real_number("scale", scale), _arrays.real_number("offset", offset)
        source_variance = _arrays.source_variance(source_variance)
        stored, self._dtype, self.event_shape = _arrays.data_matrix(data, scale, offset)
        self.num_points, self._size = stored.matrix.shape
        log_mass = _arrays.log_mass(weights, self.num_points)
        mean = _arrays.event_vector("source_mean", source_mean, self.event_shape, self._size)
        if labels is not None:
            labels = _arrays.whole_numbers("labels", labels, (self.num_points,)).copy()
        target = _arrays.variances(variance, self.num_points)
        own = None if isinstance(target, float) else target
        points = Points(stored.matrix, log_mass, mean, variance=own, scale=stored.scale, offset=stored.offset)
        model = Model(mean, source_variance, target if isinstance(target, float) else target_range(target), self._size)
        if covariance is not None or source_covariance is not None:
            points, model = self._with_covariances(points, model, target, covariance, source_covariance)
        self._choice = choice
        self._parts = Parts(points, choice, model, labels)

    def _with_covariances(
        self, points: Points, model: Model, variance: Any, covariance: Any, source_covariance: Any
    ) -> tuple[Points, Model]:
        """The points and the model in the frame of full covariances."""
        size = self._size
        if covariance is None:
            target = variance * np.eye(size) if isinstance(variance, float) else variance[:, None, None] * np.eye(size)
        elif not isinstance(variance, float) or variance != 0.0:
            raise ValueError("variance and covariance are both given; accepted is one of them")
        else:
            target = _arrays.covariance("covariance", covariance, size, self.num_points)
        if source_covariance is not None:
            if model.source_variance != 1.0:
                raise ValueError("source_variance and source_covariance are both given; accepted is one of them")
            source_covariance = _arrays.covariance("source_covariance", source_covariance, size, None)
        found = factorise(target, source_covariance)
        values, frame, mean = found.values, found.frame, model.source_mean
        values = np.where(values < _arrays.SMALLEST_VARIANCE, 0.0, values)  # what is left by rounding
        if frame is not None:
            plain = points.data.dtype in (np.float32, np.float64) and (points.scale, points.offset) == (1.0, 0.0)
            data = points.data if plain else points.rows(slice(None))
            data = np.ascontiguousarray(frame.enter(data, "vector"))
            _arrays.require_moderate("data in units of the source", data)
            points = points._replace(data=data, scale=1.0, offset=0.0)
            mean = None if mean is None else np.ascontiguousarray(frame.enter(mean, "vector"))
            if mean is not None:
                _arrays.require_moderate("source_mean in units of the source", mean)
        range_ = target_range(values)
        if range_.smallest == range_.largest:  # the same in all directions of the frame
            points = points._replace(source_mean=mean, variance=None, rotation=None)
            return points, model._replace(source_mean=mean, target=range_.largest, frame=frame)
        rotation = found.rotation
        if size == 1:
            values, rotation = values[:, 0], None
        points = points._replace(source_mean=mean, variance=values, rotation=rotation)
        return points, model._replace(source_mean=mean, target=range_, frame=frame)

    @classmethod
    def from_mixture(cls, gmm: Any, **options: Any) -> VelocityField:
        """The field whose target is a Gaussian mixture that scikit-learn fitted.

        Args:
            gmm: a fitted `GaussianMixture` or `BayesianGaussianMixture` of any `covariance_type`, or what has the
                same `weights_`, `means_`, `covariances_`. Its means (K, D) become the points; "spherical" one
                variance for each, "tied" one shared covariance, "diag" and "full" a covariance for each.
            **options: as for `VelocityField`, but for those that the mixture determines.

        Returns:
            The field; `log_density(x, 1)` is the log density of the mixture with these parameters, which for
            `GaussianMixture` is `gmm.score_samples(x)`. (That of `BayesianGaussianMixture` averages over parameters.)

        Raises:
            TypeError: gmm is no such estimator, or an option is one that it determines.
            ValueError: gmm is not fitted.
        """
        return mixtures.from_mixture(cls, gmm, **options)

    def with_schedule(self, schedule: str | Schedule) -> VelocityField:
        """The field of the same source and data along another schedule. Both share the data, also as prepared.

        Args:
            schedule: name or `Schedule`; see `fastflow.schedules`.

        Returns:
            The field; this one does not change.

        Raises:
            TypeError, ValueError: schedule is neither a `Schedule` nor the name of one.
        """
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, _schedule=schedules.get(schedule))
        new.__dict__.pop("_quick_velocity", None)
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in _PREPARED}
        parts, choice = self._parts, self._choice
        kept = (parts.points, parts.model, parts.labels)
        return {**state, "kept": kept, "choice": (choice.name, choice.isa, choice.num_threads, choice.reason)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        points, model, labels = state.pop("kept")
        self._choice = choose_again(*state.pop("choice"))
        self.__dict__.update(state)
        self._parts = Parts(points, self._choice, model, labels)

    @property
    def schedule(self) -> Schedule:
        """Schedule of the path."""
        return self._schedule

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

    @property
    def source(self) -> Source:
        """Mean and variance of the source, `Source(mean, variance)`, in the caller's coordinates."""
        mean, variance, frame = self._model.source_mean, self._model.source_variance, self._model.frame
        if frame is not None:
            mean = None if mean is None else frame.leave(mean, "vector")
            variance = None if frame.scale is None else variance * frame.scale
        return Source(np.zeros(self.event_shape) if mean is None else mean.reshape(self.event_shape).copy(), variance)

    @property
    def classes(self) -> tuple[int, ...]:
        """The different labels of the points in increasing order; empty without labels."""
        return self._parts.known

    def __repr__(self) -> str:
        isa = f" ({self.isa})" if self.isa else ""
        target = self._model.target
        width = f"{target:g}" if isinstance(target, float) else f"{target.smallest:g} to {target.largest:g}"
        return (
            f"VelocityField({self.num_points} points of shape {self.event_shape}, schedule={self.schedule!r}, "
            f"variance={width}, backend={self.backend!r}{isa})"
        )

    # Quantities -----------------------------------------------------------------------------------------------
    #
    # All take `label`, `subset` and `exclude`, which say what data a query sees:
    #   label    a class, or one for each query: only the points of that class
    #   subset   indices, or a mask (N,): only these points
    #   exclude  an index, or one for each query: without that point

    def __call__(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """Same as `velocity`."""
        return self.velocity(x, t, **options)

    @follows("x")
    def velocity(self, x: Any, t: Any, *, out: np.ndarray | None = None, **options: Any) -> np.ndarray:
        """The optimal velocity `E[alpha' x_i + beta' x_f | x]` (Gao 3.2, Fan 46).

        Args:
            x: (B, *event) or one event, real and finite.
            t: scalar, (B,) or (B, 1), in [0, 1].
            out: where to put the result; shape and dtype of the result, in memory of the CPU. It may be x, but must
                not share memory with the field's data.
            **options: `label`, `subset`, `exclude`, `guidance`, `num_threads` as for `evaluate`.

        Returns:
            Array of the shape and dtype of x (float64 for integer x). At t = 1 without variance this is the finite
            limit `alpha' m_i + beta' x` (Fan 9). What exceeds the range of that dtype becomes infinite (or
            NaN, where infinities meet): for float16 from 65520 on in magnitude, which velocities and scores near t = 1
            easily are; for float32 from 3.4e38 on.
        """
        if out is None and not options:
            found = self._quick_velocity(x, t)
            if found is not None:
                return found
        return self._evaluate(x, t, ("velocity",), out=out, **options)["velocity"]

    @cached_property
    def _quick_velocity(self) -> Callable[[Any, Any], np.ndarray | None]:
        """The short way of plain calls (see quick.py); it says None where the general one is to be taken."""
        return quick.velocity_at(self._parts.whole, self._schedule, self.event_shape, self.backend)

    @follows("x")
    def target_mean(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`E[x_f | x]`, the denoiser (Fan 21); at t = 1 without variance the nearest data point (Gao 4.11)."""
        return self._evaluate(x, t, ("target_mean",), **options)["target_mean"]

    @follows("x")
    def source_mean(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`E[x_i | x]`, the noise prediction (Fan 21); at t = 1 without variance its value `m_i` (Fan 9)."""
        return self._evaluate(x, t, ("source_mean",), **options)["source_mean"]

    @follows("x")
    def score(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`grad_x log p_t(x)`, shape and dtype of x.

        Raises ValueError at t = 1 without variance, where `p_1` is a sum of point masses and has no score.
        """
        return self._evaluate(x, t, ("score",), **options)["score"]

    @follows("x")
    def log_density(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`log p_t(x)` in nats (Gao 4.3), (B,); at t = 1 without variance +inf on a data point and -inf elsewhere."""
        return self._evaluate(x, t, ("log_density",), **options)["log_density"]

    @follows("x")
    def entropy(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """Entropy of the posterior weights, `-sum_j w_j log w_j` in nats, (B,)."""
        return self._evaluate(x, t, ("entropy",), **options)["entropy"]

    @follows("x")
    def effective_sample_size(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`1 / sum_j w_j^2`, between 1 and N, (B,)."""
        return self._evaluate(x, t, ("effective_sample_size",), **options)["effective_sample_size"]

    @follows("x")
    def velocity_variance(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`tr Cov(v_s | x)`, the variance of the conditional velocity `alpha' x_i + beta' x_f` given x (Wu 3), (B,).

        Its average over x_t is what remains of the conditional flow-matching loss at the optimum (Zhang 7). Refused at
        t = 1 without variance, where it jumps.
        """
        return self._evaluate(x, t, ("velocity_variance",), **options)["velocity_variance"]

    @follows("x")
    def divergence(self, x: Any, t: Any, **options: Any) -> np.ndarray:
        """`div_x v(x, t)`, exact, (B,). Refused at t = 1 without variance, where it is infinite."""
        return self._evaluate(x, t, ("divergence",), **options)["divergence"]

    @follows("x")
    def evaluate(
        self,
        x: Any,
        t: Any,
        quantities: Sequence[str] = ("velocity",),
        *,
        label: Any = None,
        subset: Any = None,
        exclude: Any = None,
        guidance: float = 0.0,
        num_threads: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Several quantities from one pass over the data, by name.

        Args:
            x, t: as for `velocity`.
            quantities: names out of velocity, target_mean, source_mean, score, log_density, entropy,
                effective_sample_size, velocity_variance, divergence.
            label: a class of the field's `labels`, or (B,) with one for each query: only its points count, their
                weights normalised among themselves. None: all points.
            subset: (n,) indices of different points, or an (N,) mask: only these count.
            exclude: an index, or (B,) with one for each query: this point does not count (leave one out).
            guidance: g, with `label`: `(1 + g) q(x | label) - g q(x)` in place of each of velocity, target_mean,
                source_mean and score (others are refused). Both come from one pass.
            num_threads: threads of this call, 1 to 1024; None: as the field was told (see also `fastflow.threads`).

        Returns:
            dict from name to array, each as the method of that name returns it. A query's results do not depend on the
            queries beside it, bit for bit; but batches of up to six queries may be computed in another way than larger
            ones, with results that differ by rounding.
        """
        options = {"label": label, "subset": subset, "exclude": exclude, "guidance": guidance}
        return self._evaluate(x, t, quantities, num_threads=num_threads, **options)

    # Products with matrices -----------------------------------------------------------------------------------

    @follows("x")
    def jvp(self, x: Any, t: Any, u: Any, **options: Any) -> np.ndarray:
        """`(dv/dx) u`: how the velocity changes along u, without forming the Jacobian.

        Args:
            x, t: as for `velocity`. Refused at t = 1 without variance.
            u: direction, of the shape of x.
            **options: `label`, `subset`, `exclude` as for `evaluate`.

        Returns:
            Array of the shape and dtype of x.
        """
        return self._product("jvp", x, t, u, **options)

    @follows("x")
    def vjp(self, x: Any, t: Any, u: Any, **options: Any) -> np.ndarray:
        """`(dv/dx)^T u`, the gradient of `u . v(x, t)` in x. Arguments and result as for `jvp`.

        The Jacobian is symmetric, and this is `jvp`, unless a `source_covariance` makes the source anisotropic.
        """
        return self._product("vjp", x, t, u, **options)

    @follows("x")
    def target_covariance_product(self, x: Any, t: Any, u: Any, **options: Any) -> np.ndarray:
        """`Cov(x_f | x) u`, the posterior covariance of the target times u. Arguments and result as for `jvp`."""
        return self._product("target_covariance_product", x, t, u, **options)

    # Posterior weights ----------------------------------------------------------------------------------------

    @follows("x")
    @_quiet
    def weights(self, x: Any, t: Any, *, label: Any = None, subset: Any = None, exclude: Any = None) -> np.ndarray:
        """The posterior weights `w_j(x, t)` (Fan 32), dense, (B, N) float64. Each row sums to one.

        `label`, `subset` and `exclude` as for `evaluate`; points that do not count have weight zero.
        """
        q = self._queries(x, t)
        weights = np.zeros((len(q.x), self.num_points))
        for group in self._parts.groups(label, subset, exclude, len(q.x), False):
            own, part = q.some(group.rows), group.part
            path = self._path(own.t, part)
            coefficients = path.kernel_coefficients()
            block = part.logits(own.x, coefficients, 0, part.points.count, group.exclude)
            block -= block.max(axis=1, keepdims=True)
            np.exp(block, out=block)
            block /= block.sum(axis=1, keepdims=True)
            for row, (index, limit) in part.limits(own.x, path, group.exclude):
                block[row] = 0.0
                block[row, index] = limit
            rows = np.arange(len(q.x)) if group.rows is None else group.rows
            if part.points.index is None:
                weights[rows] = block
            else:
                weights[rows[:, None], part.points.index] = block
        return weights.reshape(*q.batch_shape, self.num_points)

    @follows("x")
    @_quiet
    def top_k(
        self, x: Any, t: Any, k: int, *, label: Any = None, subset: Any = None, exclude: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k data points of largest posterior weight, from one pass and without the B x N weights.

        Args:
            x, t: as for `velocity`.
            k: how many, 1 to the number of points that count.
            label, subset, exclude: as for `evaluate`.

        Returns:
            `(indices, weights)`, both (B, k), int64 and float64, largest weight first; equal weights in the order
            of their indices. The weights are those among all points that count, so they sum to at most one.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise TypeError(f"k is {_arrays.shown(k)}; accepted is a whole number from 1 to {self.num_points}")
        q = self._queries(x, t)
        groups = self._parts.groups(label, subset, exclude, len(q.x), False)
        most = min((group.part.points.count for group in groups), default=self.num_points)
        if not 1 <= k <= most:
            raise ValueError(f"k is {_arrays.shown(k)}; accepted is a whole number from 1 to {most}")
        indices, weights = np.empty((len(q.x), k), dtype=np.int64), np.empty((len(q.x), k))
        for group in groups:
            rows = slice(None) if group.rows is None else group.rows
            own, part = q.some(group.rows), group.part
            found, weights[rows] = largest_weights(part, own.x, self._path(own.t, part), k, group.exclude)
            indices[rows] = found if part.points.index is None else part.points.index[found]
        return indices.reshape(*q.batch_shape, k), weights.reshape(*q.batch_shape, k)

    # Draws ----------------------------------------------------------------------------------------------------

    @follows("x")
    @_quiet
    def posterior_sample(
        self,
        x: Any,
        t: Any,
        *,
        rng: int | np.random.Generator | None = None,
        label: Any = None,
        subset: Any = None,
        exclude: Any = None,
    ) -> np.ndarray:
        """Data points drawn from the posterior, `j ~ w(x, t)`: which point did x come from?

        Exact, from about one pass over the data, and without the B x N weights. A point of weight zero is never drawn.
        At t = 1 without variance it is the nearest point, one of equally near ones by their masses.

        Args:
            x, t: as for `velocity`.
            rng: whole number or `numpy.random.Generator`. Each query takes two uniform numbers from it, in the order
                of the queries, and its draw depends on them and itself alone: the same number gives the same draws bit
                for bit, for any number of threads, and so does a generator for a batch that is drawn in pieces.
            label, subset, exclude: as for `evaluate`.

        Returns:
            (B,) int64 indices of data points.
        """
        q = self._queries(x, t)
        groups = self._parts.groups(label, subset, exclude, len(q.x), False)
        uniforms = samplers.generator("rng", rng).random((len(q.x), 2))
        indices = np.empty(len(q.x), dtype=np.int64)
        for group in groups:
            rows = slice(None) if group.rows is None else group.rows
            own, part = q.some(group.rows), group.part
            path = self._path(own.t, part)
            found = self._posterior.sample(part, own.x, path, group.exclude, uniforms[rows], subset is None)
            indices[rows] = found if part.points.index is None else part.points.index[found]
        return indices.reshape(q.batch_shape)

    @follows("x")
    def posterior_draw(
        self,
        x: Any,
        t: Any,
        *,
        rng: int | np.random.Generator | None = None,
        label: Any = None,
        subset: Any = None,
        exclude: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of a path through x, drawn from the posterior: `(x_i, x_f) ~ p(x_i, x_f | x_t = x)`.

        A data point as in `posterior_sample`, and given that one its Gaussian conditional (Fan 19, 21): without
        variance `x_f = mu_j` and `x_i = (x - beta mu_j) / alpha`. So `alpha x_i + beta x_f = x`, up to the rounding to
        the dtype of x. At t = 1 without variance `x_f` is the nearest point, and `x_i` a draw from the source, about
        which a data point tells nothing.

        Args:
            x, t: as for `velocity`.
            rng: whole number or `numpy.random.Generator`: first the numbers of `posterior_sample`, then, if anything is
                left open by the point, D normal ones for each query.
            label, subset, exclude: as for `evaluate`.

        Returns:
            `(x_i, x_f)`, source and target, each of the shape and dtype of x.
        """
        q = self._queries(x, t)
        drawn = self._draw(q, samplers.generator("rng", rng), label, subset, exclude)
        shape = (*q.batch_shape, *self.event_shape)
        return tuple(end.astype(q.dtype).reshape(shape) for end in drawn)

    # Partial results ------------------------------------------------------------------------------------------

    @_quiet
    def moments(self, x: Any, t: Any) -> Moments:
        """Posterior moments of x under this field's data, to be merged with those of other parts (Fan 22-26).

        The masses of a field sum to one: give a part that holds the share q of the whole as `moments.scaled(q)`. With
        full covariances the vectors are in the field's own frame, and with per-point variances `gamma_j` depends on
        their largest: such parts merge only where those agree.
        """
        q = self._queries(x, t)
        part = self._parts.whole
        moments = part.moments(q.x, self._path(q.t, part), Want(mean=True, spread=True))

        def public(name: str, array: np.ndarray) -> np.ndarray:
            if name in VECTORS:
                return array.reshape(*q.batch_shape, *self.event_shape).astype(q.dtype, copy=False)
            return array.reshape(q.batch_shape)

        return moments.map(public)

    @follows("x")
    @_quiet
    def finish(
        self, moments: Moments, x: Any, t: Any, quantities: Sequence[str] = ("velocity",)
    ) -> dict[str, np.ndarray]:
        """Turn (merged) moments of the queries x at times t into quantities, as `evaluate` does for its own.

        Args:
            moments: of these x and t; the fields that the quantities read must be there.
            x, t, quantities: as for `evaluate`.
        """
        quantities = _names(quantities)
        checked(moments, "moments")
        q = self._queries(x, t)
        path = self._path(q.t, self._parts.whole)
        self._check_quantities(quantities, path)
        shapes = {name: np.shape(x) if name in VECTORS else q.batch_shape for name in NAMES}

        def flat(name: str, value: np.ndarray) -> np.ndarray:
            if np.shape(value) != shapes[name]:
                raise ValueError(f"moments.{name} has shape {np.shape(value)}; for this x it is {shapes[name]}")
            shape, dtype = (q.x.shape, q.x.dtype) if name in VECTORS else (len(q.x), np.float64)
            return np.array(value, dtype=dtype, order="C").reshape(shape)  # a copy: results are made of it

        moments = moments.map(flat)
        for quantity in quantities:
            for name in self._read_by(QUANTITIES[quantity]):
                if getattr(moments, name) is None:
                    raise ValueError(f"moments.{name} is None; {quantity} needs it")
        return self._shaped(self._quantities(moments, path, quantities, self._model), q)

    # Sampling -------------------------------------------------------------------------------------------------

    @follows("num_or_x0")
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
        noise: stochastic.Noise = 1.0,
        label: Any = None,
        guidance: float = 0.0,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Follow the flow `dx = v(x, t) dt`: from noise to samples, or from data to noise.

        Without variance the flow ends on data points, and the last step into t = 1 holds the posterior as it is at the
        step's start; see `fastflow.samplers`. Where several points still share the weight there, the sample ends
        between them: equal steps land on a data point only if the choice has fallen before the last one. Shorter last
        steps help, and so does "dopri5", which takes its own.

        Args:
            num_or_x0: how many starting points to draw from the marginal at the first time (at t = 0, for most
                schedules, the source), or the starting points: (B, *event) or one event.
            steps: number of equal steps, at least 1; or the times themselves, (T,), T >= 2, strictly increasing or
                strictly decreasing (then `t_span` must be left out).
            method: follow the ODE by "euler", "heun", "rk4" (1, 2 and 4 evaluations a step, errors of that order in
                the step), or "dopri5", SciPy's adaptive Dormand-Prince pair in float64, which chooses its own steps
                for the batch as a whole; `steps` then only says at which times the path is given. Or move at random,
                with the same distribution at every time:
                "path_switching", the memoryless sampler (Wu 2): each step draws the ends of a path through x as
                `posterior_draw` does and follows that path, `x <- alpha x_i + beta x_f`. If the starting points have
                the distribution of their time, so have all states, for any number of steps; many steps come close to
                the ODE.
                "sde": `dx = (v + g^2 score / 2) dt + g dW`, from data to noise with -g^2, by Euler-Maruyama steps of
                first order; g by `noise`.
            t_span: first and last time, (0, 1) by default; (1, 0) runs from data to noise.
            seed: whole number or `numpy.random.Generator` for the starting points and, after them, random steps. The
                same number gives the same samples, bit for bit, for any number of threads.
            progress: show a progress bar (tqdm, from the extra "progress").
            callback: called as `callback(step, t, x)` after each step (for dopri5, each accepted one), with the
                number of the step from 0, the time reached, and a read-only view of the states there. What it
                returns is ignored; an exception ends the integration.
            return_path: return the states at all times.
            rtol, atol: relative and absolute tolerance of dopri5, above zero; the others do not read them.
            noise: g of "sde", the others do not read it: a function g(t) >= 0, or a number eta >= 0 for
                `g^2 = eta^2 2 s_i alpha beta |alpha beta' - alpha' beta| / (alpha^2 + beta^2)`, which falls like alpha
                at the data and is zero at the noise; 0 is "euler". A step takes the smaller value of g at its two
                ends. With `source_covariance` the noise is `g^2 Sigma_i`, and s_i = 1.
            label, guidance: follow the flow of a class, or for each point of its own, and guide it, as for `evaluate`.
                path_switching cannot be guided.

        Returns:
            The final states, shaped as the starting points; or, with `return_path`, `(times, path)` of shapes (T,)
            and (T, B, *event), `path[0]` being the start. Dtype and library are those of the starting points (float64
            for integers); drawn ones are NumPy's, float32 where the field works on float32 data, else float64.

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
            noise=noise,
            label=label,
            guidance=guidance,
        )

    @follows("x")
    def encode(
        self, x: Any, *, t: float | None = None, steps: Any = 50, method: str = "dopri5", **options: Any
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The noise that the flow carries to x: `sample` from x, back in time.

        Args:
            x: (B, *event) or one event.
            t: the time of x, above 0, 1 by default. At t = 1 the field must have variance.
            steps: number of steps, or the times themselves, from that of x down (then `t` must be left out).
            method: "euler", "heun", "rk4" or "dopri5".
            **options: others of `sample`: `rtol`, `atol`, `label`, `guidance`, `callback`, `progress`, `return_path`.

        Returns:
            As `sample` does: the states at t = 0 in the shape and dtype of x, or `(times, path)`.
        """
        return likelihood.encode(self, x, t=t, steps=steps, method=method, **options)

    @follows("x")
    def log_likelihood(
        self,
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
        """`log p(x)` in nats by the flow: `log p_0(x_0) - int_0^1 div v dt` with the exact divergence (Khungurn Thm 4).

        Without guidance this is `log_density`, to the solver's accuracy; with guidance nothing closed exists, and it
        is the log density of the samples that `sample` with this guidance gives. All is in float64.

        Args:
            x: (B, *event) or one event.
            t: the time of x, above 0, 1 by default. At t = 1 the field must have variance.
            t_span: instead of t, the time of x and the time at which `log_density` gives the known density.
            steps: number of equal steps, or the times themselves (then `t` and `t_span` must be left out).
            method: "euler", "heun", "rk4" with these steps; or "dopri5", adaptive for the batch as a whole, which
                chooses its own.
            rtol, atol: tolerances of dopri5, for the states and the integral.
            label: a class, or (B,) with one for each: the density of that class.
            guidance: strength, with `label`, as for `evaluate`; each stage then takes a second pass over all data.
            progress: show a progress bar (tqdm, from the extra "progress").
            return_noise: return the points at the other end of the flow too.

        Returns:
            (B,) float64; with `return_noise`, `(log_likelihood, noise)`, the noise in the shape and dtype of x.

        Raises:
            TypeError, ValueError: an argument that is not accepted; among them t = 1 without variance, where the
                distribution is a set of points and has no density.
            RuntimeError: dopri5 could not meet its tolerances.
        """
        return likelihood.log_likelihood(
            self,
            x,
            t=t,
            t_span=t_span,
            steps=steps,
            method=method,
            rtol=rtol,
            atol=atol,
            label=label,
            guidance=guidance,
            progress=progress,
            return_noise=return_noise,
        )

    # Training -------------------------------------------------------------------------------------------------

    @follows("x")
    def targets(
        self,
        x: Any,
        t: Any,
        *,
        num_subset: int | None = None,
        index: Any = None,
        rng: int | np.random.Generator | None = None,
        label: Any = None,
        quantity: str = "velocity",
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """What a network should be trained on at x and t: the exact mean of what it is usually trained on.

        With `num_subset` the mean is over M data points only: the one that gave x and M - 1 drawn uniformly. It is
        unbiased, `E[target | x] = v(x, t)` for every M, provided that `index` says truly which points x was drawn
        from: M = 1 is the velocity of the conditional path (Khungurn Thm 1), M = N the field's own. The M - 1 are
        drawn once and shared by the batch (of each label); see `fastflow.training` for why that may be.

        Args:
            x, t: as for `velocity`.
            num_subset: M, from 1 to N; None for all data. Of a label with fewer points all are taken.
            index: with `num_subset`, the data point that each x was drawn from, (B,), as `training_batch` gives it.
            rng: whole number or `numpy.random.Generator` for the subset; None draws a new one each time.
            label: a class, or (B,) with one for each: only its points count.
            quantity: "velocity", "target_mean", "source_mean" or "score".
            out: where to put the result; shape and dtype of the result.

        Returns:
            Array of the shape and dtype of x.
        """
        return training.targets(
            self, x, t, num_subset=num_subset, index=index, rng=rng, label=label, quantity=quantity, out=out
        )

    @follows("t")
    def training_batch(
        self,
        batch_size: int,
        *,
        t: Any = None,
        num_subset: int | None = None,
        rng: int | np.random.Generator | None = None,
        label: Any = None,
        quantity: str = "velocity",
    ) -> training.TrainingBatch:
        """Draw x from the path at random times, and give the targets there.

        Args:
            batch_size: B.
            t: the times, a scalar or (B,); None draws them uniformly from [0, 1).
            num_subset, quantity: as for `targets`.
            rng: whole number or `numpy.random.Generator` for everything that is drawn.
            label: the class to draw from, or (B,) with one for each.

        Returns:
            `TrainingBatch(x, t, target, index)`: (B, *event), (B,), (B, *event) and the data points (B,) that x was
            drawn from. All but index are float32 where the field works on float32 data, else float64; times that
            were given are float64. The arrays are of the library of t, NumPy's where none is given.
        """
        return training.training_batch(
            self, batch_size, t=t, num_subset=num_subset, rng=rng, label=label, quantity=quantity
        )

    def cfm_loss_floor(
        self,
        t: Any = None,
        *,
        num_samples: int = 4096,
        seed: int | np.random.Generator | None = None,
        label: int | None = None,
        batch_size: int = 1024,
    ) -> training.LossFloor:
        """The conditional flow-matching loss that is left at the optimum, `E tr Cov(v_s | x_t)` (Zhang 7, Wu 3).

        The loss `E |u(x_t, t) - v_s|^2` of any network u is this plus its distance `E |u - v|^2` from the exact
        velocity. It is a sum over the D values of an event: divide by D to compare with a loss that is their mean.
        Estimated from draws of x_t, at each of which the variance is exact.

        Args:
            t: one time or (T,); None (or "integrated") for the mean over t uniform in [0, 1].
            num_samples: draws for each time, at least 2; with None over all times, two in each of equal parts of
                [0, 1] (so an even number: an odd one is raised by one).
            seed: whole number or `numpy.random.Generator`. The same number gives the same result for every
                `batch_size`.
            label: a class: the loss of a network for that class alone.
            batch_size: draws that are evaluated at a time.

        Returns:
            `LossFloor(value, standard_error, num_samples)`, floats, or arrays (T,) for an array of times.

        Raises:
            ValueError: t = 1 without variance; or where the floor is infinite: at t = 1, or integrated with variance,
                for schedules whose alpha' is infinite there.
        """
        return training.cfm_loss_floor(self, t, num_samples=num_samples, seed=seed, label=label, batch_size=batch_size)

    # Inside ---------------------------------------------------------------------------------------------------

    @cached_property
    def _posterior(self) -> Posterior:
        return Posterior(self._parts)

    @_quiet
    def _draw(
        self, q: Queries, rng: np.random.Generator, label: Any = None, subset: Any = None, exclude: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ends of paths through the queries, as two (B, D) float64 arrays in the caller's coordinates."""
        groups = self._parts.groups(label, subset, exclude, len(q.x), False)
        paths = [self._path(q.some(group.rows).t, group.part) for group in groups]
        uniforms = rng.random((len(q.x), 2))
        open_ends = any(needs_noise(group.part, path) for group, path in zip(groups, paths, strict=True))
        noise = rng.standard_normal(q.x.shape) if open_ends else None
        ends = np.empty((2, *q.x.shape))
        for group, path in zip(groups, paths, strict=True):
            rows = slice(None) if group.rows is None else group.rows
            own = q.some(group.rows).x
            found = self._posterior.sample(group.part, own, path, group.exclude, uniforms[rows], subset is None)
            ends[:, rows] = ends_of_path(group.part, own, path, found, None if noise is None else noise[rows])
        if self._model.frame is not None:
            ends = self._model.frame.leave(ends, "vector")
        return ends[0], ends[1]

    @property
    def _model(self) -> Model:
        return self._parts.model

    def _queries(self, x: Any, t: Any) -> Queries:
        matrix, batch_shape, dtype = _arrays.query_matrix(x, self.event_shape, self._size)
        t = _arrays.query_times(t, batch_shape)
        if self._model.frame is not None:
            matrix = np.ascontiguousarray(self._model.frame.enter(matrix, "vector"))
            _arrays.require_moderate("x in units of the source", matrix)
        return Queries(matrix, t, batch_shape, dtype)

    def _path(self, t: float | np.ndarray, part: Part) -> Path:
        path = path_at(self.schedule, t, part.model.source_variance, part.model.target)
        variance = part.points.variance
        if variance is not None and variance.ndim == 2 and np.any(path.singular):
            raise ValueError(
                "covariance is singular, so that at t = 1 the data have no density in some directions; accepted are "
                "t < 1, or covariances of full rank"
            )
        return path

    def _read_by(self, rule: Quantity) -> tuple[str, ...]:
        """Names of the moments that a quantity reads."""
        differ = not isinstance(self._model.target, float)
        names = ("mean", "residual", *("gain", "gained") * differ) * rule.mean
        names += ("entropy", "collision") * rule.spread
        return names + ("trace", *("cross", "gained_trace") * differ) * rule.trace

    def _check_quantities(self, quantities: Sequence[str], path: Path, guided: bool = False) -> Want:
        """The moments that are needed; unknown names and undefined values raise."""
        mean = spread = trace = False
        for name in quantities:
            rule = QUANTITIES.get(name)
            if rule is None:
                raise ValueError(f"quantity {name!r} is unknown; known are {', '.join(QUANTITIES)}")
            if rule.regular:
                self._require_regular(name, path)
            if guided and rule.kind == "scalar":
                vectors = ", ".join(n for n, r in QUANTITIES.items() if r.kind != "scalar")
                raise ValueError(f"guidance is given with {name}; accepted with guidance are {vectors}")
            mean, spread, trace = mean | rule.mean, spread | rule.spread, trace | rule.trace
        if "velocity" in quantities:
            self._require_bounded(path)
        return Want(mean, spread, trace)

    def _require_regular(self, name: str, path: Path) -> None:
        if np.any(path.singular):
            raise ValueError(
                f"{name} does not exist at t = 1 with variance 0, where the density is a sum of point masses; "
                "accepted are t < 1, or a field with variance > 0"
            )

    def _require_bounded(self, path: Path) -> None:
        if self._model.source_mean is not None and not np.all(np.isfinite(path.d_alpha)):
            raise ValueError(
                f"the velocity of schedule {schedules.name_of(self.schedule)} with non-zero source_mean is unbounded "
                "at t = 1; accepted is t < 1"
            )

    @_quiet
    def _evaluate(
        self,
        x: Any,
        t: Any,
        quantities: Sequence[str],
        *,
        label: Any = None,
        subset: Any = None,
        exclude: Any = None,
        guidance: float = 0.0,
        num_threads: int | None = None,
        out: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        if num_threads is not None:
            with threads(num_threads):
                chosen = {"label": label, "subset": subset, "exclude": exclude, "guidance": guidance, "out": out}
                return self._evaluate(x, t, quantities, **chosen)
        quantities = _names(quantities)
        q = self._queries(x, t)
        guided = not (type(guidance) is float and guidance == 0.0)
        if guided:
            guidance = _arrays.real_number("guidance", guidance)
            guided = guidance != 0.0
            if label is None:
                raise ValueError("guidance is given without label; accepted is a class to guide towards")
        groups = self._parts.groups(label, subset, exclude, len(q.x), guided)
        if out is not None:
            _arrays.output_array(out, (*q.batch_shape, *self.event_shape), q.dtype)
            if np.shares_memory(out, self._parts.points.data):
                raise ValueError("out shares memory with the field's data; accepted is an array of its own, or x")
        paths = [self._path(q.some(group.rows).t, group.part) for group in groups]
        wanted = [self._check_quantities(quantities, path, guided) for path in paths]
        found = []
        for group, path, want in zip(groups, paths, wanted, strict=True):
            own = q.some(group.rows)
            moments = group.part.moments(own.x, path, want._replace(exclude=group.exclude))
            results = self._quantities(moments, path, quantities, group.part.model)
            if "log_density" in results and group.exclude is not None:
                results["log_density"] = results["log_density"] - group.part.log_mass_left(group.exclude)
            if want.trace and "velocity_variance" in quantities and self._model.scale is None:
                results["velocity_variance"] = self._trace("velocity_covariance", own, path, group)
            if guided and group.rest is not None:
                whole = self._path(own.t, self._parts.whole)
                rest = group.rest.moments(
                    own.x, self._path(own.t, group.rest), want._replace(exclude=group.rest_exclude)
                )
                both = self._parts.joined(((group.part, moments), (group.rest, rest)), whole)
                for name, value in self._quantities(both, whole, quantities, self._model).items():
                    results[name] = (1.0 + guidance) * results[name] - guidance * value
            found.append((group.rows, results))
        results = self._shaped(gathered(found, quantities, q), q)
        if out is not None:
            np.copyto(out, results[quantities[0]])
            results[quantities[0]] = out
        return results

    def _quantities(
        self, moments: Moments, path: Path, quantities: Sequence[str], model: Model
    ) -> dict[str, np.ndarray]:
        """Quantities by name, (B, D) in the caller's coordinates or (B,)."""
        results = {}
        for name in quantities:
            rule = QUANTITIES[name]
            value = rule.compute(moments, path, model)
            if model.frame is not None and rule.kind != "scalar":
                value = model.frame.leave(value, rule.kind)
            results[name] = value
        return results

    def _shaped(self, results: dict[str, np.ndarray], q: Queries) -> dict[str, np.ndarray]:
        """Results in the shape and dtype of x."""
        for name, value in results.items():
            if value.ndim == 2:
                results[name] = value.astype(q.dtype, copy=False).reshape((*q.batch_shape, *self.event_shape))
            else:
                results[name] = value.reshape(q.batch_shape)
        return results

    @_quiet
    def _product(
        self, name: str, x: Any, t: Any, u: Any, *, label: Any = None, subset: Any = None, exclude: Any = None
    ) -> np.ndarray:
        q = self._queries(x, t)
        u = _arrays.direction(u, q.x, (*q.batch_shape, *self.event_shape))
        groups = self._parts.groups(label, subset, exclude, len(q.x), False)
        paths = [self._path(q.some(group.rows).t, group.part) for group in groups]
        for path in paths:
            self._require_regular(name, path)
        found = []
        for group, path in zip(groups, paths, strict=True):
            along = u if group.rows is None else u[group.rows]
            found.append((group.rows, {name: self._times(name, q.some(group.rows), path, group, along)}))
        return self._shaped(gathered(found, (name,), q), q)[name]

    def _times(self, name: str, q: Queries, path: Path, group: Group, u: np.ndarray) -> np.ndarray:
        """The product of a matrix of `PRODUCTS` with u, (B, D), both in the caller's coordinates."""
        rule, part = PRODUCTS[name], group.part
        frame = part.model.frame
        if frame is not None:
            u = np.ascontiguousarray(frame.enter(u, rule.kind[0]))
        psi = rule.psi(path)
        factors = [np.broadcast_to(f, len(q.x)) for f in (psi.residual, psi.gained, psi.mean)]
        tangent = Tangent(u, np.array(factors, dtype=np.float64))
        moments = part.moments(q.x, path, Want(True, tangent=tangent, exclude=group.exclude))
        value = rule.compute(moments, u, path, part.model)
        return value if frame is None else frame.leave(value, rule.kind[1])

    def _trace(self, name: str, q: Queries, path: Path, group: Group) -> np.ndarray:
        """The trace of a matrix of `PRODUCTS`, one product for each of its columns."""
        total = np.zeros(len(q.x))
        for k in range(self._size):
            column = np.zeros_like(q.x)
            column[:, k] = 1.0
            total += self._times(name, q, path, group, column)[:, k]
        return total


def _names(quantities: Any) -> tuple[str, ...]:
    """The names of quantities, each a string."""
    accepted = "accepted is a sequence of names"
    if isinstance(quantities, str | bytes):
        raise TypeError(f"quantities is the single word {quantities!r}; {accepted}, such as ({quantities!r},)")
    try:
        names = tuple(quantities)
    except TypeError:
        raise TypeError(f"quantities is {_arrays.shown(quantities)}; {accepted}") from None
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"quantities holds {_arrays.shown(name)}; {accepted}")
    return names


class Source(NamedTuple):
    """The source distribution of a field.

    Attributes:
        mean: `m_i`, event-shaped float64, a copy.
        variance: `s_i`, or None where a `source_covariance` makes it differ by direction.
    """

    mean: np.ndarray
    variance: float | None


class Queries(NamedTuple):
    """Checked queries: (B, D) in the field's frame, their times, their batch shape, and the dtype of results."""

    x: np.ndarray
    t: float | np.ndarray
    batch_shape: tuple[int, ...]
    dtype: np.dtype

    def some(self, rows: np.ndarray | None) -> Queries:
        """Those of some rows, or all."""
        if rows is None:
            return self
        t = self.t if isinstance(self.t, float) else self.t[rows]
        return Queries(self.x[rows], t, (len(rows),), self.dtype)


def gathered(
    found: list[tuple[np.ndarray | None, dict[str, np.ndarray]]], names: Sequence[str], q: Queries
) -> dict[str, np.ndarray]:
    """Results of groups of queries in the order of the queries."""
    if len(found) == 1 and found[0][0] is None:
        return found[0][1]
    results = {}
    for name in names:
        shape = found[0][1][name].shape[1:] if found else q.x.shape[1:]
        whole = np.empty((len(q.x), *shape), found[0][1][name].dtype if found else q.x.dtype)
        for rows, values in found:
            whole[rows] = values[name]
        results[name] = whole
    return results
