"""The plan of a kernel: how it cuts the work, what it takes, and how its sums become moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .. import Tangent
from .common import Data, Queries, finish_means, finish_states, fold_sums

if TYPE_CHECKING:
    from . import Compiled

GROUPS = 32  # tasks per block of queries: enough to keep the threads of a large machine even
STATE_BYTES = 24 << 20  # of the partial sums that are held at a time


class Plan:
    """One kernel: how it cuts the work, its workspace and what it takes.

    Attributes:
        kernel: compiled function that works on tasks until none are left. fold: adds groups to the totals.
        rows: queries are padded to a multiple of this. columns: length of a row of sums.
        numbers: how many make a state.
        task_queries: queries of one task. takes_raw: whether it takes `x - alpha m_i`.
    """

    kernel: Callable
    fold: Callable = staticmethod(fold_sums)
    rows = 1
    numbers = 4
    takes_raw = False

    def __init__(self, prepared: Compiled, chunk: int, task_queries: int, columns: int):
        groups = -(-prepared.count // (chunk * GROUPS))  # whole chunks, at most GROUPS groups
        self.data = Data(
            prepared.points, prepared.index, prepared.centre, prepared.squares, prepared.log_mass, groups * chunk
        )
        self.task_queries, self.columns = task_queries, columns

    @property
    def groups(self) -> int:
        """How many groups the points are cut into."""
        return -(-len(self.data.squares) // self.data.group_points)

    def queries_at_a_time(self) -> int:
        """Queries whose partial sums over all groups fit the memory they are given, but at least one task's."""
        fitting = STATE_BYTES // (8 * self.groups * max(self.columns, 4))
        return max(1, fitting // self.task_queries) * self.task_queries

    def prepare(self, queries: Queries, tangent: Tangent | None) -> tuple:
        """What the kernel takes beside the arguments that all kernels take."""
        return ()

    def workspace(self) -> tuple:
        """Arrays of one thread."""
        raise NotImplementedError

    def finish(self, queries: Queries, states: np.ndarray, sums: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
        """Totals to moments, by name in `outputs`, where those that were not asked for are empty."""
        finish_states(queries.numbers, states, *(outputs[name] for name in ("log_total", "entropy", "collision")))
        if len(outputs["mean"]):
            arrays = outputs["mean"], outputs["residual"]
            finish_means(self.data.centre, queries.numbers, queries.e, states, sums, *arrays)
