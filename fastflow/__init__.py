"""fastflow: the exact optimal velocity field of flow matching for a finite data set.

    import fastflow as ff

    field = ff.VelocityField(data)      # (N, *event)
    v = field(x, t)                     # E[alpha' x_i + beta' x_f | x_t = x], shape and dtype of x

How the data flow, left to right and back once; no layer imports one above it:

    user arrays - _arrays - VelocityField - path_at(schedule, t) - backend registry - moments kernel
                                                                   native | numba | numpy
    user arrays - _arrays - quantities(moments, path) - Moments (mergeable) ----------'

Time runs from 0 (source, noise) to 1 (target, data); variances are variances, not standard deviations.

The formulas are derived in docs/theory.md. Comments refer to the notes they come from by name and equation ("Fan 46"):
Fan, Gao, Wu, Zhang and Khungurn, listed at the top of that page.
"""

from . import conversions, schedules
from ._version import __version__
from .backends import backends
from .backends.cores import threads
from .c_api import get_include, get_library
from .field import VelocityField
from .functional import velocity
from .moments import Moments, merge
from .versions import show_versions

__all__ = [
    "Moments",
    "VelocityField",
    "__version__",
    "backends",
    "conversions",
    "get_include",
    "get_library",
    "merge",
    "schedules",
    "show_versions",
    "threads",
    "velocity",
]
