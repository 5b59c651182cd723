"""The velocity of a field as a JAX function: `jit`, `vmap`, forward and reverse derivatives in x.

On the CPU a native field whose points share one variance is evaluated by a handler in C that XLA calls directly,
without Python and without the GIL. Others, and other platforms, take `jax.pure_callback`, by which XLA comes back to
Python and the GIL: the same numbers, but a call costs some tenths of a millisecond more, and threads take turns.
`VelocityFunction.route` tells which it is, and `route_reason` why.

The function is two primitives, the velocity and the product of its Jacobian with a direction. Both work on a matrix of
queries, so batching joins axes into one call, and both are linear or refused in what they are differentiated by:

    velocity(x, t)  --derivative in x-->  product(x, t, u), linear in u  --transpose-->  product by the transpose
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays
from .._optional import require
from ..field import VelocityField
from . import xla
from ._asked import FAR, a_field, check_label, far_from_time

if TYPE_CHECKING:
    import jax
else:
    jax = require("jax", "jax")

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["VelocityFunction", "ode_function", "velocity_fn"]

_ROUTES = ("auto", "ffi", "callback")


def velocity_fn(
    field: VelocityField, *, label: int | None = None, guidance: float = 0.0, route: str = "auto"
) -> VelocityFunction:
    """The velocity `v(x, t) = E[alpha' x_i + beta' x_f | x]` of a field (Gao 3.2, Fan 46) as a function for JAX.

    Args:
        field: the field. It is kept by the function.
        label: a class of the field's `labels`, fixed for the function: only its points count. None: all.
        guidance: g, with `label`: the function is `(1 + g) v(x | label) - g v(x)`.
        route: "ffi" for XLA's call into C, "callback" for `jax.pure_callback`, "auto" for the first where it serves the
            field. It settles the CPU; other platforms take the callback.

    Raises:
        TypeError, ValueError: an argument that is not accepted; among them route="ffi" for a field that it cannot
            serve, with the reason.
        ImportError: JAX is not installed.
    """
    return VelocityFunction(field, label=label, guidance=guidance, route=route)


def ode_function(
    field: VelocityField,
    *,
    t_span: tuple[float, float] = (0.0, 1.0),
    label: int | None = None,
    guidance: float = 0.0,
    route: str = "auto",
) -> Callable[..., jax.Array]:
    """The right-hand side `fun(t, x, args=None)` of `dx/dt = v(x, t)`, as diffrax takes it.

    For example `diffrax.ODETerm(ode_function(field))`. Solvers of all kinds may be differentiated in the starting
    points, forward and in reverse. Times are clamped to [0, 1], past which the stages of a solver step by rounding, and
    no derivative is taken through them. Without variance the velocity at t = 1 is not what the flow tends to there, and
    has no derivative in x: adaptive solvers take small steps beside it and arrive, others should end before, and so
    should what is differentiated.

    Args:
        field, label, guidance, route: as for `velocity_fn`.
        t_span: the interval that the solver will be given, for the checks that a solver does not make: two different
            times in [0, 1], in either direction, the first of them with a flow out of it.

    Raises:
        TypeError, ValueError: an argument that is not accepted; among them a start at t = 1 of a field without
            variance, where the distribution is a set of points and no flow out of it is defined.
    """
    velocity = velocity_fn(field, label=label, guidance=guidance, route=route)
    # A sampler without points makes the checks of the interval.
    field.sample(np.empty((0, *field.event_shape)), steps=1, t_span=t_span)

    def fun(t: Any, x: Any, args: Any = None) -> jax.Array:
        t = _real("t", t)
        if not isinstance(t, jax.core.Tracer) and not bool(jnp.all((t >= -FAR) & (t <= 1.0 + FAR))):
            raise far_from_time(float(t.reshape(-1)[jnp.argmin((t >= -FAR) & (t <= 1.0 + FAR))]))
        return velocity(x, jax.lax.stop_gradient(jnp.clip(t, 0.0, 1.0)))

    return fun


class VelocityFunction:
    """What `velocity_fn` returns: `v = f(x, t)`.

    May be compiled, batched and differentiated in x, forward and in reverse, once: the derivative is the field's exact
    Jacobian product (`VelocityField.jvp`, `vjp`). A derivative in t, and second ones, are refused with TypeError
    rather than taken for zero: put `jax.lax.stop_gradient` round a t that depends on what is differentiated by.

    Attributes:
        field, label, guidance: what the function was made of.
        route: "ffi" or "callback"; see `velocity_fn`.
        route_reason: why.
    """

    def __init__(self, field: VelocityField, *, label: int | None = None, guidance: float = 0.0, route: str = "auto"):
        a_field(field)
        if route not in _ROUTES:
            raise ValueError(f"route is {_arrays.shown(route)}; accepted is one of {', '.join(_ROUTES)}")
        if label is not None:
            array = _arrays.any_array("label", label)
            if array.ndim or array.dtype.kind not in "iu":
                raise TypeError(f"label is {_arrays.shown(label)}; accepted is one class, a whole number")
            label = int(array)
        guidance = _arrays.real_number("guidance", guidance)
        check_label(field, label, guidance)
        self.field, self.label, self.guidance = field, label, guidance
        # Guided derivatives are sums too, which a field's own guided pass does not give.
        labels = (label,) if guidance == 0.0 else (label, None)
        self._factors = (1.0 + guidance, -guidance)
        routed = [_routed(field, name, route) for name in labels]
        self._calls = tuple(call for call, _ in routed)
        by_callback = [reason for call, reason in routed if call.number is None]
        self.route = "callback" if by_callback else "ffi"
        self.route_reason = by_callback[0] if by_callback else routed[0][1]
        self._compiled = jax.jit(self._velocity)

    def __repr__(self) -> str:
        return f"VelocityFunction({self.field!r}, label={self.label}, guidance={self.guidance:g}, route={self.route!r})"

    def __call__(self, x: Any, t: Any) -> jax.Array:
        """The velocity.

        Args:
            x: (B, *event) or one event, float32, or float64 where JAX has it enabled (`jax_enable_x64`).
            t: scalar, (B,) or (B, 1), in [0, 1]. A number that JAX holds as float32 is taken as that: it may differ
                from the one written by 6e-8 of it.

        Returns:
            Array of the shape and dtype of x.

        Raises:
            TypeError, ValueError: dtypes or shapes that are not accepted, or times where they are known beforehand.
                Values that are known only when the computation runs (x not finite, t outside [0, 1]) raise JAX's
                run-time error there.
        """
        x, t = _real("x", x), _real("t", t)
        if x.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"x has dtype {x.dtype}; accepted are float32 and float64")
        event = self.field.event_shape
        if x.shape != event and (x.ndim != len(event) + 1 or x.shape[1:] != event):
            shape = ", ".join(str(n) for n in event)
            raise ValueError(
                f"x has shape {x.shape}; accepted is one event of shape {event} or a batch of shape (B, {shape}); "
                "jax.vmap serves further axes"
            )
        count = 1 if x.shape == event else x.shape[0]
        if t.size != 1 and t.shape not in ((count,), (count, 1)):
            raise ValueError(f"t has shape {t.shape}; accepted is a scalar, ({count},) or ({count}, 1)")
        if not isinstance(t, jax.core.Tracer):
            _arrays.query_times(np.asarray(t), (t.size,) if t.ndim else ())
        return self._compiled(x, t)

    def _velocity(self, x: jax.Array, t: jax.Array) -> jax.Array:
        if not jnp.issubdtype(t.dtype, jnp.floating) or t.dtype.itemsize < 4:
            t = t.astype(jnp.float32)
        size = max(1, int(np.prod(self.field.event_shape)))
        matrix, times = x.reshape(-1, size), t.reshape(-1)
        found = [_velocity_p.bind(matrix, times, call=call) for call in self._calls]
        if len(found) > 1:
            found[0] = self._factors[0] * found[0] + self._factors[1] * found[1]
        return found[0].reshape(x.shape)


def _real(name: str, value: Any) -> jax.Array:
    """`value` as an array of JAX, or TypeError naming it."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} cannot be read as an array ({error}); accepted are real numbers") from None
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} has dtype {array.dtype}; accepted are real numbers")
    return array


