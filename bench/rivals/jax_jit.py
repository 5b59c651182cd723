"""JAX on the processor: the formula compiled as one function, for each shape once.

XLA starts its threads once per process, as many as NPROC says when JAX starts. It is kept from any GPU, of whose memory
it would take most from whoever else is measured there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from . import Rival, factors

if TYPE_CHECKING:
    import jax


def available() -> bool:
    return importlib.util.find_spec("jax") is not None


@cache
def _processor(num_threads: int) -> jax.Device:
    """JAX's CPU device with this many threads; another number later in the same process is refused."""
    if _processor.cache_info().currsize:
        raise RuntimeError(f"JAX runs with the threads it started with in this process, not {num_threads}")
    os.environ.update(NPROC=str(num_threads), JAX_PLATFORMS="cpu")
    import jax

    return jax.devices("cpu")[0]


@cache
def _velocity() -> Callable[..., jax.Array]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def velocity(x: jax.Array, points: jax.Array, bias: jax.Array, scale: float, gain: float) -> jax.Array:
        weights = jax.nn.softmax(jnp.matmul(x * scale, points.T) + bias, axis=1)
        return (jnp.matmul(weights, points) - x) * gain

    return velocity


def prepare(data: np.ndarray, t: float, num_threads: int) -> Callable[[jax.Array], jax.Array]:
    device = _processor(num_threads)
    import jax

    scale, square, gain = map(np.float32, factors(t))
    points = jax.device_put(data, device)
    bias = jax.device_put(np.einsum("nd,nd->n", data, data) * square, device)
    velocity = _velocity()
    return lambda x: velocity(x, points, bias, scale, gain).block_until_ready()


def enter(x: np.ndarray) -> jax.Array:
    import jax

    return jax.device_put(x, jax.devices("cpu")[0])


RIVAL = Rival(
    "jax-jit",
    available=available,
    prepare=prepare,
    needs="jax",
    enter=enter,
    leave=np.asarray,
    can_be_held=False,
)
