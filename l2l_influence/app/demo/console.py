"""Terminal output of the demo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .findings import Detection, Prediction, Variant
from .run import Advance


class Screen:
    """The terminal. If quiet, it shows only the lines of `say_always`."""

    def __init__(self, quiet: bool) -> None:
        self._always = Console(highlight=False, soft_wrap=True)
        self._console = Console(highlight=False, quiet=quiet)

    def say(self, text: str = "") -> None:
        """Print a paragraph."""
        self._console.print(text)

    def say_always(self, text: str) -> None:
        """Print a line, even if quiet."""
        self._always.print(text)

    def plain(self, text: str) -> None:
        """Print text without interpreting square brackets as markup."""
        self._console.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first column is text, the others are numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
        for position, column in enumerate(columns):
            table.add_column(column, justify="left" if position == 0 else "right", no_wrap=position == 0)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """Show a progress bar; call the function that it yields to advance by one."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, disable=self._console.quiet) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)


def detection_rows(detections: Sequence[Detection], wrong: int, total: int) -> list[list[str]]:
    """Cells of the detection table; its last row is chance."""
    rows = [[d.name, f"{d.found} of {wrong}", f"{d.auc:.3f}"] for d in detections]
    return [*rows, ["chance", f"{wrong * wrong / total:.0f} of {wrong}", "0.500"]]


def variant_rows(variants: Sequence[Variant]) -> list[list[str]]:
    """Cells of the comparison."""
    return [[v.name, f"{v.loss:.3f}", f"{100 * v.accuracy:.1f} %", f"{v.seconds:.1f} s"] for v in variants]


def prediction_rows(predictions: Sequence[Prediction]) -> list[list[str]]:
    """Cells of the table of predictions."""
    return [
        [p.name, *map(signed, (p.each, p.mean, p.linear)), size(p.slope) if p.in_loss_units else "–"]
        for p in predictions
    ]


def signed(value: float) -> str:
    """A correlation as text."""
    return f"{value:+.2f}".replace("-", "−")


def size(value: float) -> str:
    """A ratio of sizes as text."""
    return f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"


DETECTION_COLUMNS = ("ranking", "wrong tasks in the first fifth", "AUC")
VARIANT_COLUMNS = ("meta-parameters", "test loss", "test accuracy", "time")
PREDICTION_COLUMNS = ("prediction by", "each test task", "mean: rank", "mean: linear", "true / predicted size")
