"""Fills the folder of a score matrix, from wherever it was left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from ....bilevel.item_gradients import ItemGradient
from ....bilevel.solved_tasks import SolvedBatch, SolvedTasks
from ....storage.matrix_folder import DIGEST_BYTES, MatrixFolder, Solved
from ...estimators.outer import Outer
from ...estimators.scoring import each_test
from ...estimators.tally import Tally
from .fingerprint import MatrixFingerprint
from .shard_plan import ShardPlan


class Writer:
    """Writes IS of every item on every test task, ``[items, T]``, in the dtype of λ.

    First the test vectors are solved, block by block, and put into the folder. Then the shards are filled one by one:
    the training tasks of each are a problem of their own, so that what is batched together does not depend on what was
    done before. What is used later is read from the folder, whether this run or one before has put it there.

    Attributes:
        tally: what the shards that are done say of λ*.
    """

    def __init__(
        self, folder: str | Path, outer: Outer, level: ItemGradient, test: SolvedTasks, exact: bool, plan: ShardPlan
    ) -> None:
        self._folder, self._outer, self._level = MatrixFolder(folder), outer, level
        self._test, self._exact, self._plan = test, exact, plan
        self.tally = Tally(outer.study.solved_tasks, outer.study.problem.l2)
        self._done = torch.zeros(len(plan.shards), DIGEST_BYTES, dtype=torch.uint8)
        self._tallied = 0
        self._vectors: tuple[int, Tensor] | None = None
        self._test_losses: list[float] = []
        # What scores are computed in, where NumPy has it.
        self._dtype = np.dtype(np.float64 if test.lam.dtype == torch.float64 else np.float32)
        self._about: dict[str, Any] = {}

    def begin(self, fingerprint: MatrixFingerprint) -> None:
        """Go on with what the folder holds, or begin.

        Raises:
            ForeignMatrixError: it depends on something else.
        """
        self._about = {
            "what": self._level.item_name,
            "shape": [int(self._plan.starts[-1]), self._plan.tests],
            "dtype": self._dtype.name,
            "shards": len(self._plan.shards),
            "depends": asdict(fingerprint),
        }
        known = self._folder.manifest()
        if known is not None:
            fingerprint.require(known["depends"], self._folder.path)
            self._go_on()
        else:
            ids = np.array([task.id for task in self._outer.study.recorded], dtype=np.int64)
            self._folder.begin(self._about, np.stack([ids, self._plan.counts], axis=1))

    def solve(self) -> list[str]:
        """See that all test vectors are in the folder; how they were solved."""
        notes: dict[str, None] = {}
        for number, columns in enumerate(self._plan.blocks):
            if self._folder.solved(number) is None:
                self._folder.keep_solved(number, self._solved(columns))
            solved = self._read(number)
            self._test_losses += solved.losses.tolist()
            notes[solved.note] = None
        return list(notes)

    def score(self) -> None:
        """See that all shards are in the folder."""
        progress = self._test.settings.progress
        hidden = None if progress is None else not progress
        for number in tqdm(range(len(self._done)), desc="shards", unit="shard", leave=False, disable=hidden):
            if not self._is_done(number):
                self._fill(number)
                self._note(number)

    def finish(self, notes: Sequence[str]) -> None:
        """Say that it is finished."""
        self._folder.describe({**self._about, "test_losses": self._test_losses, "notes": list(notes)})

    def _go_on(self) -> None:
        """From where the run before was killed, if there was one."""
        self._folder.remove_unfinished()
        found = self._folder.progress()
        if found is not None:
            self._done, self._tallied = found["done"], int(found["tallied"])
            self.tally.resume_from(found)

    def _is_done(self, number: int) -> bool:
        done = self._done[number]
        return bool(done.any()) and torch.equal(done, self._folder.digest(number))

    def _note(self, number: int) -> None:
        """That a shard is done."""
        self._done[number] = self._folder.digest(number)
        self._tallied = max(self._tallied, number + 1)
        tallied = torch.tensor(self._tallied)
        self._folder.keep_progress({**self.tally.tensors(), "done": self._done, "tallied": tallied})

    def _solved(self, columns: range) -> Solved:
        block = self._test.subset(list(columns))
        gradients, losses = each_test(block, self._exact)
        return Solved(self._outer.solve(gradients), losses, self._outer.note())

    def _read(self, number: int) -> Solved:
        solved = self._folder.solved(number)
        assert solved is not None  # it was written before any shard is
        return solved

    def _block(self, number: int) -> Tensor:
        """The vectors of a block of test tasks, ``[R, P]``; one block is in memory at a time."""
        if self._vectors is None or self._vectors[0] != number:
            self._vectors = None
            self._vectors = number, self._read(number).vectors.to(self._test.lam)
        return self._vectors[1]

    def _fill(self, number: int) -> None:
        tasks = self._plan.shards[number]
        solved_tasks = self._outer.study.solved_tasks.subset(list(tasks))
        rows = self._plan.rows(tasks)
        with self._folder.writing(number, (rows.stop - rows.start, self._plan.tests), self._dtype) as array:
            for block, columns in enumerate(self._plan.blocks):
                vectors = self._block(block)
                for solved in solved_tasks.microbatches("scores"):
                    self._put(array[:, columns.start : columns.stop], tasks, solved, vectors)
                    if block == 0 and number >= self._tallied:
                        self.tally.add(solved)

    def _put(self, array: npt.NDArray[Any], tasks: range, solved: SolvedBatch, vectors: Tensor) -> None:
        """The scores of a batch, into the rows of a shard."""
        scores = -self._level.gradients_along(self._outer.curvature.linearised(solved), vectors)
        starts = self._plan.starts[tasks.start :] - self._plan.starts[tasks.start]
        for place, found in zip(solved.batch.index, scores.cpu().numpy().astype(self._dtype), strict=True):
            array[starts[place] : starts[place + 1]] = found
