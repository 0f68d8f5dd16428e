"""Nothing of the user's is kept alive, what is kept has a limit, and what is read again is checked."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import learn2learn as l2l
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2l_influence.errors import RecordingError, TaskDataChangedError
from l2l_influence.recording import MAML, RecordingOptions, TaskDataset, recording_of
from l2l_influence.recording.deferred import catch_up
from l2l_influence.recording.tasksets.served import all_own_batches
from l2l_influence.recording.tasksets.tasks import info_of

from .omniglot_loop import fast_adapt, images, taskset
from .tasksets import Augmented

cross_entropy = nn.CrossEntropyLoss()


def learner_on(options: RecordingOptions | None = None) -> MAML:
    maml = MAML(nn.Linear(4, 5), lr=0.1)
    if options is not None:
        recording_of(maml).options = options
    return maml


def wrapped(num_tasks: int = 6) -> TaskDataset:
    return TaskDataset(taskset(images(shape=(4,)), num_tasks))


def step(maml: MAML, batch: Any) -> Tensor:
    loss, _ = fast_adapt(batch, maml.clone(), cross_entropy)
    loss.backward(retain_graph=True)
    return loss


class Spy(torch.autograd.Function):
    """Identity; its graph node can be watched through the object saved on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Any) -> Tensor:
        ctx.token = token
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Token:
    pass


