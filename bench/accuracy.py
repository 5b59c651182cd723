"""How right the answers are: float32 results on real images against float64, from noise to almost the data.

The data are patches of photographs with values between -1 and 1, and the same with 100 added. A query is on the path
to one of the patches. Near t = 1 the weights hang on small differences of large numbers, which the usual expansion of
the square loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import answers
from .cases import IMAGE_OFFSET, IMAGE_SCALE, Points
from .contenders import Contender
from .patches import patches

TIMES = (0.1, 0.5, 0.9, 0.99, 0.999)
SHIFTS = (0.0, 100.0)

# Patches and queries.
_SIZES = {"short": (500, 4), "full": (8_000, 16)}


@dataclass(frozen=True)
class Accuracy:
    """The largest relative error over the queries, for each of `TIMES`, of one contender on the data plus a shift."""

    contender: str
    storage: str
    shift: float
    errors: tuple[float, ...]


def size(mode: str) -> str:
    """What is measured, in words."""
    points, queries = _SIZES[mode]
    return f"N = {points:,} patches, d = 3,072, {queries} queries"


def accuracies(contenders: Sequence[Contender], mode: str) -> list[Accuracy]:
    """Every contender on float32 data, and each backend of fastflow on the pixels as they are, for each shift."""
    found = []
    for shift in SHIFTS:
        pixels = Points(patches(_SIZES[mode][0]), IMAGE_SCALE, IMAGE_OFFSET + shift)
        # Rounded to float32 the shifted data are other data, with another right answer.
        for points in (Points(pixels.values()), pixels):
            storage = points.stored.dtype.name
            chosen = [c for c in contenders if storage == "float32" or c.backend is not None]
            queries = [_queries(points, t, mode) for t in TIMES]
            right = [answers.expected(points, x, t) for x, t in zip(queries, TIMES, strict=True)]
            for contender in chosen:
                errors = []
                for t, x, v in zip(TIMES, queries, right, strict=True):
                    result = contender.leave(contender.prepare(points, t)(contender.enter(x)))
                    errors.append(answers.relative_error(result, v))
                found.append(Accuracy(contender.name, storage, shift, tuple(errors)))
    return found


def _queries(points: Points, t: float, mode: str) -> np.ndarray:
    """(B, d) float32: draws of x_t, each on the path to a random patch."""
    generator = np.random.default_rng(20243)
    chosen = generator.choice(len(points.stored), _SIZES[mode][1], replace=False)
    targets = np.concatenate([points.block(j, j + 1) for j in chosen])
    return ((1.0 - t) * generator.standard_normal(targets.shape) + t * targets).astype(np.float32)
