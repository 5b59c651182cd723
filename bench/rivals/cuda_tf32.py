"""PyTorch on a GPU, products in tf32: 11 bits of significand, so that its answers are right to three digits only."""

from __future__ import annotations

from functools import partial

from . import Rival, _torch

RIVAL = Rival(
    "cuda-tf32",
    available=_torch.cuda,
    prepare=partial(_torch.prepare_eager, device="cuda", precision="high"),
    needs="torch with a GPU",
    enter=_torch.to_cuda,
    leave=_torch.to_numpy,
    device="cuda",
    tolerance=0.1,
)
