"""The threads: Python's own, which help a caller with its tasks.

The compiled code releases the GIL. Unlike numba's threading layers this pool may be used by several callers at once and
after a fork, and takes any number of threads. A worker enters compiled code once and takes tasks from a shared counter
there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """After a fork the child has no threads: it makes its own pool when it needs one."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers() -> ThreadPoolExecutor:
    """The pool of helping threads, which starts them as they are needed."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="fastflow")
        return _pool


def run(task: Callable, tasks: list[tuple], threads: int, workspace: Callable) -> None:
    """Call `task(*arguments, *workspace())` for every tuple of arguments, on up to `threads` threads.

    The caller takes tasks too, so that progress never depends on the pool; helpers that have not started by the time
    the tasks run out are not waited for.
    """
    waiting = iter(tasks)
    lock = threading.Lock()

    def work() -> None:
        space = workspace()
        while True:
            with lock:
                arguments = next(waiting, None)
            if arguments is None:
                return
            task(*arguments, *space)

    helping = []
    try:
        for _ in range(min(threads, len(tasks)) - 1):
            helping.append(_helpers().submit(work))
    except RuntimeError:  # the interpreter is shutting down and starts no more threads
        pass
    try:
        work()
    finally:
        for future in helping:
            if not future.cancel():
                future.result()
