"""Loops in several processes: each records its own tasks, and together they are one study."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import nn

from l2l_influence import MAML, Study, record
from l2l_influence.errors import NothingRecordedError, RanksDisagreeError, RecordingError
from l2l_influence.recording.study import storage
from l2l_influence.recording.study.merging import merged

from ..reference_problems.learn2learn import ListedTasks
from . import ranks
from .manual import saved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loops of ranks.py, run by two processes. In each of them recording changed no bit, or they would fail."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ranks.LOOPS:
        (folder / name).mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.recording.ranks"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", *command, str(folder)], env=environment, capture_output=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return folder


def one_process(folder: Path) -> Any:
    """One learner at the weights where the processes ended, trained on all that they drew, in the same order."""
    seen = [batch for rank in range(2) for batch in torch.load(folder / f"seen-{rank}", weights_only=False)]
    maml = l2l.algorithms.MAML(ranks.network(), lr=0.1)
    state = Study.load(folder / "rank-0", ranks.network()).learner.module.state_dict()
    maml.module.load_state_dict(state)
    with record() as study:
        tasks = ListedTasks(list({tuple(x.flatten().tolist()): (x, y) for x, y in seen}.values()))
        for x, _ in seen:
            key = next(key for key in range(len(tasks)) if torch.equal(tasks[key][0], x))
            ranks.query_loss(maml.clone(), tasks[key]).backward()
    return study


@pytest.mark.parametrize("loop", ranks.LOOPS)
def test_two_processes_are_scored_as_one_that_trained_on_the_tasks_of_both(loop: str, finished: Path) -> None:
    folder = finished / loop
    found = torch.load(folder / "found", weights_only=False)
    expected = one_process(folder)
    torch.testing.assert_close(found["scores"], ranks.scored(expected), rtol=1e-6, atol=1e-12)
    draws = {task.fingerprint: task.times_trained for task in expected.training_tasks()}
    loaded = Study.load([folder / "rank-0", folder / "rank-1"], ranks.network())
    assert [(task.rank, task.key, task.times_seen, task.times_trained) for task in loaded.tasks] == found["uses"]
    assert {task.fingerprint: task.times_trained for task in loaded.training_tasks()} == draws
    torch.testing.assert_close(ranks.scored(loaded), found["scores"], rtol=1e-9, atol=1e-12)
    assert found["adapted"] == [sorted(name for name, _ in ranks.network().named_parameters())] * len(found["uses"])


def test_equal_tasks_are_one_and_others_are_kept_apart(finished: Path) -> None:
    def uses(loop: str) -> list[Any]:
        found: list[Any] = torch.load(finished / loop / "found", weights_only=False)["uses"]
        return found

    common, apart = uses("averaged_by_hand"), uses("parallel_model")
    keys = [key for _, key, _, _ in common]
    assert len(keys) == len(set(keys)) < 2 * ranks.STEPS and sum(use[3] for use in common) == 2 * ranks.STEPS
    assert {use[0] for use in apart} == {0, 1} and sum(use[3] for use in apart) == 2 * ranks.STEPS
    shared = {key for rank, key, *_ in apart if rank == 0} & {key for rank, key, *_ in apart if rank == 1}
    assert shared, "the same key in two processes, and two tasks"


# ---- the pure function ------------------------------------------------------------------------------------------


def about(part: storage.Saved, **changed: Any) -> storage.Saved:
    return replace(part, about={**part.about, **changed})


def weights(part: storage.Saved, name: str, change: float) -> storage.Saved:
    return replace(part, weights={**part.weights, name: part.weights[name] + change})


def test_one_part_is_itself(parts: list[storage.Saved]) -> None:
    assert merged(parts[:1]) is parts[0]


def test_ids_and_tasksets_are_counted_on(parts: list[storage.Saved]) -> None:
    tasks = merged(parts).tasks
    assert [task.id for task in tasks] == [0, 1, 2, 3] and [task.rank for task in tasks] == [0, 0, 1, 1]
    assert tasks[0].taskset == tasks[1].taskset < tasks[2].taskset == tasks[3].taskset
    for task, own in zip(tasks, [*parts[0].tasks, *parts[1].tasks], strict=True):
        assert torch.equal(task.query[0], own.query[0]) and task.key == own.key


def test_the_same_task_split_otherwise_is_another(parts: list[storage.Saved]) -> None:
    first = parts[0]
    turned = replace(first, tasks=[replace(task, support_rows=(2, 1, 0)) for task in first.tasks])
    assert [task.times_trained for task in merged([first, first]).tasks] == [2, 2]
    assert [task.times_trained for task in merged([first, turned]).tasks] == [1, 1, 1, 1]


def test_rules_unknown_do_not_keep_equal_tasks_apart(parts: list[storage.Saved]) -> None:
    def unknown(part: storage.Saved) -> storage.Saved:
        return replace(part, tasks=[replace(task, lr=float("nan"), rule="other") for task in part.tasks])

    assert [task.times_seen for task in merged([unknown(parts[0]), unknown(parts[0])]).tasks] == [2, 2]


def test_what_is_of_the_draw_that_trained_goes_before_what_did_not(parts: list[storage.Saved]) -> None:
    first = parts[0]
    idle = replace(first, tasks=[replace(task, times_trained=0, adapted=None) for task in first.tasks])
    adapted = {"0.weight": torch.ones(3, 4)}
    first = replace(first, tasks=[replace(task, adapted=adapted) for task in first.tasks])
    for order in ([first, idle], [idle, first]):
        assert [(task.times_seen, task.times_trained, task.adapted) for task in merged(order).tasks] == [
            (2, 1, adapted)
        ] * 2


def test_processes_that_do_not_agree_are_refused(parts: list[storage.Saved]) -> None:
    first, other = parts
    with pytest.raises(RanksDisagreeError, match=r"processes 0 and 1 differ \(model.0.weight by 1\."):
        merged([first, weights(other, "model.0.weight", 1 * first.weights["model.0.weight"].abs().max())])
    with pytest.raises(RanksDisagreeError, match="processes 0 and 1 differ"):
        merged([first, weights(other, "model.0.weight", float("nan"))])
    with pytest.raises(RanksDisagreeError, match=r"process 1 has lr=0.2, but that of process 0 has lr=0.1"):
        merged([first, about(other, lr=0.2)])
    with pytest.raises(RanksDisagreeError, match="different"):
        merged([first, replace(other, weights={})])
    assert merged([first, weights(other, "model.0.weight", 1e-7)]).weights is first.weights


def test_running_statistics_may_differ_and_it_says_so(parts: list[storage.Saved]) -> None:
    first, other = parts
    remark = "statistics, differ between the processes"
    assert remark in merged([first, weights(other, "model.1.running_mean", 1.0)]).about["summary"]
    assert remark not in merged(parts).about["summary"]


def test_trouble_of_one_process_is_trouble_of_all(parts: list[storage.Saved], tmp_path: Path) -> None:
    whole = merged([parts[0], about(parts[1], trouble="something is missing")])
    assert whole.about["trouble"] == "Process 1: something is missing"
    assert all(f"Process {rank}: MAML: 2 tasks" in whole.about["summary"] for rank in (0, 1))


def test_draws_that_a_sample_stands_for(parts: list[storage.Saved]) -> None:
    whole = merged([about(parts[0], stands_for=3.0), about(parts[1], stands_for=5.0)])
    assert whole.about["stands_for"] == 4.0 and "represent different numbers" in whole.about["summary"]


def test_a_process_that_trained_nothing_is_no_trouble(tmp_path: Path, parts: list[storage.Saved]) -> None:
    idle = replace(parts[1], tasks=[replace(task, times_trained=0) for task in parts[1].tasks])
    assert not merged([parts[0], idle]).about["trouble"]
    study, learner = Study(), MAML(nn.Linear(4, 3), lr=0.1)
    study.meet(learner)
    loaded = Study.load(study.save(tmp_path / "idle"), nn.Linear(4, 3))
    with pytest.raises(NothingRecordedError):
        loaded.training_tasks()


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    saved(tmp_path / "0")
    with pytest.raises(RecordingError, match="holds no study"):
        Study.load([tmp_path / "0", tmp_path / "1"], nn.Linear(4, 3))


# ---- models spread over devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_names_are_the_model_s_where_it_is_in_data_parallel(inside: bool, tmp_path: Path) -> None:
    """``inside``: as learn2learn's LightningMAML does it, on each clone; else around the learner's own model."""
    model = nn.Linear(6, 5)
    maml = l2l.algorithms.MAML(model if inside else nn.DataParallel(model), lr=0.1)
    x, y = torch.randn(10, 6), torch.arange(10) % 5
    with record() as study:
        tasks = ListedTasks([(x, y)])
        learner = maml.clone()
        if inside:
            learner.module = nn.DataParallel(learner.module)
        batch = tasks.sample()
        learner.adapt(ranks.LOSS(learner(batch[0][::2]), batch[1][::2]))
        ranks.LOSS(learner(batch[0][1::2]), batch[1][1::2]).backward()
    (task,) = study.training_tasks()
    assert set(task.adapted or ()) == {"weight", "bias"}
    loaded = Study.load(study.save(tmp_path / "study"), nn.Linear(6, 5))
    assert torch.equal(loaded.learner.module.weight, model.weight)
