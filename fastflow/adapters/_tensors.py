"""What an adapter for PyTorch may be handed beside tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import real_number, shown
from .._optional import require

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch", "torch")


def tensor(name: str, value: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`value` as a dense tensor, the same where it is one; TypeError naming the argument where it cannot be one."""
    if isinstance(value, torch.Tensor):
        if value.is_nested or value.layout is not torch.strided:
            raise TypeError(f"{name} is a nested or sparse tensor; accepted are numbers and dense tensors of them")
        return value
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} is {shown(value)}; accepted are numbers and tensors of them") from error


def real_values(name: str, value: Any) -> np.ndarray:
    """The values of numbers or of a tensor as a NumPy array; TypeError naming the argument where there are none."""
    found = tensor(name, value)
    if found.is_meta or found.is_complex() or found.is_quantized:
        kind = "a tensor without values" if found.is_meta else f"of {found.dtype}"
        raise TypeError(f"{name} is {kind}; accepted are real numbers and tensors of them")
    if found.is_floating_point() and found.dtype not in (torch.float32, torch.float64):
        found = found.float()  # half precision and less: NumPy does not know all of them
    return found.numpy(force=True)


def strength(guidance: Any) -> float:
    """The strength of guidance as a float; TypeError where it is no number."""
    if isinstance(guidance, float):
        return guidance
    if isinstance(guidance, int) and not isinstance(guidance, bool):
        return real_number("guidance", guidance)
    value = tensor("guidance", guidance)
    if value.ndim != 0 or value.is_complex() or value.is_meta or value.dtype == torch.bool:
        raise TypeError(f"guidance is {shown(guidance)}; accepted is one number")
    return float(value)
