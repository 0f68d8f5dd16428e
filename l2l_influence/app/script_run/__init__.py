"""Run a user's script under the recorder, save the study when it exits, and score its tasks.

Needs the extra ``report``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import RecordingError
from ...recording import Study, record
from ...recording.study.folders import copies, folders, save_each
from ...recording.study.saver import Saver
from .analysis import ScoredRun, ScoringSettings, analyse
from .page import PAGE, RANKING, SCORES, STUDY, FinishedScript, SaveResult, clear_results, save_study, write_files
from .preemption import before_sigterm
from .ranks import TorchrunJob
from .script import Ending, as_main, execute

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

    All messages go to stderr, because stdout belongs to the script.

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
        The script's exit status, as ``sys.exit`` takes it.
    """
    job = TorchrunJob.of_environment(folder.resolve())  # resolved now: the script may change the working directory
    job.begin()
    with as_main(script, arguments) as module:
        with record() as study:
            saver = Saver(partial(_save_so_far, study, job.own_folder), save_every)
            study.between_steps = saver.step
            with before_sigterm(partial(_save_before_end, saver, job.own_folder)):
                ending = execute(module)
        if not saver.foreign:  # a child process that the script forked reports nothing
            _finish(job, study, _Reporter([script, *arguments], ending, settings, quiet))
    return ending.status


def _save_so_far(study: Study, folder: Path) -> None:
    save_each(study, folder, Study.save_so_far, STUDY)
    clear_results(folder)


def _save_before_end(saver: Saver, folder: Path) -> None:
    saver.now()
    _say(f"Received SIGTERM. {saver.trouble or f'The study until now is in {folder}.'}")


def _finish(job: TorchrunJob, study: Study, reporter: _Reporter) -> None:
    saved: dict[Path, SaveResult] = {}
    if study.learners:
        save_each(study, job.own_folder, lambda part, path: saved.update({path.parent: save_study(part, path)}), STUDY)
        clear_results(job.own_folder)
    else:
        _say(f"There is nothing to write: the recorder found no learn2learn learner. {study.describe()}")
    last = job.end()
    if job.size == 1:
        for folder, part in folders(study, job.own_folder):
            reporter.report(part, folder, saved[folder])
    elif not last and saved:
        _say(f"Written to {job.own_folder}: {STUDY}. The process that ends last merges the studies of all processes.")
    elif last:
        for folder, whole in _merged(job, study):
            reporter.report(whole, folder, save_study(whole, folder / STUDY))


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
    """Scores the tasks of a study, writes the files, and prints a summary."""

    argv: Sequence[str]
    ending: Ending
    settings: ScoringSettings
    quiet: bool

    def report(self, study: Study, folder: Path, saved: SaveResult) -> None:
        if not self.quiet:
            _say(f"The script ended {self.ending.how}. {study.describe()}")
        scored = analyse(study, self.settings, self.ending.early)
        page = write_files(FinishedScript(self.argv, self.ending, study), scored, saved, folder)
        _say("\n".join(_summary(scored, saved, self.quiet) + _file_lines(page)))


def _summary(scored: ScoredRun | str, saved: SaveResult, quiet: bool) -> list[str]:
    lines = [f"{saved} {saved.trouble}"] if saved.trouble else []
    if isinstance(scored, str):
        return [*lines, f"There are no scores: {scored}"]
    if not scored.tests.held_out:
        lines.append(
            "Warning: the learner was fed no tasks besides those it was trained on, so these were used as test tasks. "
            "The scores are scores of fit, not generalisation."
        )
    return lines if quiet else [*lines, scored.tests.note, "", scored.scores.table(5), ""]


def _file_lines(page: Path) -> list[str]:
    files = [name for name in (STUDY, SCORES, RANKING, PAGE) if (page.parent / name).exists()]
    return [f"Written to {page.parent}: {', '.join(files)}", f"Open this in a browser: {page.as_uri()}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
