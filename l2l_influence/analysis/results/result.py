"""Results: scores of tasks, samples and groups, as ranked rows that can be printed, drawn and saved."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import RecordingError
from ...storage.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Row:
    """One row of a result."""

    @property
    def item(self) -> Hashable:
        """The item's name, as hooks take it."""
        raise NotImplementedError


@dataclass(frozen=True)
class TaskScore(Row):
    """One row of :class:`TaskScores`.

    Attributes:
        rank: 1 for the most harmful task.
        task: its id, as :meth:`~l2l_influence.TaskInfluence.remove` takes it.
        key: its index in the taskset; negative if no taskset served it.
        classes: the data set's own labels in it, or None.
        times_trained: how often it was trained on.
        loss: its outer loss at λ*, after adaptation.
        score: see ``reading`` of the result; positive = harmful.
    """

    rank: int
    task: int
    key: int
    classes: tuple[Hashable, ...] | None
    times_trained: int
    loss: float
    score: float

    @property
    def item(self) -> int:
        return self.task


@dataclass(frozen=True)
class SampleScore(Row):
    """One row of :class:`SampleScores`.

    Attributes:
        rank: 1 for the most harmful sample.
        task: id of its task.
        sample: its position in the task's query (or support) set; hooks take ``(task, sample)``.
        row: its row in the batch that the taskset served.
        index: its index in the data set, or None if the taskset does not say.
        label: its label in the task.
        times_trained: how often the task was trained on.
        loss: its loss at λ*, after adaptation.
        score: see ``reading`` of the result; positive = harmful.
    """

    rank: int
    task: int
    sample: int
    row: int
    index: int | None
    label: float
    times_trained: int
    loss: float
    score: float

    @property
    def item(self) -> tuple[int, int]:
        return self.task, self.sample


@dataclass(frozen=True)
class GroupScore(Row):
    """One row of :class:`GroupScores`.

    Attributes:
        rank: 1 for the most harmful group.
        group: its name, as :meth:`~l2l_influence.GroupInfluence.remove` takes it.
        members: how many items it has.
        loss: the mean of its members' losses at λ*, after adaptation.
        score: the sum of its members' scores; positive = harmful.
    """

    rank: int
    group: Hashable
    members: int
    loss: float
    score: float

    @property
    def item(self) -> Hashable:
        return self.group


RowType = TypeVar("RowType", TaskScore, SampleScore, GroupScore)


class Scores(Sequence[RowType]):
    """Scores of all items of one kind, most harmful first: a sequence of rows.

    Attributes:
        what: what the items are.
        test_loss: mean outer loss at λ* of the test tasks.
        reading: what a score means, with its sign and unit.
        notes: how the scores were computed, one line each: inner kind, Hessian, damping, residuals, stationarity.
    """

    what = "items"
    row_type: type[Any]

    def __init__(self, rows: Sequence[RowType], test_loss: float, notes: Sequence[str], reading: str) -> None:
        self._rows: list[RowType] = list(rows)
        self.test_loss = test_loss
        self.notes = list(notes)
        self.reading = reading

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: Any) -> Any:
        return self._rows[position]

    def top(self, count: int = 10) -> list[RowType]:
        """The rows of the most harmful items; :meth:`~l2l_influence.TaskInfluence.remove` takes them."""
        return self._rows[:count]

    def bottom(self, count: int = 10) -> list[RowType]:
        """The rows of the most helpful items, the most helpful first."""
        return self._rows[::-1][:count]

    def __str__(self) -> str:
        return self.table()

    def table(self, count: int = 10) -> str:
        """The ``count`` most harmful and most helpful rows as text, with the meaning of the numbers."""
        columns = self.columns()
        shown = self._rows if len(self._rows) <= 2 * count else self._rows[:count] + self._rows[-count:]
        lines: list[list[str]] = [[_text(name, value) for name, value in vars(row).items()] for row in shown]
        if len(shown) < len(self._rows):
            lines.insert(count, ["…"] * len(columns))
        widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
        text: list[str] = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [columns, *lines]
        ]
        return "\n".join([f"{len(self)} {self.what}", self.reading, *self.notes, "", *text])

    def columns(self) -> list[str]:
        """Names of a row's fields."""
        return [field.name for field in fields(self.row_type)]

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with a row's fields as columns (extra ``frames``)."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self._rows], columns=self.columns())

    def to_csv(self, path: str | Path) -> Path:
        """Write all rows, most harmful first."""
        path = Path(path)
        with replacing(path) as new, new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns())
            writer.writerows([[_plain(value) for value in vars(row).values()] for row in self._rows])
        return path

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the ranking (extra ``plots``), and save it if a path is given."""
        from ...report.plots import draw_ranking

        return draw_ranking(self, path)


class TaskScores(Scores[TaskScore]):
    """Scores of all training tasks, most harmful first."""

    what = "training tasks"
    row_type = TaskScore

    @property
    def values(self) -> dict[int, float]:
        """Score by task id."""
        return {row.task: row.score for row in self}


class SampleScores(Scores[SampleScore]):
    """Scores of all query (or support) samples, most harmful first."""

    row_type = SampleScore

    def __init__(
        self, what: str, rows: Sequence[SampleScore], test_loss: float, notes: Sequence[str], reading: str
    ) -> None:
        self.what = what
        super().__init__(rows, test_loss, notes, reading)

    @property
    def values(self) -> dict[tuple[int, int], float]:
        """Score by (task id, sample)."""
        return {(row.task, row.sample): row.score for row in self}

    def by_index(self) -> dict[int, float]:
        """Scores summed by the data set's index, over all tasks that a sample occurs in; most harmful first.

        Raises:
            RecordingError: the taskset did not say which samples it served.
        """
        sums: defaultdict[int, float] = defaultdict(float)
        for row in self:
            if row.index is None:
                raise RecordingError(
                    "scores cannot be summed by index: the taskset does not say which samples of its data set it "
                    "served. Use .values, which has the scores by (task, sample)"
                )
            sums[row.index] += row.score
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


class GroupScores(Scores[GroupScore]):
    """Scores of all groups, most harmful first."""

    row_type = GroupScore

    def __init__(
        self, what: str, rows: Sequence[GroupScore], test_loss: float, notes: Sequence[str], reading: str
    ) -> None:
        self.what = what
        super().__init__(rows, test_loss, notes, reading)

    @property
    def values(self) -> dict[Hashable, float]:
        """Score by group."""
        return {row.group: row.score for row in self}


def _plain(value: Any) -> Any:
    """A value as a table shows it: names joined, None as an empty text."""
    if isinstance(value, tuple):
        return " ".join(str(name) for name in value)
    return "" if value is None else value


def _text(name: str, value: Any) -> str:
    if name == "score":
        return f"{value:+.3e}"
    return f"{value:.4f}" if name == "loss" else f"{_plain(value)}"