class Watched(nn.Module):
    """A linear model, each of whose graphs holds a token."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.tokens: list[weakref.ref[Token]] = []

    def forward(self, x: Tensor) -> Tensor:
        token = Token()
        self.tokens.append(weakref.ref(token))
        output: Tensor = Spy.apply(self.linear(x), token)
        return output


@pytest.mark.parametrize("trains", [True, False])
def test_no_graph_learner_or_parameter_is_kept_alive(trains: bool) -> None:
    maml, tasks = MAML(Watched(), lr=0.1), wrapped()
    gc.disable()  # by reference counts alone: no cycles either
    try:
        learner = maml.clone()
        parameters = [weakref.ref(parameter) for parameter in learner.parameters()]
        loss, _ = fast_adapt(tasks[0], learner, cross_entropy)
        if trains:
            loss.backward()
        parameters += [weakref.ref(parameter) for parameter in learner.parameters()]
        assert all(token() is not None for token in maml.module.tokens)
        gone = [weakref.ref(learner), weakref.ref(loss), *maml.module.tokens, *parameters]
        del learner, loss
        assert all(reference() is None for reference in gone)
    finally:
        gc.enable()
    assert [task.times_seen for task in recording_of(maml).tasks] == [1]


@pytest.mark.parametrize("looked_into", [False, True])
def test_a_recording_goes_with_its_learner_and_a_data_set_with_its_taskset(looked_into: bool) -> None:
    maml, tasks = learner_on(), wrapped()
    step(maml, tasks[0])
    recording, data, number = weakref.ref(recording_of(maml)), weakref.ref(tasks.dataset), info_of(tasks).number
    if looked_into:
        catch_up()
    del maml, tasks
    gc.collect()
    assert recording() is None
    assert data() is None
    catch_up()
    kept = [served for batches in all_own_batches() for served in batches._entries.values()]
    assert all(served.taskset_number != number for served in kept)


def test_a_recording_keeps_the_taskset_that_it_may_have_to_read() -> None:
    maml, tasks = learner_on(RecordingOptions(data_bytes=0)), wrapped()
    x, _y = tasks[0]
    step(maml, tasks[0])
    recording_of(maml).tasks  # noqa: B018
    maml.clone()
    del tasks
    gc.collect()
    assert torch.equal(recording_of(maml).tasks[0].query[0], x[1::2])


@pytest.mark.parametrize("room", [2, 3])
def test_adapted_parameters_are_all_kept_or_none(room: int) -> None:
    tasks = wrapped()
    size = (4 * 5 + 5) * 4
    maml = learner_on(RecordingOptions(adapted_bytes=room * size))
    for key in (0, 1, 2, 0):
        step(maml, tasks[key])
    recording = recording_of(maml)
    kept = {task.key: task.adapted is not None for task in recording.training_tasks()}
    assert kept == dict.fromkeys((0, 1, 2), room == 3)
    assert recording._adapted.bytes == (3 * size if room == 3 else 0)
    step(maml, tasks[0])
    assert (recording.training_tasks()[0].adapted is not None) == (room == 3)


def test_adapted_parameters_can_be_switched_off() -> None:
    maml, tasks = learner_on(RecordingOptions(keep_adapted=False)), wrapped()
    step(maml, tasks[0])
    (task,) = recording_of(maml).training_tasks()
    assert task.adapted is None


def generators() -> str:
    return str((torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()))


@pytest.mark.parametrize("num_tasks", [6, -1])
@pytest.mark.parametrize("room", [0, 1, 10])
def test_data_without_room_are_read_again(num_tasks: int, room: int) -> None:
    tasks = wrapped(num_tasks)
    batches = [tasks[key] for key in range(4)]
    size = sum(tensor.nbytes for tensor in batches[0])
    maml = learner_on(RecordingOptions(data_bytes=room * size))
    for batch in batches:
        step(maml, batch)
    recording = recording_of(maml)
    before = generators()
    for task, (x, y) in zip(recording.training_tasks(), batches, strict=True):
        assert torch.equal(task.support[0], x[::2])
        assert torch.equal(task.query[0], x[1::2])
        assert torch.equal(task.query[1], y[1::2])
    assert generators() == before
    assert recording._data.bytes == min(room, 4) * size


def test_validation_data_make_room_for_training_data() -> None:
    tasks = wrapped()
    size = sum(tensor.nbytes for tensor in tasks[0])
    maml = learner_on(RecordingOptions(data_bytes=2 * size))
    step(maml, tasks[0])
    for key in (1, 2, 3):
        fast_adapt(tasks[key], maml.clone(), cross_entropy)
    recording = recording_of(maml)
    keys = {task.key: task.id for task in recording.tasks}
    assert {identity[1] for identity in recording._data._values} == {0, 3}
    assert list(keys) == [0, 1, 2, 3]


def test_augmented_data_are_kept_or_refused() -> None:
    tasks = TaskDataset(taskset(l2l.data.MetaDataset(Augmented()), 6))
    for room, keeps in ((RecordingOptions().data_bytes, True), (0, False)):
        maml = learner_on(RecordingOptions(data_bytes=room))
        x, y = tasks[0]
        step(maml, (x, y))
        (task,) = recording_of(maml).training_tasks()
        before = generators()
        if keeps:
            assert torch.equal(task.support[0], x[::2])
        else:
            with pytest.raises(TaskDataChangedError, match="data_bytes"):
                task.support  # noqa: B018
        assert generators() == before


def test_augmented_draws_of_a_task_are_one_task() -> None:
    maml, tasks = learner_on(), TaskDataset(taskset(l2l.data.MetaDataset(Augmented()), 6))
    step(maml, tasks[0])
    last = tasks[0]
    step(maml, last)
    fast_adapt(tasks[0], maml.clone(), cross_entropy)
    (task,) = recording_of(maml).training_tasks()
    assert (task.times_seen, task.times_trained) == (3, 2)
    assert torch.equal(task.support[0], last[0][::2])  # the last one that trained, not the validation after it


@pytest.mark.parametrize("when", ["before the episode is over", "after"])
def test_data_changed_in_place_after_training_are_read_again(when: str) -> None:
    maml, tasks = learner_on(), wrapped()
    batch = tasks[0]
    x = batch[0].clone()
    step(maml, batch)
    if when == "after":
        maml.clone()
    batch[0].mul_(2)
    (task,) = recording_of(maml).training_tasks()
    assert torch.equal(task.support[0], x[::2])


def test_too_many_tasks_are_refused_if_asked_for() -> None:
    maml, tasks = learner_on(RecordingOptions(max_tasks=2, overflow="raise")), wrapped(-1)
    for _draw in range(3):
        step(maml, tasks.sample())
    assert [task.key for task in recording_of(maml).tasks] == [0, 1]
    with pytest.raises(RecordingError, match="1 draw.*max_tasks=2"):
        recording_of(maml).training_tasks()


def test_describe_counts() -> None:
    maml, tasks = learner_on(), wrapped()
    for key in (0, 1, 0):
        step(maml, tasks[key])
    fast_adapt(tasks[2], maml.clone(), cross_entropy)
    text = recording_of(maml).describe()
    assert "3 tasks in 4 draws; 2 of them trained the meta-parameters, in 3 draws;" in text
    assert text in repr(recording_of(maml))
