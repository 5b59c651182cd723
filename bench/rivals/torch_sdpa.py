"""PyTorch's fused attention on the processor: the velocity is an attention of the queries over the points.

    scaled_dot_product_attention(x, S, S, attn_mask=-|s|² t²/(2 (1-t)²), scale=t/(1-t)²)

Its flash kernel never forms the (B, N) weights. It hands its threads slices of the queries of one head, of 256, 64 or
32 queries. With fewer slices than threads some would idle, so then the queries are dealt out to several heads, which
all see the same points without a copy. (One query is one slice, whatever is done.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import Rival, _torch, factors

if TYPE_CHECKING:
    import torch


def slices(count: int) -> int:
    """In how many slices PyTorch's flash kernel for processors cuts `count` queries of a head."""
    size = 256 if count >= 768 else 64 if count >= 192 else 32
    return -(-count // size)


def heads(count: int, num_threads: int) -> int:
    """The fewest heads, a power of two, that give every thread a slice; or as many as divide the queries evenly."""
    chosen = 1
    while chosen * slices(count // chosen) < num_threads and count % (2 * chosen) == 0:
        chosen *= 2
    return chosen


def prepare(data: np.ndarray, t: float, num_threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(num_threads)
    scale, square, gain = factors(t)
    points = _torch.tensor(data)
    mask = _torch.squared_norms(points).mul_(square)
    num_points, dim = points.shape

    @torch.inference_mode()
    def call(x: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision("highest")
        count = heads(len(x), num_threads)
        each = len(x) // count
        key = points.expand(1, count, num_points, dim)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error rather than the unfused formula
            v = torch.nn.functional.scaled_dot_product_attention(
                x.view(1, count, each, dim), key, key, attn_mask=mask.expand(1, count, each, num_points), scale=scale
            )
        return v.reshape(len(x), dim).sub_(x).mul_(gain)

    return call


RIVAL = Rival(
    "torch-sdpa",
    available=_torch.installed,
    prepare=prepare,
    needs="torch",
    enter=_torch.tensor,
    leave=_torch.to_numpy,
)
