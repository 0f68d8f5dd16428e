"""What the demo says on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .findings import Detection, Outcome, Prediction
from .run import Advance


class Screen:
    """A terminal; a quiet one shows only what `say_last` is given."""

    def __init__(self, quiet: bool) -> None:
        self._last = Console(highlight=False, soft_wrap=True)
        self._console = Console(highlight=False, quiet=quiet)

    def say(self, text: str = "") -> None:
        """A paragraph."""
        self._console.print(text)

    def say_last(self, text: str) -> None:
        """A line that is shown also when quiet."""
        self._last.print(text)

    def plain(self, text: str) -> None:
        """Text that stands as it is; square brackets in it are no markup."""
        self._console.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table, its first column text and the others numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
        for position, column in enumerate(columns):
            table.add_column(column, justify="left" if position == 0 else "right", no_wrap=position == 0)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """A progress bar; the function given moves it on by one."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, disable=self._console.quiet) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)


def detection_rows(detections: Sequence[Detection], wrong: int, total: int) -> list[list[str]]:
    """Cells of the detection table, with chance as its last row."""
    rows = [[d.name, f"{d.found} of {wrong}", f"{d.auc:.3f}"] for d in detections]
    return [*rows, ["chance", f"{wrong * wrong / total:.0f} of {wrong}", "0.500"]]


def outcome_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Cells of the comparison."""
    return [[o.name, f"{o.loss:.3f}", f"{100 * o.accuracy:.1f} %", f"{o.seconds:.1f} s"] for o in outcomes]


def prediction_rows(predictions: Sequence[Prediction]) -> list[list[str]]:
    """Cells of the faithfulness table."""
    return [
        [p.name, *map(signed, (p.each, p.mean, p.linear)), size(p.slope) if p.in_loss_units else "–"]
        for p in predictions
    ]


def signed(value: float) -> str:
    """A correlation."""
    return f"{value:+.2f}".replace("-", "−")


def size(value: float) -> str:
    """A ratio of sizes."""
    return f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"


DETECTION_COLUMNS = ("ranking", "wrong tasks in the first fifth", "AUC")
OUTCOME_COLUMNS = ("meta-parameters", "test loss", "test accuracy", "time")
PREDICTION_COLUMNS = ("prediction by", "each test task", "mean: rank", "mean: linear", "true size / predicted")
