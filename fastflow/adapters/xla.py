"""What XLA's handlers in C (csrc/xla/ff_xla.h) need of a field, or in words why they cannot serve it.

The only adapter that looks inside a field: a handler runs where there is no Python, so it gets the prepared points, the
numbers of the model, and the schedule as a program.
"""

from __future__ import annotations

import secrets
import weakref
from typing import TYPE_CHECKING, Any

from ..field import VelocityField
from ..quick import NotPlain, native_field

if TYPE_CHECKING:
    from ..backends.native import Published

# What was published of a field, by label, for as long as the field lives.
_published: weakref.WeakKeyDictionary[VelocityField, dict[int | None, Published]] = weakref.WeakKeyDictionary()


def handlers() -> dict[str, Any]:
    """Capsules of the handlers, by the names that XLA is to know them by."""
    from ..backends import native

    return native.XLA_HANDLERS


def publish(field: VelocityField, label: int | None) -> int | str:
    """The number by which the handlers know the field (those points of it that have the label, where one is given).

    It is drawn at random, so that one kept in an exported program meets no field elsewhere instead of a wrong one, and
    is good while the field lives. A text, the reason, where the handlers cannot serve the field.
    """
    if field.backend != "native":
        return f"the backend is {field.backend}"
    known = _published.setdefault(field, {})
    if label not in known:
        from ..backends import native

        part = field._parts.whole if label is None else field._parts.labelled(label)
        try:
            known[label] = native.Published(secrets.randbits(62), native_field(part, field.schedule, field.event_shape))
        except NotPlain as error:
            return str(error)
    return known[label].number
