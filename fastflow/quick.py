"""The velocity of plain calls by C alone, past the checks and layers that they have no need of, to the same bits.

What is plain is said by `Field.velocity` of the native backend; whatever is not takes the general way, which computes
it, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .parts import Part
from .program import NotRecordable, recorded
from .schedules import Schedule

if TYPE_CHECKING:
    from .backends.native import Field


class NotPlain(TypeError):
    """The points have variances of their own or covariances, or the schedule is no formula."""


def native_field(part: Part, schedule: Schedule, event_shape: tuple[int, ...]) -> Field:
    """A part of the native backend with its schedule, as C evaluates both. Raises NotPlain, saying why it cannot."""
    from .backends import native

    model = part.model
    if model.frame is not None or part.points.variance is not None:
        raise NotPlain("the points have variances of their own, or covariances")
    try:
        program = recorded(schedule)
        codes = native.operations()
        steps = [(codes[operation], a, b) for operation, a, b in program.instructions]
        formula = native.Program(program.constants, steps, program.outputs)
    except (NotRecordable, ValueError) as error:
        raise NotPlain(str(error)) from error
    return native.Field(part.prepared, formula, model.source_variance, model.target, model.source_mean, event_shape)


def velocity_at(
    part: Part, schedule: Schedule, event_shape: tuple[int, ...], backend: str
) -> Callable[[Any, Any], np.ndarray | None]:
    """The function of x and t that gives the velocity of a part, or None where the general way is to be taken.

    That is always so for backends without C, whose calls cost more than what is saved, and for schedules that are not
    this package's: what those say is asked for, and checked, in each call.
    """
    if backend != "native" or type(schedule).__module__ != Schedule.__module__:
        return _never
    try:
        return native_field(part, schedule, event_shape).velocity
    except NotPlain:
        return _never


def _never(x: Any, t: Any) -> None:
    return None
