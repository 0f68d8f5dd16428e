"""Divides a score matrix into shards of training tasks and blocks of test tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ....bilevel.solved_tasks import SolvedTasks

SHARD_BYTES = 2**26
"""Largest size of a shard, unless a single task takes more; an interrupted run repeats one shard at most."""

MOST_TASKS = 1024
"""Largest number of training tasks in a shard: with short rows it is the tasks that take the time, not the bytes."""


@dataclass(frozen=True)
class ShardPlan:
    """The bounds of shards and blocks.

    They follow from sizes alone, before anything is computed. A resumed run therefore batches the same tasks together,
    and its numbers are bit-identical.

    Attributes:
        counts: number of items of each training task, ``[N]``.
        tests: number of test tasks, T.
        shard: number of training tasks in a shard.
        block: number of test tasks in a block.
    """

    counts: npt.NDArray[np.int64]
    tests: int
    shard: int
    block: int

    @classmethod
    def within(cls, test: SolvedTasks, counts: Sequence[int], shard: int | None) -> ShardPlan:
        """The plan that fits the memory budget of the test tasks' problem, with ``shard`` as given if it is.

        Raises:
            ValueError: ``shard`` is less than 1.
        """
        if shard is not None and shard < 1:
            raise ValueError(f"shard is the number of training tasks in a shard, 1 or more, not {shard}")
        tests, items = len(test.tasks), np.asarray(counts, dtype=np.int64)
        block = min(tests, test.settings.right_hand_sides_at_once(test.lam))
        most = SHARD_BYTES // int(items.mean() * tests * test.lam.element_size())
        # With several blocks the inner solutions of a shard are used once for each, so they have to fit in memory.
        fitting = min(most, MOST_TASKS) if block == tests else min(most, MOST_TASKS, block)
        return cls(items, tests, shard or max(1, fitting), block)

    @property
    def shards(self) -> list[range]:
        """Positions of the training tasks in each shard."""
        return _runs(len(self.counts), self.shard)

    @property
    def blocks(self) -> list[range]:
        """Positions of the test tasks in each block."""
        return _runs(self.tests, self.block)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each training task, then the number of rows, ``[N + 1]``."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def rows(self, tasks: range) -> slice:
        """The rows of the matrix that belong to consecutive training tasks."""
        return slice(int(self.starts[tasks.start]), int(self.starts[tasks.stop]))


def _runs(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
