"""What an adapter for PyTorch may be handed beside tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._arrays import shown
from .._optional import require

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch", "torch")


def tensor(name: str, value: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`value` as a tensor, the same where it is one; TypeError naming the argument where it cannot be one."""
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is {shown(value)}; accepted are numbers and tensors of them") from error


def strength(guidance: Any) -> float:
    """The strength of guidance as a float; TypeError where it is no number."""
    if isinstance(guidance, (int, float)) and not isinstance(guidance, bool):
        return float(guidance)
    value = tensor("guidance", guidance)
    if value.ndim != 0 or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"guidance is {shown(guidance)}; accepted is one number")
    return float(value)
