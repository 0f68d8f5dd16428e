"""How a score matrix is cut: shards of training tasks, blocks of test tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ....bilevel.solved_tasks import SolvedTasks

SHARD_BYTES = 2**26
"""What a shard of scores takes at most, unless one task takes more: it is what a run that is killed has to repeat."""

MOST_TASKS = 1024
"""In a shard: where rows are short, it is not their bytes that take the time."""


@dataclass(frozen=True)
class Cut:
    """Where the shards and blocks begin.

    It follows from sizes alone, before anything is computed: a run that goes on where another was killed batches the
    same tasks together, so that its numbers are the same to the last bit.

    Attributes:
        counts: items of each training task, ``[N]``.
        tests: T.
        shard: training tasks in a shard.
        block: test tasks in a block.
    """

    counts: npt.NDArray[np.int64]
    tests: int
    shard: int
    block: int

    @classmethod
    def within(cls, test: SolvedTasks, counts: Sequence[int], shard: int | None) -> Cut:
        """By the memory budget, and by ``shard`` if given.

        Raises:
            ValueError: ``shard`` is less than 1.
        """
        if shard is not None and shard < 1:
            raise ValueError(f"shard is the number of training tasks in a shard, 1 or more, not {shard}")
        tests, items = len(test.tasks), np.asarray(counts, dtype=np.int64)
        block = min(tests, test.settings.at_once(test.lam))
        most = SHARD_BYTES // int(items.mean() * tests * test.lam.element_size())
        # With several blocks a shard's inner solutions are used as often: they are to fit in memory.
        fitting = min(most, MOST_TASKS) if block == tests else min(most, MOST_TASKS, block)
        return cls(items, tests, shard or max(1, fitting), block)

    @property
    def shards(self) -> list[range]:
        """Positions of the training tasks of each."""
        return _runs(len(self.counts), self.shard)

    @property
    def blocks(self) -> list[range]:
        """Positions of the test tasks of each."""
        return _runs(self.tests, self.block)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each task, and the number of all rows, ``[N + 1]``."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def rows(self, tasks: range) -> slice:
        """The matrix's rows that belong to a run of tasks."""
        return slice(int(self.starts[tasks.start]), int(self.starts[tasks.stop]))


def _runs(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
