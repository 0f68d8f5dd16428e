"""``l2l-influence run``: the work of scoring, what is written while it runs, and what stays if it is interrupted."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import l2l_influence
from l2l_influence import TaskInfluence
from l2l_influence.app.script_run.analysis import mean_of
from l2l_influence.app.script_run.work import StudySize, plan_work

from .scripts import SET_UP, TRAINING, VALIDATION, code_on_the_page, in_tmp_path, loaded, page, rows, run, scores, write

__all__ = ["in_tmp_path"]

# Scoring sends a signal to its own process when it begins with this block of test tasks.
SIGNAL_IN_BLOCK = """
import signal
from l2l_influence import TaskInfluence
original, calls = TaskInfluence.scores, []

def scores(self, tests):
    calls.append(tests)
    if len(calls) == {block}:
        os.kill(os.getpid(), signal.{name})
    return original(self, tests)

TaskInfluence.scores = scores
"""


def test_scores_in_blocks_are_those_of_all_test_tasks_at_once() -> None:
    write(SET_UP, TRAINING, VALIDATION)
    assert run("--quiet", "--work", "all", "script.py") == 0
    assert plan_work(StudySize(10, 10, 6, 4096), "sketch", None).blocks == 4, "as in this run"
    study = loaded()
    tests = [(task.support, task.query) for task in study.tasks if not task.times_trained]
    whole = TaskInfluence(study).scores(tests)
    np.testing.assert_allclose([whole.values[task] for task in scores()], list(scores().values()), rtol=1e-4, atol=1e-6)
    parts = [(count, TaskInfluence(study).scores(some)) for count, some in ((4, tests[:4]), (2, tests[4:]))]
    mean = mean_of(parts)
    assert mean.test_loss == pytest.approx(whole.test_loss) and mean.reading == whole.reading
    assert [row.task for row in mean] == [row.task for row in whole]
    assert [row.rank for row in mean] == list(range(1, 11))


def test_scores_name_the_taskset_and_the_number_of_test_tasks() -> None:
    write(SET_UP, TRAINING, VALIDATION)
    run("--quiet", "script.py")
    study = loaded()
    known = {str(task.id): (str(task.taskset), str(task.key)) for task in study.tasks}
    assert {row["task"]: (row["taskset"], row["key"]) for row in rows()} == {
        str(task.id): known[str(task.id)] for task in study.training_tasks()
    }
    assert {row["test_tasks"] for row in rows()} == {"6"}
    assert list(rows()[0]) == [
        "rank",
        "task",
        "taskset",
        "key",
        "classes",
        "times_trained",
        "loss",
        "score",
        "test_tasks",
    ]


def test_work_is_bounded_and_the_summary_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    write(SET_UP, TRAINING, VALIDATION)
    found = []
    for options in ([], [], ["--work", "4"], ["--work", "all"]):
        run(*options, "script.py")
        found.append((scores(), capsys.readouterr().err))
    assert found[0][0] == found[1][0] != found[2][0], "the same study, the same scores"
    reduced, whole = (found[place][1] for place in (0, 3))
    line = (
        "scored with 1 of 16 samples of the sketch, about 2.6 times the work of the training; --work all for everything"
    )
    assert line in reduced and "sketch (1 samples of all 10 tasks)" in reduced
    assert "Scoring 10 training tasks takes 26 passes over episodes" in reduced
    assert "scored with 2 of 16 samples of the sketch" in found[2][1]
    assert "scored with nothing left out" in whole and "sketch (16 samples of all 10 tasks)" in whole
    assert "scored with nothing left out" in page()


COMMAND = [sys.executable, "-m", "l2l_influence", "run"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def process(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(COMMAND + [*arguments], env=environment(), capture_output=True, timeout=120)


def test_an_interrupted_scoring_leaves_the_study_and_a_page_with_the_code() -> None:
    write(SET_UP, TRAINING, VALIDATION, SIGNAL_IN_BLOCK.format(block=1, name="SIGTERM"))
    ended = process("--quiet", "script.py")
    assert ended.returncode == -signal.SIGTERM and b"Traceback" not in ended.stderr
    assert b"The scores in" in ended.stderr and b"are missing. Code that computes them from the study" in ended.stderr
    assert {path.name for path in Path("l2l-influence-run").iterdir()} == {"study", "report.html"}
    assert "There are no scores" in page() and "Scoring has not finished" in page()
    exec(code_on_the_page(), {"model": nn.Linear(8, 3)})
    with Path("scores.csv").open(newline="") as file:
        computed = {int(row["task"]): float(row["score"]) for row in csv.DictReader(file)}
    write(SET_UP, TRAINING, VALIDATION)
    run("--quiet", "script.py")
    assert computed == pytest.approx(scores(), rel=1e-4)


def test_scores_of_the_blocks_until_an_interruption_stay() -> None:
    write(SET_UP, TRAINING, VALIDATION, SIGNAL_IN_BLOCK.format(block=3, name="SIGINT"))
    ended = process("--work", "all", "script.py")
    assert (
        ended.returncode == 130
        and b"Traceback" not in ended.stderr
        and b"are incomplete. Code that computes them" in ended.stderr
    )
    assert {path.name for path in Path("l2l-influence-run").iterdir()} == {"study", "report.html", "scores.csv"}
    assert len(rows()) == 10 and {row["test_tasks"] for row in rows()} == {"3"}
    assert "The scores cover 3 of 6 test tasks" in page() and "influence.scores(tests)" in code_on_the_page()


def test_a_progress_bar_is_shown_on_a_terminal() -> None:
    write(SET_UP, TRAINING, VALIDATION)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    running = subprocess.Popen(COMMAND + ["script.py"], env=environment(), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        said = b"".join(iter(lambda: read(terminal), b""))
    assert running.wait(120) == 0 and b"scoring:" in said and b"report.html" in said


def read(terminal: io.RawIOBase) -> bytes:
    try:
        return terminal.read(4096) or b""
    except OSError:  # what a terminal reports when its last process has closed it
        return b""


def test_help_imports_no_torch() -> None:
    """The package itself imports it, so a stand-in takes its place here."""
    folder = str(Path(l2l_influence.__file__).parent)
    program = f"""
import sys, types
sys.modules["l2l_influence"] = package = types.ModuleType("l2l_influence")
package.__path__ = [{folder!r}]
from l2l_influence.app.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, [name for name in ("torch", "learn2learn", "matplotlib") if name in sys.modules])
"""
    for arguments in (["--help"], ["run", "--help"]):
        shown = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
        assert shown.stdout.splitlines()[-1] == "0 []", shown.stderr
