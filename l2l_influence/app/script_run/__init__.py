"""Somebody's script under the recorder, and its study written when it ends. Needs the extra ``demo``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import RecordingError
from ...recording import Study, record
from ...recording.study.folders import copies, places, save_each
from ...recording.study.saver import Saver
from .analysis import Found, Settings, analyse
from .page import PAGE, RANKING, SCORES, STUDY, Finished, Kept, clear_results, save_study, write_files
from .preemption import before_sigterm
from .ranks import Job
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
            trained, there is one in it for each. Of the processes that torchrun starts each saves its study to a folder
            ``rank-N`` in it, and the last to end merges them.
        settings: how to score.
        quiet: say only where the files are, and why if there are no scores.
        save_every: while the script runs, its study is saved each time after so many seconds; 0 for never.

    Returns:
        What the script ended with, as ``sys.exit`` takes it.
    """
    job = Job.of_environment(folder.resolve())  # resolved now: the script may change folders
    job.begin()
    with as_main(script, arguments) as module:
        with record() as study:
            saver = Saver(partial(_save_so_far, study, job.own), save_every)
            study.between_steps = saver.step
            with before_sigterm(partial(_preempted, saver, job.own)):
                ending = execute(module)
        if not saver.foreign:  # else this is a child that the script forked, and not for it to tell
            _finish(job, study, _Teller([script, *arguments], ending, settings, quiet))
    return ending.status


def _save_so_far(study: Study, folder: Path) -> None:
    save_each(study, folder, Study.save_so_far, STUDY)
    clear_results(folder)


def _preempted(saver: Saver, folder: Path) -> None:
    saver.now()
    _say(f"Told to end by SIGTERM. {saver.trouble or f'The study until now is in {folder}.'}")


def _finish(job: Job, study: Study, teller: _Teller) -> None:
    kept: dict[Path, Kept] = {}
    if study.learners:
        save_each(study, job.own, lambda part, path: kept.update({path.parent: save_study(part, path)}), STUDY)
        clear_results(job.own)
    else:
        _say(f"There is nothing to write: the recorder watches learners of learn2learn's. {study.describe()}")
    last = job.end()
    if job.size == 1:
        for place, part in places(study, job.own):
            teller.tell(part, place, kept[place])
    elif not last and kept:
        _say(f"Written to {job.own}: {STUDY}. The process that ends last merges those of all.")
    elif last:
        for place, whole in _merged(job, study):
            teller.tell(whole, place, save_study(whole, place / STUDY))


def _merged(job: Job, study: Study) -> Iterator[tuple[Path, Study]]:
    """The studies of all processes as one, for each learner."""
    for place, part in places(study, job.own):
        name = place.relative_to(job.own)
        paths = [job.of(rank) / name / STUDY for rank in range(job.size)]
        try:
            yield job.folder / name, Study.load(paths, *copies(part))
        except RecordingError as error:
            _say(f"There are no scores: the studies of the {job.size} processes could not be merged: {error}")


@dataclass(frozen=True)
class _Teller:
    """Scores what a script was trained on, and writes and says what was found."""

    argv: Sequence[str]
    ending: Ending
    settings: Settings
    quiet: bool

    def tell(self, study: Study, place: Path, kept: Kept) -> None:
        if not self.quiet:
            _say(f"The script ended {self.ending.how}. {study.describe()}")
        found = analyse(study, self.settings, self.ending.early)
        page = write_files(Finished(self.argv, self.ending, study), found, kept, place)
        _say("\n".join(_summary(found, kept, self.quiet) + _places(page)))


def _summary(found: Found | str, kept: Kept, quiet: bool) -> list[str]:
    lines = [f"{kept} {kept.trouble}"] if kept.trouble else []
    if isinstance(found, str):
        return [*lines, f"There are no scores: {found}"]
    if not found.tests.held_out:
        lines.append("There were no other tasks to score on than those trained on: scores of fit, not generalisation.")
    return lines if quiet else [*lines, found.tests.note, "", found.scores.table(5), ""]


def _places(page: Path) -> list[str]:
    files = [name for name in (STUDY, SCORES, RANKING, PAGE) if (page.parent / name).exists()]
    return [f"Written to {page.parent}: {', '.join(files)}", f"Open this in a browser: {page.as_uri()}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
