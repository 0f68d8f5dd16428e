"""Episodes told by hand stand beside those that were seen."""

from __future__ import annotations

from typing import Any

import learn2learn as l2l
import pytest
import torch
from torch import Tensor, nn

from l2l_influence import Study, TaskInfluence
from l2l_influence.errors import RecordingError, TaskDataChangedError, TaskShapeError
from l2l_influence.recording import MAML, RecordingOptions, TaskDataset, record, recording_of

from .omniglot_loop import fast_adapt, images, taskset

cross_entropy = nn.CrossEntropyLoss()
STEP = {"lr": 0.1, "steps": 2}


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    tasks = taskset(images(shape=(4,)), count)
    return [tasks[i] for i in range(count)]


def halves(batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    x, y = batch
    return {"support": (x[::2], y[::2]), "query": (x[1::2], y[1::2])}


def test_a_told_episode_is_a_trained_draw_of_a_task() -> None:
    study, maml = Study(), l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
    x, y = batches(1)[0]
    study.add_episode(learner=maml, **halves((x, y)), **STEP, first_order=True)
    assert study.learner is maml
    (task,) = study.training_tasks()
    assert (task.lr, task.steps, task.first_order, task.rule, task.labels) == (0.1, 2, True, "sgd", "confirmed")
    assert (task.times_seen, task.times_trained, task.indices, task.adapted) == (1, 1, None, None)
    assert (task.support_rows, task.query_rows) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    for told, rows in ((task.support, slice(0, None, 2)), (task.query, slice(1, None, 2))):
        assert torch.equal(told[0], x[rows])
        assert torch.equal(told[1], y[rows])


def test_the_same_data_again_are_another_draw() -> None:
    study, maml = Study(), l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
    data = batches(3)
    for i in (0, 1, 0, 2, 0):
        study.add_episode(learner=maml, **halves(data[i]), **STEP)
    assert [(task.id, task.times_trained) for task in study.training_tasks()] == [(0, 3), (1, 1), (2, 1)]
    assert len({task.key for task in study.tasks}) == 3
    Study().add_episode(learner=maml, **halves(data[0]), **STEP)
    assert study.training_tasks()[0].times_trained == 4


def test_a_key_names_the_task() -> None:
    study, maml = Study(), l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
    data = batches(3)
    study.add_episode(learner=maml, **halves(data[0]), **STEP)
    for i, key in ((0, 0), (1, 0), (2, 5)):
        study.add_episode(learner=maml, **halves(data[i]), **STEP, key=key)
    found = {task.key: task for task in study.training_tasks()}
    assert {key: task.times_trained for key, task in found.items()} == {-1: 1, 0: 2, 5: 1}
    assert torch.equal(found[0].support[0], data[1][0][::2])  # of the last draw


def test_rows_that_occur_twice() -> None:
    study, maml = Study(), l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
    x, y = torch.ones(4, 4), torch.arange(4)
    study.add_episode(learner=maml, support=(x[:2], y[:2]), query=(x[2:], y[2:]), **STEP)
    (task,) = study.training_tasks()
    assert (task.support_rows, task.query_rows) == ((0, 1), (2, 3))
    assert torch.equal(task.query[1], y[2:])


def test_what_is_told_is_a_copy() -> None:
    study, maml = Study(), l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
    x, y = batches(1)[0]
    before = x.clone()
    study.add_episode(learner=maml, **halves((x, y)), **STEP)
    x.zero_()
    assert torch.equal(study.tasks[0].support[0], before[::2])


def test_data_have_the_limit_of_the_recording() -> None:
    data = batches(3)
    size = sum(tensor.nbytes for tensor in data[0])
    study, maml = Study(RecordingOptions(data_bytes=size)), l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
    for batch in data:
        study.add_episode(learner=maml, **halves(batch), **STEP)
    first, _, last = study.training_tasks()
    assert torch.equal(last.support[0], data[2][0][::2])
    with pytest.raises(TaskDataChangedError, match="data_bytes"):
        first.support  # noqa: B018


def test_told_and_seen_tasks_in_one_recording() -> None:
    data = batches(2)
    with record() as study:
        maml, tasks = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), taskset(images(shape=(4,), seed=1), 6)
        study.add_episode(learner=maml, **halves(data[0]), **STEP)
        fast_adapt(tasks[3], maml.clone(), cross_entropy)[0].backward()
        study.add_episode(learner=maml, **halves(data[1]), **STEP)
    assert study.learners == [maml]
    assert [task.key for task in study.training_tasks()] == [-1, 3, -2]
    assert [task.key for task in study.training_tasks(tasks)] == [3]


def test_scores_are_those_of_the_same_run_seen() -> None:
    """A loop by hand on a plain model, told, against learn2learn's loop, recorded."""
    torch.manual_seed(0)
    maml, tasks = MAML(nn.Linear(4, 5), lr=0.1), TaskDataset(taskset(images(shape=(4,)), 4))
    data = [tasks[i] for i in range(4)]
    for batch in data:
        fast_adapt(batch, maml.clone(), cross_entropy, steps=2)[0].backward()
    study = Study()
    learner = l2l.algorithms.MAML(maml.module, lr=0.1)
    for batch in data:
        study.add_episode(learner=learner, **halves(batch), **STEP)
    test = [(halves(batch)["support"], halves(batch)["query"]) for batch in batches(2)]
    seen = TaskInfluence(maml, loss=cross_entropy).scores(test)
    told = TaskInfluence(study.learner, loss=cross_entropy).scores(test)
    assert list(seen.values.values()) == list(told.values.values())
    assert len(seen) == 4
    assert recording_of(learner) is not recording_of(maml)


def wrong(**changes: Any) -> dict[str, Any]:
    x, y = batches(1)[0]
    return {"learner": l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), **halves((x, y)), **STEP, **changes}


ROWS = torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"learner": nn.Linear(4, 5)}, RecordingError, "cannot be recorded as a learner"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 1.5}, ValueError, "steps"),
        ({"key": -1}, ValueError, "key"),
        ({"support": ROWS[0]}, TaskShapeError, r"support must be a pair \(x, y\)"),
        ({"query": (ROWS[0], ROWS[1][:2])}, TaskShapeError, r"query: x and y.*\(3, 4\) and \(2,\)"),
        ({"query": (ROWS[0][:0], ROWS[1][:0])}, TaskShapeError, "non-zero"),
        ({"query": (torch.zeros(3, 5), ROWS[1])}, TaskShapeError, r"x of the support set has.*\(4,\).*\(5,\)"),
        (
            {"query": (ROWS[0], ROWS[1].float())},
            TaskShapeError,
            "y of the support set has torch.int64 .* torch.float32",
        ),
    ],
)
def test_nonsense_is_refused_at_the_door(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    study = Study()
    with pytest.raises(error, match=text):
        study.add_episode(**wrong(**changes))
    assert not study.learners
