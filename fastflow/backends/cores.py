"""How many threads a call takes: what it is told, else what its field was told, else what the machine gives us."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import numpy as np

from .._arrays import shown

# More would not help anywhere; the pools of the backends take no more (csrc/ff_threads.c).
MAX_THREADS = 1024

_told: ContextVar[int | None] = ContextVar("fastflow_threads", default=None)


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Within this context, calls of any field by this Python thread take so many threads, whatever the field was told.

    Results do not depend on it, bit for bit.

    Args:
        num_threads: 1 to 1024.

    Raises:
        TypeError, ValueError: it is no such number.
    """
    if num_threads is None:
        raise TypeError(f"num_threads is None; {_ACCEPTED}")
    token = _told.set(thread_count(num_threads))
    try:
        yield
    finally:
        _told.reset(token)


def threads_of_call(own: int) -> int:
    """What a call takes, of a field that was told `own`."""
    return _told.get() or own


_ACCEPTED = f"accepted is a whole number of at least 1 and at most {MAX_THREADS}"


def thread_count(num_threads: int | None) -> int | None:
    """The number of threads asked for by argument or environment; None leaves it to the backend."""
    origin, value = "num_threads", num_threads
    if value is None:
        text = os.environ.get("FASTFLOW_NUM_THREADS")
        if not text:
            return None
        if not text.isdecimal() or len(text) > 4000:  # Python refuses to read more digits
            raise ValueError(f"FASTFLOW_NUM_THREADS is {shown(text)}; {_ACCEPTED}")
        origin, value = "FASTFLOW_NUM_THREADS", int(text)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{origin} is {shown(value)}; {_ACCEPTED}")
    if not 1 <= value <= MAX_THREADS:
        raise ValueError(f"{origin} is {shown(value)}; {_ACCEPTED}")
    return int(value)


def usable_cores() -> int:
    """The default number of threads: physical cores that this process may run on, within what its control group may
    use of them. Two hardware threads of a core share its arithmetic units, which one keeps busy."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = _physical(frozenset(os.sched_getaffinity(0)))
    return max(1, math.ceil(min(cores, _quota())))


@cache
def _physical(processors: frozenset[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """How many physical cores some processors belong to; each is one of its own where the system does not say."""
    cores = set()
    for number in processors:
        try:
            cores.add((root / f"cpu{number}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(number))
    return len(cores)


@cache
def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors' worth of time that the control group of this process may use; infinite where there is no limit."""
    try:  # version 2: "max 100000" or "150000 100000", in microseconds
        quota, period = (root / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:  # version 1: -1 for no limit
        quota, period = (int((root / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
