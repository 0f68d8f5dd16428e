"""The files that a run leaves: its study, scores, a picture, and the page that explains them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...analysis.results.result import TaskScore, TaskScores
from ...errors import InfluenceError, PartlySavedError
from ...recording import Study
from ...recording.learners.base import model_of, rule_of
from ...recording.study import storage
from ...report.html import versions, write_page
from .analysis import Found
from .script import Ending

STUDY, SCORES, RANKING, PAGE = "study", "scores.csv", "ranking.png", "report.html"
_COLUMNS = ("rank", "task", "key", "classes", "times trained", "its own loss", "score")


@dataclass(frozen=True)
class Finished:
    """A script that has ended, and what was recorded of one of its learners.

    Attributes:
        argv: the script and its arguments.
        ending: how it ended.
        study: what was recorded.
    """

    argv: Sequence[str]
    ending: Ending
    study: Study

    @property
    def command(self) -> str:
        """As it would be typed."""
        return shlex.join(["python", *self.argv])

    @property
    def model(self) -> str:
        """The class of the learner's model."""
        return type(model_of(self.study.learner)).__name__

    @property
    def needs_learner(self) -> bool:
        """Whether a study of it is loaded around a learner: GBML's transforms are of classes that no file tells."""
        return rule_of(self.study.learner) == "gbml"

    @property
    def has_body(self) -> bool:
        """Whether the learner is the head of something else."""
        return self.study.recording.body is not None


@dataclass(frozen=True)
class Kept:
    """What became of a study's files.

    Attributes:
        there: whether there is a study to be loaded.
        trouble: what is not in it, or why there is none; or nothing.
    """

    there: bool = True
    trouble: str = ""

    def __str__(self) -> str:
        if not self.trouble:
            return ""
        return f"{'Not all of the study could be saved' if self.there else 'The study could not be saved'}:"


def save_study(study: Study, path: Path) -> Kept:
    """Save it as far as that can be done."""
    try:
        study.save(path)
    except PartlySavedError as error:
        return Kept(True, str(error))
    except (InfluenceError, OSError) as error:
        return Kept(False, str(error))
    return Kept()


def clear(folder: Path) -> None:
    """Take away all that an earlier run left: studies, and what stands beside them."""
    for place in (folder, *folder.glob("learner-*")):
        storage.remove(place / STUDY)
    clear_results(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def clear_results(folder: Path) -> None:
    """Take away what an earlier run left beside the study."""
    for place in (folder, *folder.glob("learner-*")):
        for name in (SCORES, RANKING, PAGE):
            (place / name).unlink(missing_ok=True)
        if place != folder and not any(place.iterdir()):
            place.rmdir()


def write_files(finished: Finished, found: Found | str, kept: Kept, folder: Path) -> Path:
    """scores.csv, ranking.png and report.html; or, where there are no scores, a page that says why.

    Args:
        finished: what was run.
        found: the scores, or why there are none.
        kept: what became of the study.
        folder: where the files go.

    Returns:
        The page.
    """
    scores = None if isinstance(found, str) else found.scores
    figure = None
    if scores is not None:
        scores.to_csv(folder / SCORES)
        figure = scores.plot(folder / RANKING)
    return write_page(
        folder / PAGE,
        "run.html.j2",
        finished=finished,
        found=found,
        kept=kept,
        figure=figure,
        **(_tables(scores) if scores else {}),
        worst=[row.task for row in scores.top(3)] if scores else [],
        saved_in=str(folder / STUDY),
        versions=versions(),
    )


def _tables(scores: TaskScores) -> dict[str, list[Any]]:
    """Both ends of the ranking, and the columns of which either end has something to show."""
    harmful = [_cells(row) for row in scores.top() if row.score > 0]
    helpful = [_cells(row) for row in scores.bottom() if row.score < 0]
    columns = [name for name in _COLUMNS if any(row[name] for row in harmful + helpful)]
    ends = {"harmful": harmful, "helpful": helpful}
    return {
        "columns": columns,
        **{end: [[row[name] for name in columns] for row in rows] for end, rows in ends.items()},
    }


def _cells(row: TaskScore) -> dict[str, str]:
    classes = " ".join(map(str, row.classes or ()))
    numbers = [f"{row.loss:.3f}", f"{row.score:+.2e}"]
    cells = [str(row.rank), str(row.task), str(row.key), classes, str(row.draws), *numbers]
    return dict(zip(_COLUMNS, cells, strict=True))
