"""``l2l-influence run`` of a script that is stopped before its end: the study until then is saved."""

from __future__ import annotations

import math
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

from l2l_influence import Study, TaskInfluence

from ..processes import ended, run_python, started
from .scripts import SET_UP, TRAINING, VALIDATION, in_tmp_path, loaded, page, run, scores, write

__all__ = ["in_tmp_path"]

ONLY_NOW = ["--save-every", "0"]
ALL_THE_TIME = ["--save-every", "0.001"]

# Long enough for the saver to be due again, whatever the last save took.
ONE_MORE_STEP = """
import signal, time
time.sleep(2)
maml.clone()
"""


class Scripts:
    """Scripts that run under the recorder at the same time, each in a folder with its name."""

    def __init__(self) -> None:
        self.processes: dict[str, BaseProcess] = {}

    def start(self, name: str, options: list[str], *parts: str) -> None:
        Path(f"{name}.py").write_text("".join(dedent(part) for part in parts))
        command = ["-m", "l2l_influence", "run", "--quiet", "--out", name, *options, f"{name}.py"]
        printed, said = Path(f"{name}.printed"), Path(f"{name}.said")
        self.processes[name] = started(run_python, command, {}, printed, said)

    def end(self, name: str) -> tuple[int, bytes, bytes]:
        """Return code, stdout and stderr."""
        status = ended(self.processes[name])
        return status, Path(f"{name}.printed").read_bytes(), Path(f"{name}.said").read_bytes()


FOREVER = "while True:\n    time.sleep(1)\n"

IN_THE_MIDDLE_OF_A_DRAW = """
class Images(torch.utils.data.TensorDataset):
    def __getitem__(self, index):
        if drawn == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)

data = l2l.data.MetaDataset(Images(images, labels))
training = l2l.data.Taskset(data, [FusedNWaysKShots(data, n=3, k=4), LoadData(data), RemapLabels(data)], num_tasks=9)
for drawn in range(9):
    batch = training[drawn]
    while drawn == 5:
        time.sleep(0.01)
    step(maml, batch)
"""


AFTER_A_FORK_ELSEWHERE = """
os.mkdir('elsewhere'), os.chdir('elsewhere')
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    training = taskset(20)
"""


def test_a_script_that_is_told_to_end_or_killed_or_forks() -> None:
    scripts = Scripts()
    imports, all_steps = "import signal, time\ndrawn = 0\n", (SET_UP, TRAINING, VALIDATION, ONE_MORE_STEP)
    own = "def stop(*_):\n    print('stopping')\n    sys.exit(7)\nsignal.signal(signal.SIGTERM, stop)\n"
    scripts.start("killed", ALL_THE_TIME, *all_steps, "os.kill(os.getpid(), signal.SIGKILL)\n", FOREVER)
    scripts.start("preempted", ONLY_NOW, SET_UP, imports, IN_THE_MIDDLE_OF_A_DRAW)
    scripts.start("handled", ONLY_NOW, SET_UP, imports, own, IN_THE_MIDDLE_OF_A_DRAW)
    scripts.start("forked", ALL_THE_TIME, SET_UP, AFTER_A_FORK_ELSEWHERE, TRAINING, ONE_MORE_STEP, TRAINING)

    status, printed, _ = scripts.end("killed")
    assert status == -signal.SIGKILL and printed.count(b"error") == 10 and printed.count(b"validation") == 1
    study = loaded("killed")
    assert [task.times_trained for task in study.tasks] == 10 * [1] + 6 * [0]
    tests = [(task.support, task.query) for task in study.tasks if not task.times_trained]
    found = TaskInfluence(study, loss=nn.CrossEntropyLoss()).scores(tests).values
    assert len(found) == 10 and all(map(math.isfinite, found.values()))
    assert {path.name for path in Path("killed").iterdir()} == {"study"}

    status, _, said = scripts.end("preempted")
    assert status == -signal.SIGTERM and b"The study until now is in" in said
    assert {path.name for path in Path("preempted").iterdir()} == {"study"}
    status, printed, said = scripts.end("handled")
    assert status == 7 and b"stopping" in printed and b"SIGTERM" not in said and len(scores("handled")) == 5
    for name in ("preempted", "handled"):
        assert {task.key for task in loaded(name).training_tasks()} == {0, 1, 2, 3, 4}

    status, printed, said = scripts.end("forked")
    assert status == 0 and printed.count(b"error") == 40 and said.count(b"Open this in a browser") == 1
    assert {task.key for task in loaded("forked").training_tasks()} == set(range(10))
    assert not list(Path("elsewhere").iterdir())


def test_a_saved_run_is_the_same_as_one_that_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    write(SET_UP, TRAINING, TRAINING, VALIDATION)
    found = []
    for options in (ONLY_NOW, ALL_THE_TIME):
        run("--quiet", *options, "script.py")
        found.append((capsys.readouterr().out, scores()))
    assert found[0] == found[1]


def test_learners_that_begin_to_train_one_after_the_other_are_all_there_in_the_end() -> None:
    other = "other = l2l.algorithms.MAML(nn.Linear(8, 3), lr=0.4)\n"
    write(SET_UP, other, TRAINING, ONE_MORE_STEP, TRAINING.replace("maml", "other"), ONE_MORE_STEP)
    run("--quiet", *ALL_THE_TIME, "script.py")
    assert {path.name for path in Path("l2l-influence-run").iterdir()} == {"learner-1", "learner-2"}
    for number in (1, 2):
        assert len(scores(f"l2l-influence-run/learner-{number}")) == 10


def test_data_that_cannot_be_had_again_are_missing_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    small = "from l2l_influence import recording_of\nrecording_of(maml).options.data_bytes = 2000\n"
    augmented = TRAINING.replace("i in range(10):", "i in range(10):\n    images += torch.randn(60, 8)")
    write(SET_UP, small, augmented)
    assert run("--quiet", "script.py") == 0
    assert "Not all of the study could be saved: " in page() and "Not all of the study" in capsys.readouterr().err
    study: Study = loaded()
    assert len(study.tasks) == 10 and len(study.tasks[-1].support[0]) == 6
