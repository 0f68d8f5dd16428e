"""Reads a score matrix from its folder, one shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ....errors import InfluenceError, ItemsError, UnfinishedMatrixError
from ....storage.matrix_folder import MATRIX, MatrixFolder
from ...items import KINDS

Ref = int | tuple[int, int]
"""The id of a task; for samples, (id of the task, position of the sample)."""


class Shard(NamedTuple):
    """Consecutive rows of a score matrix.

    Attributes:
        start: the number of the first row.
        scores: memory-mapped, read when used, ``[rows, T]``.
    """

    start: int
    scores: npt.NDArray[Any]


class ScoreMatrix:
    """Scores of every item on every test task, written by ``score_matrix_to`` of a hook.

    A positive score means harmful. The scores stay on the disk and are read one shard at a time.

    Attributes:
        what: kind of the items: ``"task"``, ``"query sample"`` or ``"support sample"``.
        shape: ``(items, T)``.
        test_losses: loss of each test task at λ*, after adaptation, ``[T]``.
        notes: how the scores were computed, one entry a line.
    """

    def __init__(self, folder: MatrixFolder, manifest: dict[str, Any]) -> None:
        self._folder, self._manifest, self._tasks = folder, manifest, folder.tasks()
        self.what: str = manifest["what"]
        self._kind = KINDS[self.what]
        self.shape: tuple[int, int] = tuple(manifest["shape"])
        self.test_losses: npt.NDArray[np.float64] = np.asarray(manifest["test_losses"], dtype=np.float64)
        self.notes: list[str] = manifest["notes"]

    @classmethod
    def load(cls, folder: str | Path) -> ScoreMatrix:
        """Open a finished matrix.

        Raises:
            UnfinishedMatrixError: the folder has no matrix, it is not finished, or a shard is missing or truncated.
            ForeignMatrixError: it was written in a format that this version does not read.
        """
        manifest = MATRIX.read(Path(folder))
        if "notes" not in manifest:
            raise UnfinishedMatrixError(
                f"the score matrix in {folder} is not finished: call score_matrix_to(folder, ...) with the same study "
                "and settings to resume it"
            )
        matrix = cls(MatrixFolder(folder), manifest)
        matrix._require_all()
        return matrix

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<ScoreMatrix: {self.shape[0]} {self.what}s, {self.shape[1]} test tasks, in {self._folder.path}>"

    @cached_property
    def items(self) -> list[Ref]:
        """The item of each row: the id of a task; for samples, (id of the task, position of the sample)."""
        return [ref for task, count in self._tasks.tolist() for ref in self._kind.refs(task, count)]

    def shards(self) -> Iterator[Shard]:
        """All rows in order, one shard at a time."""
        start = 0
        for number in range(self._manifest["shards"]):
            scores = self._folder.shard(number)
            yield Shard(start, scores)
            start += len(scores)

    def rows(self, which: Ref | slice) -> npt.NDArray[Any]:
        """The scores of one item, ``[T]``; or of a slice of the rows, ``[rows, T]``.

        Raises:
            ItemsError: there is no such item.
        """
        if not isinstance(which, slice):
            return self._picked(np.array([self._row(which)]))[0]
        return self._picked(np.arange(*which.indices(len(self))))

    def array(self) -> npt.NDArray[Any]:
        """The whole matrix in memory, ``[items, T]``."""
        return np.concatenate([scores for _, scores in self.shards()])

    def mean(self) -> npt.NDArray[np.float64]:
        """Score of each item on the mean loss of the test tasks, ``[items]``."""
        return np.concatenate([scores.mean(axis=1, dtype=np.float64) for _, scores in self.shards()])

    def top(self, count: int = 10) -> list[tuple[Ref, float]]:
        """The items most harmful to the mean loss of the test tasks, with their scores on it."""
        mean = self.mean()
        return [(self._ref(int(row)), float(mean[row])) for row in np.argsort(-mean, kind="stable")[:count]]

    def _picked(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        found = np.empty((len(rows), self.shape[1]), dtype=self._manifest["dtype"])
        for start, scores in self.shards():
            here = (rows >= start) & (rows < start + len(scores))
            if here.any():
                found[here] = scores[rows[here] - start]
        return found

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of each task, then the number of rows."""
        return np.concatenate([[0], np.cumsum(self._tasks[:, 1])])

    def _row(self, ref: Ref) -> int:
        try:
            task, j = self._kind.parts(ref)
        except InfluenceError:
            raise self._unknown(ref) from None
        (places,) = np.nonzero(self._tasks[:, 0] == task)
        if not len(places) or not 0 <= j < self._tasks[places[0], 1]:
            raise self._unknown(ref)
        return int(self._starts[places[0]]) + j

    def _unknown(self, ref: Ref) -> ItemsError:
        return ItemsError(f"there is no {self.what} {ref!r} in this matrix; .items lists all items")

    def _ref(self, row: int) -> Ref:
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        refs: list[Ref] = self._kind.refs(*self._tasks[place].tolist())
        return refs[row - int(self._starts[place])]

    def _require_all(self) -> None:
        rows = sum(len(scores) for _, scores in self.shards())
        if rows != self.shape[0]:
            raise UnfinishedMatrixError(
                f"{self._folder.path} has {rows} rows of scores instead of {self.shape[0]}: call "
                "score_matrix_to(folder, ...) again with the same study to complete it"
            )
