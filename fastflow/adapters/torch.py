"""The velocity of a field as a PyTorch operator and module: gradients, `vmap`, `torch.compile`.

The operator `torch.ops.fastflow.velocity` calls the field on CPU memory (tensors elsewhere are copied over and back).
Its gradient in x is the exact product with the transposed Jacobian (`VelocityField.vjp`), its forward derivative
`VelocityField.jvp`. A gradient in t is refused rather than called zero, and so are second derivatives.

An operator takes tensors and numbers only, so it knows a field by a number. The number is drawn at random for each
field in each process: one that was kept in an exported program meets no field elsewhere, instead of a wrong one.
"""

from __future__ import annotations

import copy
import math
import secrets
import weakref
from typing import TYPE_CHECKING, Any

from .._optional import require
from ..field import VelocityField
from ._asked import a_field
from ._tensors import strength, tensor

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch", "torch")

__all__ = ["VelocityModule", "velocity"]


# Fields by number ---------------------------------------------------------------------------------------------

_fields: weakref.WeakValueDictionary[int, VelocityField] = weakref.WeakValueDictionary()
_numbers: weakref.WeakKeyDictionary[VelocityField, int] = weakref.WeakKeyDictionary()


@torch.compiler.assume_constant_result
def _number(field: VelocityField) -> int:
    """The number by which the operators know a field, for as long as the field lives."""
    if field not in _numbers:
        number = secrets.randbits(62)
        _fields[number] = field
        _numbers[field] = number
    return _numbers[field]


def _field(number: int) -> VelocityField:
    field = _fields.get(number)
    if field is None:
        raise RuntimeError(
            f"field {number} of the operator is gone, or of another process; keep the field, or its VelocityModule, "
            "while what was made of it is in use"
        )
    return field


# Operators ----------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastflow::velocity",
    mutates_args=(),
    schema="(Tensor x, Tensor t, Tensor? label, int field, float guidance) -> Tensor",
)
def _velocity(
    x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None, field: int, guidance: float
) -> torch.Tensor:
    return _field(field).velocity(x.detach(), t.detach(), label=label, guidance=guidance)


@torch.library.custom_op(
    "fastflow::velocity_product",
    mutates_args=(),
    schema="(Tensor x, Tensor t, Tensor u, Tensor? label, int field, float guidance, bool transposed) -> Tensor",
)
def _product(
    x: torch.Tensor,
    t: torch.Tensor,
    u: torch.Tensor,
    label: torch.Tensor | None,
    field: int,
    guidance: float,
    transposed: bool,
) -> torch.Tensor:
    """The Jacobian of the velocity in x, or its transpose, times u."""
    known = _field(field)
    product = known.vjp if transposed else known.jvp
    x, t, u = x.detach(), t.detach(), u.detach()
    result = product(x, t, u, label=label)
    if guidance != 0.0:  # the guided velocity is linear in the two it is made of, and so is its Jacobian
        result = (1.0 + guidance) * result - guidance * product(x, t, u)
    return result


# Gradients ----------------------------------------------------------------------------------------------------

_NO_TIME_GRADIENT = "t requires grad, and the derivative of the velocity in t is not known; accepted is t.detach()"


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, t, label, number, ctx.guidance = inputs
    ctx.set_materialize_grads(False)  # no derivative along t is not one of zero
    ctx.save_for_backward(x, t, label)
    ctx.save_for_forward(x, t, label)
    ctx.number, ctx.field = number, _field(number)  # the field lives as long as the graph


def _gradient(ctx: Any, gradient: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None, None, None]:
    if ctx.needs_input_grad[1]:
        raise ValueError(_NO_TIME_GRADIENT)
    if gradient is None:
        return None, None, None, None, None
    x, t, label = ctx.saved_tensors
    return _apply(_product, x, t, gradient, label, ctx.number, ctx.guidance, True), None, None, None, None


def _derivative(ctx: Any, tangent: torch.Tensor | None, tangent_of_t: torch.Tensor | None, *_: None) -> torch.Tensor:
    if tangent_of_t is not None:
        raise ValueError(_NO_TIME_GRADIENT)
    x, t, label = ctx.saved_tensors
    return _apply(_product, x, t, tangent, label, ctx.number, ctx.guidance, False)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    pass


def _no_second(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "second derivatives of the velocity are not known; accepted are first ones, so no derivative of a derivative"
    )


def _differentiated(name: str, operator: Any, keep: Any, backward: Any, jvp: Any) -> type[torch.autograd.Function]:
    """Tell an operator the shape of its result and its gradient, for graphs; and as a function that calls it what
    operators lack: a forward derivative, and the transformations of `torch.func`."""

    @operator.register_fake
    def _(x: Any, *others: Any) -> torch.Tensor:
        return x.new_empty(x.shape, dtype=x.dtype if x.is_floating_point() else torch.float64)

    operator.register_autograd(backward, setup_context=keep)
    members = {"forward": lambda *inputs: operator(*inputs), "setup_context": keep, "backward": backward, "jvp": jvp}
    members = {key: staticmethod(member) for key, member in members.items()}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **members})


_FUNCTIONS = {
    _velocity: _differentiated("_Velocity", _velocity, _keep, _gradient, _derivative),
    _product: _differentiated("_Product", _product, _keep_nothing, _no_second, _no_second),
}


