"""``l2l-influence run`` under torchrun: the process that ends last merges all studies and scores the tasks."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from l2l_influence import Study
from l2l_influence.app.script_run.ranks import TorchrunJob

from ..processes import ended, run_python, started
from .scripts import FILES, SET_UP, TRAINING, VALIDATION, in_tmp_path, loaded, page, run, scores, write

__all__ = ["in_tmp_path"]

# learn2learn's distributed_maml.py, shortened, with its calls of cherry written out.
DISTRIBUTED = """
import torch.distributed as dist
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
random.seed(rank), np.random.seed(rank), torch.manual_seed(rank)
training, validation = taskset(-1), taskset(-1)
optimiser = torch.optim.SGD(maml.parameters(), 0.1)
for i in range(4):
    optimiser.zero_grad()
    error = evaluate(maml, training.sample())
    error.backward()
    for parameter in maml.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= size
    optimiser.step()
    sys.stdout.write(f"error {rank} {error.item()} {evaluate(maml, validation.sample()).item()}" + chr(10))
dist.destroy_process_group()
"""


def lines(printed: bytes) -> list[str]:
    """What two processes printed, sorted."""
    return sorted(line for line in printed.decode().splitlines() if line.startswith("error"))


def recorded_by_torchrun(*command: str) -> bytes:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = subprocess.run([sys.executable, *torchrun, *command], env=environment, capture_output=True, timeout=240)
    assert job.returncode == 0, job.stderr.decode()
    return job.stdout


def plain(script: str) -> bytes:
    """The stdout of two processes that find each other as those of torchrun do."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    out = [(Path(f"printed-{rank}"), Path(f"said-{rank}")) for rank in range(2)]
    processes = [started(run_python, [script], {**common, "RANK": str(rank)}, *out[rank]) for rank in range(2)]
    assert [ended(process) for process in processes] == [0, 0], [said.read_text() for _, said in out]
    return b"".join(printed.read_bytes() for printed, _ in out)


def test_two_processes_of_torchrun_leave_one_scored_study() -> None:
    write(SET_UP, DISTRIBUTED)
    printed = lines(recorded_by_torchrun("-m", "l2l_influence", "run", "--quiet", "--out", "both", "script.py"))
    assert len(printed) == 8 and printed == lines(plain("script.py"))
    assert {path.name for path in Path("both").iterdir()} == FILES | {"rank-0", "rank-1", "merged-by"}
    study = loaded("both")
    assert [(task.rank, task.times_trained) for task in study.training_tasks()] == 4 * [(0, 1)] + 4 * [(1, 1)]
    assert len(scores("both")) == 8 and "8 tasks that the learner was fed but never trained on" in page("both")
    assert "MAML: 2 processes.<br>Process 0: MAML: 8 tasks" in Path("both/report.html").read_text(), "a line each"
    with Path("both/scores.csv").open(newline="") as file:
        assert {row["key"] for row in csv.DictReader(file)} == {"0", "1", "2", "3"}, "of each process"


# ---- one process after the other --------------------------------------------------------------------------------


def run_as(monkeypatch: pytest.MonkeyPatch, rank: int, size: int = 2, job: str = "a") -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "TORCHELASTIC_RUN_ID": job}.items():
        monkeypatch.setenv(name, str(value))
    run("--quiet", "script.py")


OUT = Path("l2l-influence-run")


def test_the_last_to_end_merges_and_equal_tasks_are_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SET_UP, TRAINING, VALIDATION)
    run_as(monkeypatch, rank=1)
    assert not (OUT / "study").exists() and "The process that ends last merges" in capsys.readouterr().err
    run_as(monkeypatch, rank=0)
    assert [task.times_trained for task in loaded().training_tasks()] == [2] * 10 and len(scores()) == 10
    assert Study.load(OUT / "rank-1" / "study", nn.Linear(8, 3)).training_tasks()[0].times_trained == 1


def test_what_another_job_left_is_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    write(SET_UP, TRAINING)
    for rank in range(3):
        run_as(monkeypatch, rank, size=3)
    assert len(scores()) == 10
    write(SET_UP, TRAINING.replace("10", "4"))
    run_as(monkeypatch, rank=0, job="b")
    assert not (OUT / "scores.csv").exists() and not (OUT / "rank-2").exists(), "of the job before"
    run_as(monkeypatch, rank=1, job="b")
    assert len(scores()) == 4


def test_a_job_that_ended_in_different_weights_is_not_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SET_UP, "training = taskset(10 + int(os.environ['RANK']))\n", TRAINING)
    Path("script.py").write_text(Path("script.py").read_text().replace("training[i]", "training[9 - i]"))
    for rank in range(2):
        run_as(monkeypatch, rank)
        Path("script.py").write_text(Path("script.py").read_text().replace("parameters(), 0.1", "parameters(), 0.2"))
    assert "could not be merged: the parameters of processes 0 and 1 differ" in capsys.readouterr().err
    assert not (OUT / "scores.csv").exists() and (OUT / "rank-0" / "study").exists()


def test_learners_are_merged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "other = l2l.algorithms.MAML(nn.Linear(8, 3), lr=0.4)\n"
    write(SET_UP, other, TRAINING, TRAINING.replace("maml", "other"))
    for rank in range(2):
        run_as(monkeypatch, rank)
    for number in (1, 2):
        found = loaded(f"l2l-influence-run/learner-{number}").training_tasks()
        assert [task.times_trained for task in found] == [2] * 10


def test_of_two_that_end_at_once_one_merges(tmp_path: Path) -> None:
    jobs = [TorchrunJob(tmp_path, rank, 2, "a") for rank in range(2)]
    for job in jobs:
        job.begin()
    assert not jobs[0].end()
    assert [jobs[1].end(), jobs[1].end(), jobs[0].end()] == [True, False, False]


def test_a_folder_of_the_user_s_is_left_alone(tmp_path: Path) -> None:
    for name in ("rank-list", "rank-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    TorchrunJob(tmp_path, 0, 2, "a").begin()
    assert (tmp_path / "rank-list" / "mine").exists() and (tmp_path / "rank-7" / "mine").exists()
