"""PyTorch on the processor, in eager mode."""

from __future__ import annotations

from . import Rival, _torch

RIVAL = Rival(
    "torch-eager",
    available=_torch.installed,
    prepare=_torch.prepare_eager,
    needs="torch",
    enter=_torch.tensor,
    leave=_torch.to_numpy,
)
