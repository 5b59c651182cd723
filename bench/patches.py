"""Real images: patches of 32 x 32 pixels, cut at random from photographs that scikit-learn and scikit-image ship."""

from __future__ import annotations

from functools import cache

import numpy as np

from fastflow._optional import require

SIZE = 32
DIM = 3 * SIZE**2

# Those of scikit-image that come with it and show something of their own.
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@cache
def patches(num: int) -> np.ndarray:
    """`num` patches from all photographs alike, (num, 3072) uint8, always the same."""
    generator = np.random.default_rng(20242)
    photographs = _photographs()
    found = np.empty((num, SIZE, SIZE, 3), dtype=np.uint8)
    for i, chosen in enumerate(generator.integers(len(photographs), size=num)):
        photograph = photographs[chosen]
        row, column = (generator.integers(extent - SIZE + 1) for extent in photograph.shape[:2])
        found[i] = photograph[row : row + SIZE, column : column + SIZE]
    return found.reshape(num, DIM)


def _photographs() -> list[np.ndarray]:
    """(height, width, 3) uint8 each."""
    datasets, data = require("sklearn.datasets", "bench"), require("skimage.data", "bench")
    return [*datasets.load_sample_images().images, *(getattr(data, name)() for name in _PHOTOGRAPHS)]