@dataclass(frozen=True)
class _Call:
    """A field and a label, as the primitives hold them: by number for the handlers, or for a callback.

    JAX remembers the parameters of primitives for longer than what they were traced for, so the field is held weakly.
    `VelocityFunction` holds it, and what is compiled.
    """

    reference: weakref.ReferenceType[VelocityField]
    label: int | None
    number: int | None

    @property
    def field(self) -> VelocityField:
        field = self.reference()
        if field is None:
            raise RuntimeError(
                "the field of this function is gone; keep it, or what velocity_fn returned, outside of what is compiled"
            )
        return field

    def velocity(self, x: Any, t: Any) -> np.ndarray:
        """On the host: (B, D), (B,) or (1,) -> (B, D)."""
        return self._called(self.field.velocity, x, t)

    def product(self, x: Any, t: Any, u: Any, *, transposed: bool) -> np.ndarray:
        """On the host: the Jacobian, or its transpose, times u."""
        return self._called(self.field.vjp if transposed else self.field.jvp, x, t, u)

    def _called(self, method: Callable[..., np.ndarray], x: Any, t: Any, *u: Any) -> np.ndarray:
        x = np.asarray(x)
        shape = (len(x), *self.field.event_shape)
        directions = [np.asarray(array).reshape(shape) for array in u]
        return method(x.reshape(shape), np.asarray(t), *directions, label=self.label).reshape(x.shape)


def _routed(field: VelocityField, label: int | None, route: str) -> tuple[_Call, str]:
    """The call of a field by a route, and why that one."""
    found = "asked for by route='callback'" if route == "callback" else xla.publish(field, label)
    if isinstance(found, int):
        _register()
        return _Call(weakref.ref(field), label, found), "XLA calls the native backend on the CPU"
    if route == "ffi":
        raise ValueError(f"route='ffi' cannot serve this field: {found}; accepted is 'auto' or 'callback'")
    return _Call(weakref.ref(field), label, None), found


