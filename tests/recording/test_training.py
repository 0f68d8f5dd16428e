"""Which draws count as training: those whose gradient reached the meta-parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from l2l_influence.recording import MAML, TaskDataset, recording_of

from .omniglot_loop import fast_adapt, images, taskset, train

cross_entropy = nn.CrossEntropyLoss()


def setting(**arguments: Any) -> tuple[MAML, TaskDataset]:
    return MAML(nn.Linear(4, 5), lr=0.1, **arguments), TaskDataset(taskset(images(shape=(4,)), 6))


def trained(maml: MAML) -> list[tuple[int, int]]:
    return [(task.key, task.times_trained) for task in recording_of(maml).tasks if task.times_trained]


def test_validation_tasks_do_not_count() -> None:
    maml = MAML(nn.Linear(4, 5), lr=0.1)
    inner, held_out = taskset(images(shape=(4,)), 6), taskset(images(shape=(4,), seed=1), 6)
    training, validation = TaskDataset(inner), TaskDataset(held_out)
    train(maml, training, validation, iterations=5)
    recording = recording_of(maml)
    assert sum(task.times_trained for task in recording.training_tasks(training)) == 20
    assert {task.taskset for task in recording.training_tasks()} == {recording.training_tasks(training)[0].taskset}
    assert sum(task.times_seen for task in recording.tasks) == 40
    assert all(task.adapted is None for task in recording.tasks if not task.times_trained)


def test_validating_on_a_training_task_is_a_draw_but_no_training() -> None:
    maml, tasks = setting()
    fast_adapt(tasks[0], maml.clone(), cross_entropy)[0].backward()
    fast_adapt(tasks[0], maml.clone(), cross_entropy, split=lambda rows: ([0], [1]))
    (task,) = recording_of(maml).training_tasks()
    assert (task.times_seen, task.times_trained) == (2, 1)
    assert task.support_rows == (0, 2, 4, 6, 8)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_one_backward_of_a_sum(first_order: bool, steps: int) -> None:
    maml, tasks = setting(first_order=first_order)
    losses = []
    for key in (2, 0, 5):
        learner = maml.clone()
        losses.append(fast_adapt(tasks[key], learner, cross_entropy, steps)[0])
        fast_adapt(tasks[1], maml.clone(), cross_entropy, steps)
    assert trained(maml) == []
    (sum(losses) / 3).backward()
    assert trained(maml) == [(2, 1), (0, 1), (5, 1)]
    assert [task.query_rows for task in recording_of(maml).training_tasks()] == [(1, 3, 5, 7, 9)] * 3


def test_autograd_grad_counts() -> None:
    maml, tasks = setting()
    loss, _ = fast_adapt(tasks[3], maml.clone(), cross_entropy)
    torch.autograd.grad(loss, list(maml.parameters()))
    assert trained(maml) == [(3, 1)]


def test_a_gradient_that_stops_at_the_clone_does_not_count() -> None:
    maml, tasks = setting()
    learner = maml.clone()
    x, y = tasks[0]
    torch.autograd.grad(cross_entropy(learner(x), y), list(learner.parameters()))
    loss, _ = fast_adapt(tasks[0], learner, cross_entropy)
    torch.autograd.grad(loss, list(learner.parameters()), retain_graph=True)
    assert trained(maml) == []
    loss.backward()
    assert trained(maml) == [(0, 1)]


def test_two_backwards_of_a_draw_count_once() -> None:
    maml, tasks = setting()
    loss, _ = fast_adapt(tasks[0], maml.clone(), cross_entropy)
    loss.backward(retain_graph=True)
    loss.backward()
    assert trained(maml) == [(0, 1)]


def test_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    model[0].requires_grad_(False)
    maml, tasks = MAML(model, lr=0.1, allow_nograd=True), TaskDataset(taskset(images(shape=(4,)), 6))
    fast_adapt(tasks[0], maml.clone(), cross_entropy)[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.adapted is not None
    assert torch.equal(task.adapted["0.weight"], model[0].weight)
    assert not torch.equal(task.adapted["1.weight"], model[1].weight)


def test_adapted_parameters_are_those_of_the_last_draw() -> None:
    maml, tasks = setting()
    for _draw in range(2):
        learner = maml.clone()
        fast_adapt(tasks[0], learner, cross_entropy, steps=2)[0].backward()
        with torch.no_grad():
            for parameter in maml.parameters():
                parameter -= parameter.grad
    expected = {name: value.detach().clone() for name, value in learner.module.named_parameters()}
    del learner
    maml.clone()
    (task,) = recording_of(maml).training_tasks()
    assert task.adapted is not None
    assert list(task.adapted) == [name for name, _ in maml.module.named_parameters()]
    for name, value in task.adapted.items():
        assert torch.equal(value, expected[name])
        assert not value.requires_grad


def test_first_order_and_lr_are_those_of_the_adapt_call() -> None:
    maml, tasks = setting()
    x, y = tasks[0]
    learner = maml.clone()
    learner.lr = 0.3
    learner.adapt(cross_entropy(learner(x[:5]), y[:5]), first_order=True)
    cross_entropy(learner(x[5:]), y[5:]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.lr, task.first_order) == (0.3, True)


def test_a_clone_of_an_untouched_clone_starts_a_draw() -> None:
    maml, tasks = setting()
    middle = maml.clone()
    losses = [fast_adapt(tasks[key], middle.clone(), cross_entropy)[0] for key in (1, 4, 1)]
    sum(losses).backward()
    assert recording_of(middle) is recording_of(maml)
    assert trained(maml) == [(1, 2), (4, 1)]


@pytest.mark.parametrize("counted", ["child", "parent"])
def test_a_clone_of_an_adapted_clone_goes_on_with_its_draw(counted: str) -> None:
    maml, tasks = setting()
    x, y = tasks[2]
    parent = maml.clone()
    parent.adapt(cross_entropy(parent(x[:3]), y[:3]))
    child = parent.clone()
    child.adapt(cross_entropy(child(x[3:5]), y[3:5]))
    losses = {
        "child": cross_entropy(child(x[5:]), y[5:]),
        "parent": cross_entropy(parent(x[7:]), y[7:]),
    }
    losses[counted].backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.times_seen, task.times_trained) == (1, 1)
    steps, support, query = {"child": (2, 5, 5), "parent": (1, 3, 7)}[counted]
    assert task.steps == steps
    assert task.support_rows == tuple(range(support))
    assert task.query_rows == tuple(range(query, 10))


def test_adapting_through_a_clones_loss_is_no_training() -> None:
    maml, tasks = setting()
    x, y = tasks[0]
    outer = maml.clone()
    inner = outer.clone()
    inner.adapt(cross_entropy(inner(x[:5]), y[:5]))
    outer.adapt(cross_entropy(inner(x[5:]), y[5:]))
    assert trained(maml) == []
    cross_entropy(inner(x[7:]), y[7:]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.query_rows == (7, 8, 9)


def test_a_query_loss_between_adapt_calls_is_mentioned() -> None:
    maml, tasks = setting()
    x, y = tasks[0]
    learner = maml.clone()
    losses = []
    for _step in range(2):
        learner.adapt(cross_entropy(learner(x[:5]), y[:5]))
        losses.append(cross_entropy(learner(x[5:]), y[5:]))
    sum(losses).backward()
    assert "1 draws with a query loss before the last adapt step" in recording_of(maml).describe()


def test_a_split_that_changes_between_draws_is_mentioned() -> None:
    maml, tasks = setting()
    for rows in ([0, 1], [2, 3]):
        fast_adapt(tasks[0], maml.clone(), cross_entropy, split=lambda _n, rows=rows: (rows, [8, 9]))[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.support_rows == (2, 3)
    assert "1 draws of a task split otherwise" in recording_of(maml).describe()
