"""Writes the folder of a score matrix, resuming where an earlier run was interrupted."""

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

from ....bilevel.solved_tasks import SolvedBatch
from ....bilevel.stationarity import Stationarity
from ....storage.matrix_folder import DIGEST_BYTES, MatrixFolder, Solved
from ...estimators import DirectionalFit
from ...items import SingleItems
from ...passes import Targets
from ...passes.accumulator import PassAccumulator
from .fingerprint import MatrixFingerprint
from .shard_plan import ShardPlan


class Writer:
    """Writes the scores of every item on every test task, ``[items, T]``, in the dtype of λ.

    First the directions are computed, block by block of test tasks, and saved. Then the shards are filled one by one:
    the training tasks of each shard are a problem of their own, so what is batched together does not depend on what was
    done before. What is used later is always read back from the folder, whichever run has written it.

    Args:
        folder: to write.
        fit: the estimator for the run.
        items: the rows of the matrix.
        targets: its columns, one per test task.
        plan: shards and blocks.
    """

    def __init__(
        self, folder: str | Path, fit: DirectionalFit[Any], items: SingleItems, targets: Targets, plan: ShardPlan
    ) -> None:
        self._folder, self._fit, self._items = MatrixFolder(folder), fit, items
        self._targets, self._plan = targets, plan
        self._accumulated = PassAccumulator(fit.run.solved_tasks, fit.run.problem.l2)
        self._done = torch.zeros(len(plan.shards), DIGEST_BYTES, dtype=torch.uint8)
        self._counted = 0
        self._vectors: tuple[int, Tensor] | None = None
        self._test_losses: list[float] = []
        # The dtype of the computation, if NumPy has it.
        self._dtype = np.dtype(np.float64 if fit.run.solved_tasks.lam.dtype == torch.float64 else np.float32)
        self._about: dict[str, Any] = {}

    @property
    def residual(self) -> float:
        """Largest inner residual."""
        return self._accumulated.residual

    @property
    def stationarity(self) -> Stationarity | None:
        """The stationarity of λ; None if scoring does not compute it."""
        return self._accumulated.stationarity() if self._fit.finds_stationarity else None

    def begin(self, fingerprint: MatrixFingerprint) -> None:
        """Begin the folder, or resume it.

        Raises:
            ForeignMatrixError: its contents have another fingerprint.
        """
        self._about = {
            "what": self._items.what,
            "shape": [int(self._plan.starts[-1]), self._plan.tests],
            "dtype": self._dtype.name,
            "shards": len(self._plan.shards),
            "depends": asdict(fingerprint),
        }
        known = self._folder.manifest()
        if known is not None:
            fingerprint.require(known["depends"], self._folder.path)
            self._resume()
        else:
            ids = np.array([task.id for task in self._fit.run.recorded], dtype=np.int64)
            self._folder.begin(self._about, np.stack([ids, self._plan.counts], axis=1))

    def compute_directions(self) -> list[str]:
        """Save all directions that are not in the folder yet; returns notes on how they were computed."""
        notes: dict[str, None] = {}
        for number in range(len(self._plan.blocks) * self._parts):
            if self._folder.solved(number) is None:
                self._folder.keep_solved(number, self._directions(number))
            saved = self._read(number)
            if number % self._parts == 0:
                self._test_losses += saved.losses.tolist()
            notes[saved.note] = None
        return list(notes)

    def write_shards(self) -> None:
        """Save all shards that are not in the folder yet."""
        progress = self._fit.run.problem.progress
        hidden = None if progress is None else not progress
        for number in tqdm(range(len(self._done)), desc="shards", unit="shard", leave=False, disable=hidden):
            if not self._is_done(number):
                self._fill(number)
                self._mark_done(number)

    def finish(self, notes: Sequence[str]) -> None:
        """Mark the matrix as complete."""
        self._folder.describe({**self._about, "test_losses": self._test_losses, "notes": list(notes)})

    @property
    def _parts(self) -> int:
        return len(self._fit.parts)

    def _resume(self) -> None:
        self._folder.remove_unfinished()
        found = self._folder.progress()
        if found is not None:
            self._done, self._counted = found["done"], int(found["tallied"])
            self._accumulated.resume_from(found)

    def _is_done(self, number: int) -> bool:
        done = self._done[number]
        return bool(done.any()) and torch.equal(done, self._folder.digest(number))

    def _mark_done(self, number: int) -> None:
        self._done[number] = self._folder.digest(number)
        self._counted = max(self._counted, number + 1)
        counted = torch.tensor(self._counted)
        self._folder.keep_progress({**self._accumulated.tensors(), "done": self._done, "tallied": counted})

    def _directions(self, number: int) -> Solved:
        block, part = divmod(number, self._parts)
        found = self._fit.directions(self._items, self._targets.some(self._plan.blocks[block]), part)
        return Solved(found.vectors, found.losses, found.note)

    def _read(self, number: int) -> Solved:
        saved = self._folder.solved(number)
        assert saved is not None  # it was written before any shard is
        return saved

    def _vectors_of(self, number: int) -> Tensor:
        """Directions of a block and part, ``[R, K]``; those used last are kept in memory."""
        if self._vectors is None or self._vectors[0] != number:
            self._vectors = None
            vectors = self._read(number).vectors
            self._vectors = number, vectors.to(self._fit.run.solved_tasks.lam.device)
        return self._vectors[1]

    def _fill(self, number: int) -> None:
        tasks = self._plan.shards[number]
        rows = self._plan.rows(tasks)
        with self._folder.writing(number, (rows.stop - rows.start, self._plan.tests), self._dtype) as array:
            array[:] = 0
            for part, run in enumerate(self._fit.parts):
                solved_tasks = run.solved_tasks.subset(list(tasks))
                for block, columns in enumerate(self._plan.blocks):
                    vectors = self._vectors_of(block * self._parts + part)
                    for solved in solved_tasks.microbatches("scores"):
                        self._add(array[:, columns.start : columns.stop], tasks, solved, vectors)
                        if block == 0 and number >= self._counted:
                            self._accumulate(solved)

    def _accumulate(self, solved: SolvedBatch) -> None:
        found = self._accumulated
        (found.add if self._fit.finds_stationarity else found.add_residual)(solved)

    def _add(self, array: npt.NDArray[Any], tasks: range, solved: SolvedBatch, vectors: Tensor) -> None:
        """Add a part's scores of a batch to the rows of a shard."""
        positions = [tasks[place] for place in solved.batch.index]
        scores = self._fit.along(self._items, solved, positions, vectors).detach()
        starts = self._plan.starts[tasks.start :] - self._plan.starts[tasks.start]
        for place, found in zip(solved.batch.index, scores.cpu().numpy().astype(self._dtype), strict=True):
            array[starts[place] : starts[place + 1]] += found