def _register() -> None:
    """Make the handlers known to XLA, once."""
    global _registered
    if not _registered:
        for name, capsule in xla.handlers().items():
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
        _registered = True


_registered = False


# The primitives -----------------------------------------------------------------------------------------------

_velocity_p = Primitive("fastflow_velocity")
_product_p = Primitive("fastflow_product")


def _velocity_on_host(x: Any, t: Any, *, call: _Call) -> np.ndarray:
    return call.velocity(x, t)


def _product_on_host(x: Any, t: Any, u: Any, *, call: _Call, transposed: bool) -> np.ndarray:
    return call.product(x, t, u, transposed=transposed)


def _lower(primitive: Primitive, on_host: Callable[..., np.ndarray]) -> None:
    """How a primitive is computed: the one place where the route is taken."""

    def by_callback(x: Any, *others: Any, call: _Call, **params: Any) -> jax.Array:
        result, kept = jax.ShapeDtypeStruct(x.shape, x.dtype), call.field

        def callback(*arrays: Any, kept: VelocityField = kept) -> np.ndarray:
            return on_host(*arrays, call=call, **params)

        return jax.pure_callback(callback, result, x, *others)

    callback = mlir.lower_fun(by_callback, multiple_results=False)

    def on_cpu(ctx: Any, *operands: Any, call: _Call, **params: Any) -> Any:
        if call.number is None:
            return callback(ctx, *operands, call=call, **params)
        ctx.module_context.add_keepalive(call.field)  # what is compiled keeps the field
        # The Jacobian of a field that the handlers serve is symmetric: `transposed` makes no difference.
        return jax.ffi.ffi_lowering(primitive.name)(ctx, *operands, field=np.int64(call.number))

    mlir.register_lowering(primitive, callback)
    mlir.register_lowering(primitive, on_cpu, platform="cpu")
    primitive.def_abstract_eval(lambda x, *others, **params: x)
    primitive.def_impl(lambda *arrays, **params: jnp.asarray(on_host(*arrays, **params)))


_lower(_velocity_p, _velocity_on_host)
_lower(_product_p, _product_on_host)


def _batch(primitive: Primitive, arguments: Any, axes: Any, **params: Any) -> tuple[jax.Array, int]:
    """A further axis joins that of the queries: one call for all."""
    size = next(a.shape[k] for a, k in zip(arguments, axes, strict=True) if k is not None)
    x, t, *u = (a if k is None else jnp.moveaxis(a, k, 0) for a, k in zip(arguments, axes, strict=True))
    rows = x.shape[-2]

    def joined(array: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            array = jnp.broadcast_to(array, (size, *array.shape))
        return array.reshape(size * rows, array.shape[-1])

    matrices = [joined(array, axis) for array, axis in zip((x, *u), (axes[0], *axes[2:]), strict=True)]
    if axes[1] is not None or t.shape[-1] != 1:
        t = jnp.broadcast_to(t, (size, rows)).reshape(-1)
    result = primitive.bind(matrices[0], t, *matrices[1:], **params)
    return result.reshape(size, rows, result.shape[-1]), 0


for _primitive in (_velocity_p, _product_p):
    batching.primitive_batchers[_primitive] = lambda arguments, axes, _p=_primitive, **params: _batch(
        _p, arguments, axes, **params
    )


def _velocity_derivative(primals: Any, tangents: Any, *, call: _Call) -> tuple[jax.Array, jax.Array]:
    (x, t), (dx, dt) = primals, tangents
    if type(dt) is not ad.Zero:
        raise TypeError(
            "the velocity is differentiated in t, which is not provided; accepted are derivatives in x, and a t in "
            "jax.lax.stop_gradient"
        )
    return _velocity_p.bind(x, t, call=call), _product_p.bind(x, t, dx, call=call, transposed=False)


def _product_derivative(primals: Any, tangents: Any, **params: Any) -> tuple[jax.Array, jax.Array]:
    (x, t, u), (dx, dt, du) = primals, tangents
    if type(dx) is not ad.Zero or type(dt) is not ad.Zero:
        raise TypeError("the velocity is differentiated twice, which is not provided; accepted are first derivatives")
    return _product_p.bind(x, t, u, **params), _product_p.bind(x, t, du, **params)


def _product_transpose(cotangent: Any, x: Any, t: Any, u: Any, *, call: _Call, transposed: bool) -> list[Any]:
    if type(cotangent) is ad.Zero:
        return [None, None, ad.Zero(u.aval)]
    return [None, None, _product_p.bind(x, t, cotangent, call=call, transposed=not transposed)]


ad.primitive_jvps[_velocity_p] = _velocity_derivative
ad.primitive_jvps[_product_p] = _product_derivative
ad.primitive_transposes[_product_p] = _product_transpose
