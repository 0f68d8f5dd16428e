"""Somebody's script under the recorder, and its study written when it ends. Needs the extra ``demo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..recording import Study, record
from ..recording.places import places, save_each
from ..recording.saver import Saver
from .analysis import Found, Settings, analyse
from .page import PAGE, RANKING, SCORES, STUDY, Finished, Kept, clear_results, save_study, write_files
from .preemption import before_sigterm
from .script import Ending, as_main, execute

__all__ = ["Settings", "run_script"]


def run_script(
    script: str,
    arguments: Sequence[str],
    folder: Path,
    settings: Settings,
    *,
    quiet: bool = False,
    save_every: float = 60.0,
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
        save_every: while the script runs, its study is saved each time after so many seconds; 0 for never.

    Returns:
        What the script ended with, as ``sys.exit`` takes it.
    """
    folder = _own_folder(folder.resolve())  # resolved now: the script may change folders
    with as_main(script, arguments) as module:
        with record() as study:
            saver = Saver(partial(_save_so_far, study, folder), save_every)
            study.between_steps = saver.step
            with before_sigterm(partial(_preempted, saver, folder)):
                ending = execute(module)
        if not saver.foreign:  # else this is a child that the script forked, and not for it to tell
            _tell(study, [script, *arguments], ending, folder, settings, quiet)
    return ending.status


def _own_folder(folder: Path) -> Path:
    """A folder for each process that torchrun starts, for each sees its own tasks."""
    return folder / f"rank-{os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else folder


def _save_so_far(study: Study, folder: Path) -> None:
    save_each(study, folder, Study.save_so_far, STUDY)
    clear_results(folder)


def _preempted(saver: Saver, folder: Path) -> None:
    saver.now()
    _say(f"Told to end by SIGTERM. {saver.trouble or f'The study until now is in {folder}.'}")


def _tell(study: Study, argv: Sequence[str], ending: Ending, folder: Path, settings: Settings, quiet: bool) -> None:
    if not study.learners:
        _say(f"There is nothing to write: the recorder watches learners of learn2learn's. {study.describe()}")
        return
    kept: dict[Path, Kept] = {}
    save_each(study, folder, lambda part, path: kept.update({path.parent: save_study(part, path)}), STUDY)
    clear_results(folder)
    for place, part in places(study, folder):
        finished = Finished(argv, ending, part)
        if not quiet:
            _say(f"The script ended {ending.how}. {part.describe()}")
        found = analyse(part, settings, ending.early)
        page = write_files(finished, found, kept[place], place)
        _say("\n".join(_summary(found, kept[place], quiet) + _places(page)))


def _summary(found: Found | str, kept: Kept, quiet: bool) -> list[str]:
    lines = [f"{kept} {kept.trouble}"] if kept.trouble else []
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
