"""Scores of tasks, ready to be read, sorted, drawn and saved."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

READING = (
    "score = mean loss of the test tasks now − predicted loss after the task is removed and λ retrained; "
    "positive = harmful, negative = helpful; unit: the loss"
)
COLUMNS = ("rank", "task", "key", "classes", "draws", "loss", "score")


@dataclass(frozen=True)
class TaskScore:
    """One row.

    Attributes:
        rank: 1 for the most harmful task.
        task: its id, as :meth:`TaskInfluence.remove` takes it.
        key: its index in the taskset.
        classes: the data set's own labels in it, or None.
        draws: how often it was trained on.
        loss: its outer loss at λ*, after adaptation.
        score: IS; positive = harmful.
    """

    rank: int
    task: int
    key: int
    classes: tuple[Hashable, ...] | None
    draws: int
    loss: float
    score: float


class TaskScores(Sequence[TaskScore]):
    """Influence scores of all training tasks, most harmful first.

    Attributes:
        test_loss: mean outer loss of the test tasks at λ*.
        notes: how the scores were computed, a line each: inner kind, Hessian, damping, residuals.
    """

    def __init__(self, rows: Sequence[TaskScore], test_loss: float, notes: Sequence[str]) -> None:
        self._rows = list(rows)
        self.test_loss = test_loss
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: Any) -> Any:
        return self._rows[position]

    @property
    def values(self) -> dict[int, float]:
        """Score by task id."""
        return {row.task: row.score for row in self._rows}

    def top(self, count: int = 10) -> list[TaskScore]:
        """The most harmful tasks."""
        return self._rows[:count]

    def bottom(self, count: int = 10) -> list[TaskScore]:
        """The most helpful tasks, the most helpful first."""
        return self._rows[::-1][:count]

    def __str__(self) -> str:
        return self.table()

    def table(self, count: int = 10) -> str:
        """The ``count`` most harmful and most helpful tasks as text, with what the numbers mean."""
        shown = self._rows if len(self._rows) <= 2 * count else self._rows[:count] + self._rows[-count:]
        lines = [_cells(row) for row in shown]
        if len(shown) < len(self._rows):
            lines.insert(count, ("…",) * len(COLUMNS))
        widths = [max(len(line[i]) for line in [COLUMNS, *lines]) for i in range(len(COLUMNS))]
        text = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [COLUMNS, *lines]
        ]
        head = f"{len(self)} training tasks, scored on the mean loss of the test tasks ({self.test_loss:.4f})"
        return "\n".join([head, READING, *self.notes, "", *text])

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with the columns of :class:`TaskScore` (extra ``frames``)."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self._rows], columns=list(COLUMNS))

    def to_csv(self, path: str | Path) -> Path:
        """Write all rows, most harmful first."""
        path = Path(path)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([_plain(row) for row in self._rows])
        return path

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the ranking (extra ``plots``), and save it when a path is given."""
        from ..report.plots import draw_ranking

        return draw_ranking(self, path)


def _classes(row: TaskScore) -> str:
    return "" if row.classes is None else " ".join(str(name) for name in row.classes)


def _plain(row: TaskScore) -> tuple[Any, ...]:
    return row.rank, row.task, row.key, _classes(row), row.draws, row.loss, row.score


def _cells(row: TaskScore) -> tuple[str, ...]:
    rank, task, key, classes, draws, loss, score = _plain(row)
    return str(rank), str(task), str(key), classes, str(draws), f"{loss:.4f}", f"{score:+.3e}"
