"""What adapters are handed beside states: a field, a class, a strength of guidance and times that overshoot."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _arrays
from ..field import VelocityField

FAR = 10.0
"""How far past an end of [0, 1] a solver may look. Adaptive steps grow tenfold at most from one that lay inside, and
what is meant otherwise (a step number, a noise level, time in percent) is larger."""


def a_field(field: Any) -> VelocityField:
    """The field; TypeError where it is none."""
    if not isinstance(field, VelocityField):
        raise TypeError(f"field is {type(field).__name__}; accepted is a VelocityField")
    return field


def check_label(field: VelocityField, label: Any, guidance: float) -> None:
    """Raise what the field has to say of a label (one, or one for each point) and of guidance, before there are points.

    Raises:
        TypeError, ValueError: as `VelocityField.velocity`.
    """
    each: list[Any] = [label]
    if label is not None:
        array = _arrays.any_array("label", label)
        each = np.unique(_arrays.whole_numbers("label", array, () if array.ndim == 0 else None)).tolist() or [None]
    nowhere = np.empty((0, *field.event_shape))
    for one in each:
        field.velocity(nowhere, 0.0, label=one, guidance=guidance)


def far_from_time(t: float) -> ValueError:
    """The error for a time that is no overshoot."""
    return ValueError(
        f"the time t is {t:g}; accepted is 0 (noise) to 1 (data), which a solver that looks ahead may overshoot by "
        f"{FAR:g}"
    )
