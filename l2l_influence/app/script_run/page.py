"""The files of a run: study, scores, a plot, and the page that explains them."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...analysis.results.result import TaskScore, TaskScores
from ...errors import InfluenceError, PartlySavedError
from ...recording import Study
from ...recording.learners.base import model_of
from ...recording.learners.registry import adapter_of
from ...recording.study import storage
from ...report.html import versions, write_page
from ...storage.atomic import replacing
from .analysis import ScoredRun, Scoring
from .next_steps import next_steps
from .script import Ending

STUDY, SCORES, RANKING, PAGE = "study", "scores.csv", "ranking.png", "report.html"
NOT_FINISHED = (
    "Scoring has not finished. If its process has ended, it was interrupted; the code below then computes the scores "
    "from the study."
)
"""The reason for missing scores on the page that is written before scoring begins."""

_COLUMNS = ("rank", "task", "taskset", "key", "classes", "times trained", "query loss", "score")


@dataclass(frozen=True)
class FinishedScript:
    """A script that has ended, and the study of one of its learners.

    Attributes:
        argv: the script and its arguments.
        ending: how it ended.
        study: the recording.
    """

    argv: Sequence[str]
    ending: Ending
    study: Study

    @property
    def command(self) -> str:
        """The command line, as typed with ``python``."""
        return shlex.join(["python", *self.argv])

    @property
    def model(self) -> str:
        """Class name of the learner's model."""
        return type(model_of(self.study.learner)).__name__

    @property
    def needs_learner(self) -> bool:
        """True if loading the study needs a learner, not a model: files cannot describe the transforms of GBML."""
        return adapter_of(self.study.learner).needs_learner

    @property
    def has_body(self) -> bool:
        """True if the learner is a head on the features of another module."""
        return self.study.recording.body is not None


@dataclass(frozen=True)
class SaveResult:
    """Result of saving a study.

    Attributes:
        loadable: True if there is a study that can be loaded.
        trouble: what is missing from it, or why there is none; empty if all was saved.
    """

    loadable: bool = True
    trouble: str = ""

    def __str__(self) -> str:
        if not self.trouble:
            return ""
        return f"{'Not all of the study could be saved' if self.loadable else 'The study could not be saved'}:"


def save_study(study: Study, path: Path) -> SaveResult:
    """Save as much of the study as possible."""
    try:
        study.save(path)
    except PartlySavedError as error:
        return SaveResult(True, str(error))
    except (InfluenceError, OSError) as error:
        return SaveResult(False, str(error))
    return SaveResult()


def clear(folder: Path) -> None:
    """Remove all files of an earlier run: studies, and the results beside them."""
    for place in (folder, *folder.glob("learner-*")):
        storage.remove(place / STUDY)
    clear_results(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def clear_results(folder: Path) -> None:
    """Remove the results of an earlier run, but not its studies."""
    for place in (folder, *folder.glob("learner-*")):
        for name in (SCORES, RANKING, PAGE):
            (place / name).unlink(missing_ok=True)
        if place != folder and not any(place.iterdir()):
            place.rmdir()


def write_files(
    script: FinishedScript, scoring: Scoring | str, scored: ScoredRun | str, saved: SaveResult, folder: Path
) -> Path:
    """Write scores.csv, report.html, and, if the scores are complete, ranking.png.

    Without scores, write only a page with the reason.

    Args:
        script: the script that was run.
        scoring: how its tasks are scored, or the reason why they cannot be.
        scored: the scores until now, or the reason why there are none.
        saved: the result of saving the study.
        folder: folder for the files.

    Returns:
        The path of the page.
    """
    result = None if isinstance(scored, str) else scored
    figure = None
    if result is None:
        (folder / SCORES).unlink(missing_ok=True)
    else:
        _write_scores(result, script.study, folder / SCORES)
        figure = result.scores.plot(folder / RANKING) if result.complete else None
    worst = [row.task for row in result.scores.top(3)] if result and result.complete else []
    code = next_steps(
        folder / STUDY,
        "learner" if script.needs_learner else "model",
        script.has_body,
        None if isinstance(scoring, str) else scoring,
        result is None or not result.complete,
        worst,
    )
    return write_page(
        folder / PAGE,
        "run.html.j2",
        script=script,
        scored=scored,
        saved=saved,
        figure=figure,
        **(_tables(result.scores, _tasksets(script.study)) if result else {}),
        code=code,
        study_path=str(folder / STUDY),
        versions=versions(),
    )


def _write_scores(scored: ScoredRun, study: Study, path: Path) -> None:
    """The rows of the scores, with two more columns: each task's taskset, and the number of test tasks covered."""
    tasksets = _tasksets(study)
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for row in scored.scores:
            before, after = _split(vars(row), "key")
            cells = {**before, "taskset": tasksets[row.task], **after, "test_tasks": scored.covered}
            if writer is None:
                writer = csv.DictWriter(file, list(cells))
                writer.writeheader()
            writer.writerow({**cells, "classes": " ".join(map(str, row.classes or ()))})


def _split(values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values before ``name``, and the others."""
    place = list(values).index(name)
    return dict(list(values.items())[:place]), dict(list(values.items())[place:])


def _tasksets(study: Study) -> dict[int, int]:
    """Number of each task's taskset, by the task's id."""
    return {task.id: task.taskset for task in study.tasks}


def _tables(scores: TaskScores, tasksets: Mapping[int, int]) -> dict[str, list[Any]]:
    """Both ends of the ranking, with the columns that are not empty in both."""
    harmful = [_cells(row, tasksets[row.task]) for row in scores.top() if row.score > 0]
    helpful = [_cells(row, tasksets[row.task]) for row in scores.bottom() if row.score < 0]
    columns = [name for name in _COLUMNS if any(row[name] for row in harmful + helpful)]
    ends = {"harmful": harmful, "helpful": helpful}
    return {
        "columns": columns,
        **{end: [[row[name] for name in columns] for row in rows] for end, rows in ends.items()},
    }


def _cells(row: TaskScore, taskset: int) -> dict[str, str]:
    classes = " ".join(map(str, row.classes or ()))
    numbers = [f"{row.loss:.3f}", f"{row.score:+.2e}"]
    cells = [str(row.rank), str(row.task), str(taskset), str(row.key), classes, str(row.times_trained), *numbers]
    return dict(zip(_COLUMNS, cells, strict=True))
