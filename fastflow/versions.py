"""What is installed and what would run: for bug reports and for the curious."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from ._version import __version__
from .backends import backends, choose
from .backends.cores import usable_cores

_LIBRARIES = ("numpy", "scipy", "numba")


def versions() -> dict[str, str]:
    """Versions, backends and the choice among them, as ordered name-value pairs.

    Where the environment asks for what cannot be honoured (`FASTFLOW_BACKEND`, `FASTFLOW_ISA`, `FASTFLOW_NUM_THREADS`),
    the row of the choice says so: this is where to look for the reason of such an error, and raises none.
    """
    rows = {
        "fastflow": __version__,
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for library in _LIBRARIES:
        try:
            rows[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            rows[library] = "not installed"
    for name, info in backends().items():
        rows[f"backend {name}"] = ("available: " if info.available else "not available: ") + info.reason
        if info.isas:
            rows[f"{name} instruction sets"] = ", ".join(info.isas)
    try:
        choice = choose()
    except ValueError as error:
        rows["chosen backend"] = f"none: {error}"
        return rows
    rows["chosen backend"] = f"{choice.name} ({choice.reason})"
    if choice.isa:
        rows["chosen instruction set"] = choice.isa
    rows["threads"] = str(choice.num_threads or usable_cores())
    return rows


def show_versions() -> None:
    """Print the versions of fastflow and its libraries, the backends with reasons, and what would be used.

    An override in the environment that cannot be honoured is printed, not raised.
    """
    rows = versions()
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
