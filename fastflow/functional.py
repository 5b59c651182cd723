"""The drop-in function: one velocity from data and options, without keeping a field."""

from __future__ import annotations

from typing import Any

import numpy as np

from .field import VelocityField


def velocity(
    x: Any,
    t: Any,
    data: Any,
    *,
    label: Any = None,
    subset: Any = None,
    exclude: Any = None,
    guidance: float = 0.0,
    out: np.ndarray | None = None,
    **field_options: Any,
) -> np.ndarray:
    """The optimal velocity of flow matching at x and t for the data set `data`.

    Args:
        x: (B, *event) or one event.
        t: scalar, (B,) or (B, 1), in [0, 1]; 0 is the source, 1 the data.
        data: (N, *event).
        label, subset, exclude, guidance, out: as for `VelocityField.velocity`.
        **field_options: as for `VelocityField`.

    Returns:
        Array of the shape and dtype of x. The data are validated on every call: keep a `VelocityField` where the
        same data set is evaluated again.
    """
    field = VelocityField(data, **field_options)
    return field.velocity(x, t, label=label, subset=subset, exclude=exclude, guidance=guidance, out=out)