def _apply(operator: Any, *inputs: Any) -> torch.Tensor:
    """Call an operator: as such where a graph is compiled, else with its derivatives."""
    if torch.compiler.is_compiling():
        return operator(*inputs)
    return _FUNCTIONS[operator].apply(*inputs)


# vmap ---------------------------------------------------------------------------------------------------------


def _folded(info: Any, in_dims: Any, field: int, x: torch.Tensor, others: tuple[Any, ...]) -> tuple[Any, ...]:
    """The axis of vmap as part of the one axis of queries: x as (n, *event), and each other as is or one for each.

    `others` are events like x, or one value for each query or for all.
    """
    event = _field(field).event_shape
    count = info.batch_size

    def leading(value: torch.Tensor, dim: int | None) -> torch.Tensor:
        return value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)

    whole = leading(x, in_dims[0])
    queries = whole.shape[1] if whole.ndim > 1 + len(event) else 1
    folded = [whole.reshape(count * queries, *event)]
    for value, dim in zip(others, in_dims[1:], strict=True):
        if value is None or (dim is None and value.ndim == 0):
            folded.append(value)
            continue
        value = leading(value, dim)
        if value.shape == whole.shape and event:
            folded.append(value.reshape(count * queries, *event))
        else:
            folded.append(value.reshape(count, math.prod(value.shape[1:])).expand(count, queries).reshape(-1))
    return (whole.shape, *folded)


@_velocity.register_vmap
def _(
    info: Any, in_dims: Any, x: torch.Tensor, t: torch.Tensor, label: Any, field: int, guidance: float
) -> tuple[torch.Tensor, int]:
    shape, x, t, label = _folded(info, in_dims[:3], field, x, (t, label))
    return _velocity(x, t, label, field, guidance).reshape(shape), 0


@_product.register_vmap
def _(
    info: Any,
    in_dims: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    u: torch.Tensor,
    label: Any,
    field: int,
    guidance: float,
    transposed: bool,
) -> tuple[torch.Tensor, int]:
    shape, x, t, u, label = _folded(info, in_dims[:4], field, x, (t, u, label))
    return _product(x, t, u, label, field, guidance, transposed).reshape(shape), 0


# Public -------------------------------------------------------------------------------------------------------


def velocity(field: VelocityField, x: torch.Tensor, t: Any, label: Any = None, guidance: float = 0.0) -> torch.Tensor:
    """The velocity of a field, differentiable in x; `field(x, t)` does the same where x requires grad.

    Args:
        field: the field.
        x: (B, *event) or one event.
        t: number or tensor, scalar, (B,) or (B, 1), in [0, 1]. It must not require grad.
        label: a class of the field's labels, or (B,) with one for each query.
        guidance: strength of guidance towards the label; see `VelocityField.evaluate`.

    Returns:
        Tensor of the shape, dtype and device of x (float64 for integer x). Derivatives in x, in reverse and forward
        mode, are exact products with the Jacobian: `VelocityField.vjp` and `VelocityField.jvp`.

    Raises:
        TypeError: field is no field, x no tensor, or t, label or guidance no numbers.
        ValueError: as `VelocityField.velocity`; or t requires grad, for that gradient is not known.
        NotImplementedError: on a second backward, through a gradient.
    """
    return _evaluated(_number(a_field(field)), x, t, label, guidance)


def _evaluated(number: int, x: torch.Tensor, t: Any, label: Any, guidance: float) -> torch.Tensor:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x is {type(x).__name__}; accepted is a tensor")
    if x.layout is not torch.strided:
        raise TypeError(f"x has the layout {x.layout}; accepted is a dense tensor, such as x.to_dense()")
    if x.is_nested:
        raise TypeError("x is a nested tensor; accepted is a dense one, such as x.to_padded_tensor(...)")
    t = tensor("t", t, torch.float64)
    if t.requires_grad and torch.is_grad_enabled():
        raise ValueError(_NO_TIME_GRADIENT)
    if isinstance(guidance, torch.Tensor) and guidance.requires_grad:
        raise ValueError("guidance requires grad; accepted is a number")
    label = None if label is None else tensor("label", label)
    return _apply(_velocity, x, t, label, number, strength(guidance))


class VelocityModule(torch.nn.Module):
    """A field as a module: where a trained velocity network is expected, the exact one.

    It has no parameters: `state_dict` is empty, and `to` a device or dtype changes nothing, for results follow x.
    Copies share the field, which never changes; a pickle takes the field and its data along.

    Args:
        field: the field.

    Attributes:
        field: the same.
    """

    def __init__(self, field: VelocityField):
        super().__init__()
        self.field = a_field(field)
        self._number = _number(field)

    def forward(self, x: torch.Tensor, t: Any, *, label: Any = None, guidance: float = 0.0) -> torch.Tensor:
        """The velocity at x and t; arguments, result and errors as for `velocity` in this module."""
        return _evaluated(self._number, x, t, label, guidance)

    @torch.compiler.assume_constant_result
    def extra_repr(self) -> str:
        """The field, for the module's repr."""
        return repr(self.field)

    def __deepcopy__(self, memo: dict[int, Any]) -> VelocityModule:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        memo[id(self.field)] = self.field
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = _number(self.field)
