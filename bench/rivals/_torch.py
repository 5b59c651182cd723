"""What the rivals that run on PyTorch share: tensors in and out, and the formula in eager mode on any device."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import factors

if TYPE_CHECKING:
    import torch


def installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def cuda() -> bool:
    """Whether PyTorch is here and sees a GPU."""
    if not installed():
        return False
    import torch

    return torch.cuda.is_available()


def tensor(array: np.ndarray) -> torch.Tensor:
    """The array itself as a tensor. The data are read-only, which PyTorch warns about; no rival writes to them."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def to_cuda(array: np.ndarray) -> torch.Tensor:
    return tensor(array).to("cuda")


def to_numpy(result: torch.Tensor) -> np.ndarray:
    return result.cpu().numpy()


def prepare_eager(
    data: np.ndarray, t: float, num_threads: int, *, device: str = "cpu", precision: str = "highest"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Two products and a softmax, one after the other, the weights in one buffer kept from call to call.

    Args:
        data, t, num_threads: as for every rival.
        device: where the data are put, once, and where the queries are.
        precision: "highest" for float32 products, "high" for tf32 ones. PyTorch keeps one setting for the whole
            process, so every call sets its own.
    """
    import torch

    torch.set_num_threads(num_threads)
    scale, square, gain = factors(t)
    points = tensor(data).to(device)
    bias = squared_norms(points).mul_(square)
    buffers: dict[int, torch.Tensor] = {}
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    @torch.inference_mode()
    def call(x: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision(precision)
        count = len(x)
        if count not in buffers:
            buffers[count] = torch.empty((count, len(points)), device=device)
        weights = torch.addmm(bias, x, points.T, alpha=scale, out=buffers[count])
        torch.softmax(weights, 1, out=weights)
        v = (weights @ points).sub_(x).mul_(gain)
        wait()
        return v

    return call


def squared_norms(points: torch.Tensor) -> torch.Tensor:
    """|s|² of each point, without a second copy of the data."""
    import torch

    return torch.linalg.vector_norm(points, dim=1).square_()
