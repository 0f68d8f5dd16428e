"""Run a user's script under the recorder, save the study when it exits, and score its tasks.

Needs the extra ``report``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import RecordingError
from ...recording import Study, record
from ...recording.study.folders import copies, folders, save_each
from ...recording.study.saver import Saver
from .analysis import ScoredRun, Scoring, ScoringSettings, prepare
from .page import (
    NOT_FINISHED,
    PAGE,
    RANKING,
    SCORES,
    STUDY,
    FinishedScript,
    SaveResult,
    clear_results,
    save_study,
    write_files,
)
from .preemption import before_sigterm
from .ranks import TorchrunJob
from .script import INTERRUPTED, Ending, as_main, execute

__all__ = ["ScoringSettings", "run_script"]


def run_script(
    script: str,
    arguments: Sequence[str],
    folder: Path,
    settings: ScoringSettings,
    *,
    quiet: bool = False,
    save_every: float = 60.0,
) -> int | str | None:
    """Run a script as ``python script …`` does, and write its study and scores to ``folder``, however it ends.

    All messages go to stderr, because stdout belongs to the script. The study and a page are written before scoring
    begins, and stay if scoring is interrupted.

    Args:
        script: path of the script.
        arguments: its command-line arguments.
        folder: folder for study/, scores.csv, ranking.png and report.html; created if missing. If several learners
            trained, it contains one folder for each. Under torchrun, each process saves its study to a folder
            ``rank-N`` in it, and the last process to end merges them.
        settings: how to score.
        quiet: print only the paths of the files, and why there are no scores if there are none.
        save_every: seconds between saves of the study while the script runs; 0 = never.

    Returns:
        The script's exit status, as ``sys.exit`` takes it; 130 if it ended well and Ctrl-C interrupted the scoring.
    """
    job = TorchrunJob.of_environment(folder.resolve())  # resolved now: the script may change the working directory
    job.begin()
    with as_main(script, arguments) as module:
        with record() as study:
            saver = Saver(partial(_save_so_far, study, job.own_folder), save_every)
            study.between_steps = saver.step
            with before_sigterm(partial(_save_before_end, saver, job.own_folder)):
                begun = time.monotonic()
                ending = execute(module)
                seconds = time.monotonic() - begun
        if saver.foreign:  # a child process that the script forked reports nothing
            return ending.status
        complete = _finish(job, study, _Reporter([script, *arguments], ending, seconds, settings, quiet))
    return ending.status if complete or ending.status else INTERRUPTED


def _save_so_far(study: Study, folder: Path) -> None:
    save_each(study, folder, Study.save_so_far, STUDY)
    clear_results(folder)


def _save_before_end(saver: Saver, folder: Path) -> None:
    saver.now()
    _say(f"Received SIGTERM. {saver.trouble or f'The study until now is in {folder}.'}")


def _finish(job: TorchrunJob, study: Study, reporter: _Reporter) -> bool:
    """Save and score the study; returns False if scoring was interrupted."""
    saved: dict[Path, SaveResult] = {}
    if study.learners:
        save_each(study, job.own_folder, lambda part, path: saved.update({path.parent: save_study(part, path)}), STUDY)
        clear_results(job.own_folder)
    else:
        _say(f"There is nothing to write: the recorder found no learn2learn learner. {study.describe()}")
    last = job.end()
    if job.size == 1:
        return reporter.report([(folder, part, saved[folder]) for folder, part in folders(study, job.own_folder)])
    if not last and saved:
        _say(f"Written to {job.own_folder}: {STUDY}. The process that ends last merges the studies of all processes.")
    merged = _merged(job, study) if last else ()
    return reporter.report([(folder, whole, save_study(whole, folder / STUDY)) for folder, whole in merged])


def _merged(job: TorchrunJob, study: Study) -> Iterator[tuple[Path, Study]]:
    """The merged study of all processes, for each learner."""
    for folder, part in folders(study, job.own_folder):
        name = folder.relative_to(job.own_folder)
        paths = [job.folder_of(rank) / name / STUDY for rank in range(job.size)]
        try:
            yield job.folder / name, Study.load(paths, *copies(part))
        except RecordingError as error:
            _say(f"There are no scores: the studies of the {job.size} processes could not be merged: {error}")


@dataclass(frozen=True)
class _Reporter:
    """Scores the tasks of studies, writes the files, and prints a summary of each."""

    argv: Sequence[str]
    ending: Ending
    seconds: float
    settings: ScoringSettings
    quiet: bool

    def report(self, studies: Sequence[tuple[Path, Study, SaveResult]]) -> bool:
        """Write a page for each study, and then score them; returns False if that was interrupted."""
        reports: list[_Report] = []
        try:
            for each in studies:
                reports.append(self._begun(*each))
            for report in reports:
                self._score(report)
        except KeyboardInterrupt:
            _say("\n".join(["", *(line for report in reports for line in report.interrupted())]))
            return False
        return True

    def _begun(self, folder: Path, study: Study, saved: SaveResult) -> _Report:
        if not self.quiet:
            _say(f"The script ended {self.ending.how}. {study.describe()}")
        scoring = prepare(study, self.settings, self.argv[0], self.ending.early)
        report = _Report(folder, FinishedScript(self.argv, self.ending, study), scoring, saved)
        report.write(scoring if isinstance(scoring, str) else NOT_FINISHED)
        return report

    def _score(self, report: _Report) -> None:
        scored: ScoredRun | str = ""
        if isinstance(report.scoring, str):
            scored = report.scoring
        else:
            if not self.quiet:
                _say(_estimate(report.scoring, self.seconds))
            with before_sigterm(lambda: _say("\n".join(["Received SIGTERM.", *report.interrupted()]))):
                for scored in report.scoring.results():
                    report.write(scored)
        _say("\n".join(_summary(scored, report.saved, self.quiet) + _file_lines(report.folder)))


@dataclass(frozen=True)
class _Report:
    """The files of one study."""

    folder: Path
    script: FinishedScript
    scoring: Scoring | str
    saved: SaveResult

    def write(self, scored: ScoredRun | str) -> None:
        """Write the files with the scores until now, or with the reason why there are none."""
        write_files(self.script, self.scoring, scored, self.saved, self.folder)

    def interrupted(self) -> list[str]:
        """Lines for the user when scoring is interrupted; empty if the scores are complete."""
        if isinstance(self.scoring, str) or (self.folder / RANKING).exists():
            return []
        page = (self.folder / PAGE).as_uri()
        missing = "incomplete" if (self.folder / SCORES).exists() else "missing"
        return [f"The scores in {self.folder} are {missing}. Code that computes them from the study is in {page}"]


def _estimate(scoring: Scoring, seconds: float) -> str:
    """The work of scoring before it begins, and how long it may take."""
    plan = scoring.plan
    took = f" (the script took {seconds:.0f} s)" if seconds >= 1 else ""
    return (
        f"Scoring {plan.size.tasks} training tasks takes {plan.passes} passes over episodes, "
        f"about {plan.work:.1f} times the work of the training{took}."
    )


def _summary(scored: ScoredRun | str, saved: SaveResult, quiet: bool) -> list[str]:
    lines = [f"{saved} {saved.trouble}"] if saved.trouble else []
    if isinstance(scored, str):
        return [*lines, f"There are no scores: {scored}"]
    if not scored.tests.held_out:
        lines.append(
            "Warning: the learner was fed no tasks besides those it was trained on, so these were used as test tasks. "
            "The scores are scores of fit, not generalisation."
        )
    return lines if quiet else [*lines, scored.tests.note, str(scored.plan), "", scored.scores.table(5), ""]


def _file_lines(folder: Path) -> list[str]:
    files = [name for name in (STUDY, SCORES, RANKING, PAGE) if (folder / name).exists()]
    return [f"Written to {folder}: {', '.join(files)}", f"Open this in a browser: {(folder / PAGE).as_uri()}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
