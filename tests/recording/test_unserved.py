"""Rows that no taskset served: inside record() they are tasks all the same, as they were fed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import learn2learn as l2l
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence import Study, TaskInfluence
from l2l_influence.errors import TaskDataChangedError, UnmatchedInputError
from l2l_influence.recording import MAML, RecordingOptions, record, recording_of

from .omniglot_loop import images, taskset

Batch = tuple[Tensor, Tensor]


def batches(count: int = 4) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(10, 3, generator=draw), torch.randn(10, 1, generator=draw)) for _ in range(count)]


def fit(maml: Any, served: list[Batch], train: bool = True) -> None:
    for x, y in served:
        learner = maml.clone()
        for _ in range(2):
            learner.adapt(F.mse_loss(learner(x[:5]), y[:5]))
        loss = F.mse_loss(learner(x[5:]), y[5:])
        if train:
            loss.backward()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def recorded(served: list[Batch], options: RecordingOptions | None = None) -> Study:
    with record(options) as study:
        fit(l2l.algorithms.MAML(network(), lr=0.1), served)
    return study


def test_sets_and_labels_are_as_fed() -> None:
    served = batches()
    found = recorded(served).training_tasks()
    assert len(found) == 4
    for task, (x, y) in zip(found, served, strict=True):
        assert torch.equal(task.support[0], x[:5]) and torch.equal(task.support[1], y[:5])
        assert torch.equal(task.query[0], x[5:]) and torch.equal(task.query[1], y[5:])
        assert (task.steps, task.labels, task.indices, task.classes) == (2, "confirmed", None, None)
        assert str(task.loss) == str(task.query_loss) == "nn.MSELoss()"


def test_the_same_bits() -> None:
    left = []
    for watched in (False, True):
        torch.manual_seed(0)
        maml = l2l.algorithms.MAML(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1)), lr=0.1)
        optimiser = torch.optim.Adam(maml.parameters())
        with record() if watched else nullcontext():
            for batch in batches():
                optimiser.zero_grad()
                fit(maml, [batch])
                optimiser.step()
        left.append([*maml.state_dict().values(), *(p.grad for p in maml.parameters()), torch.get_rng_state()])
    assert all(map(torch.equal, *left))


def test_the_same_data_are_the_same_task() -> None:
    served = batches(2)
    found = recorded([*served, *served, served[0]]).training_tasks()
    assert [(task.times_trained, task.key) for task in found] == [(3, found[0].key), (2, found[1].key)]


def test_scores_are_those_of_the_same_tasks_served(tmp_path: Any) -> None:
    served = batches()
    study = recorded(served)
    told = Study()
    learner = l2l.algorithms.MAML(study.learner.module, lr=0.1)
    for x, y in served:
        told.add_episode(learner=learner, support=(x[:5], y[:5]), query=(x[5:], y[5:]), lr=0.1, steps=2)
    tests = [((x[:5], y[:5]), (x[5:], y[5:])) for x, y in batches(6)[4:]]
    expected = TaskInfluence(told, loss=nn.MSELoss(), progress=False).scores(tests)
    found = TaskInfluence(study, progress=False).scores(tests)
    loaded = TaskInfluence(Study.load(study.save(tmp_path / "study"), network()), progress=False).scores(tests)
    values = {row.task: row.score for row in expected}
    assert {row.task: row.score for row in found} == pytest.approx(values)
    assert {row.task: row.score for row in loaded} == pytest.approx(values)


def test_values_changed_after_sampling() -> None:
    """Normalised by the loop: the taskset's rows are not what the learner saw."""
    tasks = taskset(images(shape=(4,)), 3)
    with record() as study:
        maml = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
        for i in range(3):
            x, y = tasks[i]
            learner, x = maml.clone(), (x - 0.5) / 0.25
            learner.adapt(F.cross_entropy(learner(x[::2]), y[::2]))
            F.cross_entropy(learner(x[1::2]), y[1::2]).backward()
    found = study.training_tasks()
    assert torch.equal(found[0].support[0], (tasks[0][0][::2] - 0.5) / 0.25)
    assert "3 draws of rows that no taskset had served" in study.describe()


def test_validation_beside_training() -> None:
    with record() as study:
        maml = l2l.algorithms.MAML(network(), lr=0.1)
        fit(maml, batches(6)[:4])
        fit(maml, batches(6)[4:], train=False)
    assert [task.times_trained for task in study.tasks] == [1, 1, 1, 1, 0, 0]
    assert torch.equal(study.tasks[5].query[1], batches(6)[5][1][5:])


def test_what_a_trained_module_made_is_no_data() -> None:
    """ANIL on such rows: the body's part in the training would be lost without a word."""
    body = nn.Linear(3, 3)
    with record() as study:
        fit(l2l.algorithms.MAML(network(), lr=0.1), [(body(x), y) for x, y in batches()])
    with pytest.raises(UnmatchedInputError, match="inputs do not come from a trained module"):
        study.training_tasks()


def test_unknown_labels_are_refused() -> None:
    with record() as study:
        maml = l2l.algorithms.MAML(network(), lr=0.1)
        for x, y in batches():
            learner = maml.clone()
            learner.adapt((learner(x[:5]) - y[:5]).square().mean())
            (learner(x[5:]) - y[5:]).square().mean().backward()
    with pytest.raises(UnmatchedInputError, match="add_episode"):
        study.training_tasks()


def test_outside_record_the_query_labels_are_unknown() -> None:
    maml = MAML(network(), lr=0.1)
    fit(maml, batches())
    with pytest.raises(UnmatchedInputError, match="record"):
        recording_of(maml).training_tasks()


def test_what_has_no_room_cannot_be_had_again() -> None:
    found = recorded(batches(), RecordingOptions(data_bytes=2 * 10 * 4 * 4)).training_tasks()
    assert torch.equal(found[-1].support[0], batches()[-1][0][:5])
    with pytest.raises(TaskDataChangedError, match="data_bytes"):
        found[0].support  # noqa: B018
