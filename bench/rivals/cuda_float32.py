"""PyTorch on a GPU, products in float32 (tf32 off). Data and queries are on the GPU before the time starts."""

from __future__ import annotations

from functools import partial

from . import Rival, _torch

RIVAL = Rival(
    "cuda-float32",
    available=_torch.cuda,
    prepare=partial(_torch.prepare_eager, device="cuda"),
    needs="torch with a GPU",
    enter=_torch.to_cuda,
    leave=_torch.to_numpy,
    device="cuda",
)
