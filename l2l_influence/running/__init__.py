"""Somebody's script under the recorder, and its study written when it ends. Needs the extra ``demo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..recording import Study, record, recording_of
from .analysis import Found, Settings, analyse
from .page import PAGE, RANKING, SCORES, STUDY, Finished, save_study, write_files
from .script import Ending, as_main, execute

__all__ = ["Settings", "run_script"]


def run_script(
    script: str, arguments: Sequence[str], folder: Path, settings: Settings, quiet: bool = False
) -> int | str | None:
    """Run it as ``python script …`` would, and write its study to ``folder`` however it ended.

    All that is said here goes to stderr: stdout is the script's.

    Args:
        script: its path.
        arguments: what follows it on the command line.
        folder: where study/, scores.csv, ranking.png and report.html go; made if missing. Where several learners
            trained, there is one in it for each.
        settings: how to score.
        quiet: say only where the files are, and why if there are no scores.

    Returns:
        What the script ended with, as ``sys.exit`` takes it.
    """
    folder, process = _own_folder(folder.resolve()), os.getpid()  # resolved now: the script may change folders
    with as_main(script, arguments) as module:
        with record() as study:
            ending = execute(module)
        if os.getpid() == process:  # else this is a child that the script forked, and not for it to tell
            _tell(study, [script, *arguments], ending, folder, settings, quiet)
    return ending.status


def _own_folder(folder: Path) -> Path:
    """A folder for each process that torchrun starts, for each sees its own tasks."""
    return folder / f"rank-{os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else folder


def _tell(study: Study, argv: Sequence[str], ending: Ending, folder: Path, settings: Settings, quiet: bool) -> None:
    if not study.learners:
        _say(f"There is nothing to write: the recorder watches learners of learn2learn's. {study.describe()}")
    for place, part in _parts(study, folder):
        finished = Finished(argv, ending, part)
        if not quiet:
            _say(f"The script ended {ending.how}. {part.describe()}")
        unsaved = save_study(part, place)
        found = analyse(part, settings, ending.early)
        page = write_files(finished, found, unsaved, place)
        _say("\n".join(_summary(found, unsaved, quiet) + _places(page)))


def _parts(study: Study, folder: Path) -> Iterator[tuple[Path, Study]]:
    """A study of each learner that trained, or of each where none did, and the folder for it."""
    trained = [learner for learner in study.learners if any(task.trained for task in recording_of(learner).tasks)]
    learners = trained or study.learners
    for number, learner in enumerate(learners, start=1):
        part = Study(study.options)
        part.learners.append(learner)
        part.remarks.update(study.remarks)
        yield (folder if len(learners) == 1 else folder / f"learner-{number}"), part


def _summary(found: Found | str, unsaved: str, quiet: bool) -> list[str]:
    lines = [f"The study could not be saved: {unsaved}"] if unsaved else []
    if isinstance(found, str):
        return [*lines, f"There are no scores: {found}"]
    if not found.tests.held_out:
        lines.append("There were no other tasks to score on than those trained on: scores of fit, not generalisation.")
    return lines if quiet else [*lines, found.loss_note, found.tests.note, "", found.scores.table(5), ""]


def _places(page: Path) -> list[str]:
    files = [name for name in (STUDY, SCORES, RANKING, PAGE) if (page.parent / name).exists()]
    return [f"Written to {page.parent}: {', '.join(files)}", f"Open this in a browser: {page.as_uri()}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
