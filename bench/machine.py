"""What was measured on: the machine, the libraries, the threads, and a check that the extension is there."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastflow as ff
from fastflow.backends.cores import usable_cores

from . import ROOT, held

_LIBRARIES = ("numpy", "numba", "torch", "jax", "pykeops")
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Unmeasurable(RuntimeError):
    """The measurement would not mean what it says."""


def require_extension() -> None:
    """Refuse to measure a fastflow without its compiled extension, unless it was left out on purpose."""
    native = ff.backends()["native"]
    if native.available or os.environ.get("FASTFLOW_NO_EXTENSION") == "1":
        return
    where = "the source tree" if _in_source_tree() else "an installation"
    raise Unmeasurable(
        f"fastflow comes from {where} without the compiled extension ({native.reason}). "
        "Run `pip install .` (or `pip install -e .`) and start again; "
        "to measure without the extension set FASTFLOW_NO_EXTENSION=1."
    )


def machine(num_threads: int) -> dict[str, str]:
    """Processor, cores, date and versions, as ordered name-value pairs."""
    rows = {
        "processor": _processor(),
        "cores": str(usable_cores()),
        "threads": str(num_threads),
        **({"all held to": held.isa()} if held.isa() else {}),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "fastflow": ff.__version__ + (" (source tree)" if _in_source_tree() else ""),
    }
    for library in _LIBRARIES:
        try:
            rows[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = _gpu()
    if gpu:
        rows["gpu"] = gpu
    for pool in _blas_pools():
        rows["blas"] = f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', '?')})"
    for name, info in ff.backends().items():
        if info.isas:
            rows[name] = ", ".join(info.isas)
        elif not info.available:
            rows[name] = f"not available: {info.reason}"
    return rows


def machine_line(rows: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in rows.items())


@contextmanager
def equal_threads(num_threads: int) -> Iterator[None]:
    """BLAS held to as many threads as fastflow is given.

    With threadpoolctl this is set and verified. Without it BLAS must already be so, by its default of all usable
    cores or by the environment it was loaded in.
    """
    try:
        import threadpoolctl
    except ImportError:
        text = next((os.environ[name] for name in _BLAS_VARIABLES if os.environ.get(name)), str(usable_cores()))
        if text != str(num_threads):
            raise Unmeasurable(
                f"BLAS runs {text} threads and fastflow would run {num_threads}. Install threadpoolctl, "
                f"or set OPENBLAS_NUM_THREADS={num_threads}."
            ) from None
        yield
        return
    with threadpoolctl.threadpool_limits(num_threads, user_api="blas"):
        for pool in _blas_pools():
            if pool["num_threads"] != num_threads:
                raise Unmeasurable(f"{pool['internal_api']} runs {pool['num_threads']} threads, not {num_threads}")
        yield


def _blas_pools() -> list[dict]:
    """The BLAS libraries of this process that NumPy uses, as threadpoolctl sees them; none without it."""
    try:
        import threadpoolctl
    except ImportError:
        return []
    return [
        pool
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas" and "scipy.libs" not in pool["filepath"]
    ]


def _gpu() -> str:
    """The GPU that PyTorch sees, if it is loaded and sees one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else ""


def _in_source_tree() -> bool:
    return Path(ff.__file__).resolve().is_relative_to(ROOT)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
