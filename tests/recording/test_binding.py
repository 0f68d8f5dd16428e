"""Forwards are bound to the right task and the right rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2l_influence.errors import AmbiguousTaskError, LabelMismatchError, NothingRecordedError, UnmatchedInputError
from l2l_influence.recording import MAML, TaskDataset, recording_of
from l2l_influence.recording.deferred import catch_up
from l2l_influence.recording.episodes import graph
from l2l_influence.recording.tasksets.content import read_batch
from l2l_influence.recording.tasksets.served import Served, ServedBatches, own_batches
from l2l_influence.storage.fingerprints import row_digests

from .omniglot_loop import even_rows, fast_adapt, images, taskset

cross_entropy = nn.CrossEntropyLoss()


def linear(**arguments: Any) -> MAML:
    return MAML(nn.Linear(4, 5), lr=0.1, **arguments)


def wrapped(num_tasks: int = 6, seed: int = 0, samples: int = 4) -> TaskDataset:
    return TaskDataset(taskset(images(shape=(4,), seed=seed), num_tasks, samples=samples))


def step(maml: MAML, batch: Any, **arguments: Any) -> None:
    fast_adapt(batch, maml.clone(), cross_entropy, **arguments)[0].backward()


def permuted(rows: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(7))
    return order[: rows // 2], order[rows // 2 :]


def uneven(rows: int) -> tuple[Any, Any]:
    return np.array([9, 2, 5]), np.array([1, 0])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("split", [even_rows, permuted, uneven])
def test_rows_and_labels(split: Callable[[int], tuple[Any, Any]], steps: int) -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[2]
    step(maml, (x, y), split=split, steps=steps)
    (task,) = recording_of(maml).training_tasks(tasks)
    numbers = torch.arange(len(x))
    support, query = (numbers[rows] for rows in split(len(x)))
    assert task.support_rows == tuple(support.tolist())
    assert task.query_rows == tuple(query.tolist())
    for (seen_x, seen_y), rows in ((task.support, support), (task.query, query)):
        assert torch.equal(seen_x, x[rows])
        assert torch.equal(seen_y, y[rows])
    assert (task.lr, task.steps, task.first_order, task.labels) == (0.1, steps, False, "confirmed")


def test_sampling_before_cloning() -> None:
    maml, tasks = linear(), wrapped()
    batches = [tasks[i] for i in (4, 1, 3)]
    learners = [maml.clone() for _ in batches]
    for learner, batch in zip(reversed(learners), reversed(batches), strict=True):
        fast_adapt(batch, learner, cross_entropy)[0].backward()
    assert [task.key for task in recording_of(maml).training_tasks()] == [4, 1, 3]


def test_two_learners_interleaved() -> None:
    one, other, tasks, others = linear(), linear(), wrapped(), wrapped(seed=1)
    for key in range(3):
        learners = one.clone(), other.clone()
        batches = tasks[key], others[key + 1]
        losses = [
            fast_adapt(batch, learner, cross_entropy)[0] for batch, learner in zip(batches, learners, strict=True)
        ]
        sum(losses).backward()
    assert [task.key for task in recording_of(one).training_tasks(tasks)] == [0, 1, 2]
    assert [task.key for task in recording_of(other).training_tasks(others)] == [1, 2, 3]
    with pytest.raises(NothingRecordedError, match="was drawn from"):
        recording_of(one).training_tasks(others)


def test_several_support_forwards_are_merged() -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    for rows in ([3, 1], [8, 3], [1, 0]):
        learner.adapt(cross_entropy(learner(x[rows]), y[rows]))
    parts = [cross_entropy(learner(x[rows]), y[rows]) for rows in ([5, 4], [6])]
    sum(parts).backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.support_rows == (3, 1, 8, 0)
    assert task.query_rows == (5, 4, 6)
    assert task.steps == 3


def test_a_forward_that_no_loss_used_is_not_query() -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    learner.adapt(cross_entropy(learner(x[:5]), y[:5]))
    learner(x[:5]).argmax(dim=1)  # training accuracy, for the log
    with torch.no_grad():
        learner(x[10:15])
    cross_entropy(learner(x[5:10]), y[5:10]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.query_rows == (5, 6, 7, 8, 9)


def test_outputs_in_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 5)

        def forward(self, x: Tensor, scale: float) -> dict[str, Any]:
            return {"features": x, "heads": (self.body(x), scale * self.body(x))}

    maml, tasks = MAML(Two(), lr=0.1), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    learner.adapt(cross_entropy(learner(x[:5], scale=2.0)["heads"][1], y[:5]))
    cross_entropy(learner(x[5:9], scale=2.0)["heads"][0], y[5:9]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.support_rows, task.query_rows) == ((0, 1, 2, 3, 4), (5, 6, 7, 8))


def test_a_penalty_on_the_parameters_does_not_hide_the_support_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_NODES", 300)  # the graph of the parameters is not searched, so this is enough
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    for _step in range(30):
        penalty = sum(_chain(parameter).sum() for parameter in learner.parameters())
        learner.adapt(0.01 * penalty + cross_entropy(learner(x[:5]) / 2, y[:5]) / 5)
    cross_entropy(learner(x[5:]), y[5:]).backward()
    (task,) = recording_of(maml).training_tasks()
    assert (task.support_rows, task.query_rows) == (tuple(range(5)), tuple(range(5, 20)))
    assert (task.steps, task.labels) == (30, "confirmed")


def _chain(parameter: Tensor) -> Tensor:
    """A graph of more nodes than the search goes through before it looks where the parameters begin."""
    for _node in range(40):
        parameter = parameter * 0.9
    return parameter**2


def test_equal_rows_are_given_out_in_order() -> None:
    content = read_batch((torch.tensor([[0.0], [1.0], [2.0], [0.0], [2.0], [2.0]]),))
    assert content is not None
    a, b, c = (row_digests(torch.tensor([[value]]))[0] for value in (0.0, 1.0, 2.0))
    assert content.assign([c, a, c]) == (2, 0, 4)
    assert content.assign([c, a, c], avoid=(2, 0)) == (4, 3, 5)
    assert content.assign([a, a, b], avoid=(0, 3)) == (0, 3, 1)


def with_equal_rows(batch: Any) -> Any:
    x, y = batch
    x = x.clone()
    x[1] = x[0]
    return x, y


def test_a_row_that_occurs_twice_is_support_once_and_query_once() -> None:
    inner = taskset(images(shape=(4,)), 3)
    inner = type(inner)(inner.dataset, inner.task_transforms, 3, lambda rows: with_equal_rows(collate(rows)))
    maml, tasks = linear(), TaskDataset(inner)
    step(maml, tasks[0])
    (task,) = recording_of(maml).training_tasks()
    assert (task.support_rows, task.query_rows) == ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))


def collate(rows: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def overlapping(labels: Callable[[Tensor, int], Tensor] = lambda y, _key: y) -> TaskDataset:
    """Two tasks that differ in their last row only (and in what ``labels`` does)."""
    x, y = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 5

    class Pair(type(taskset(images(shape=(4,))))):  # type: ignore[misc]
        def __getitem__(self, i: int) -> Any:
            rows = [0, 1, 2, 3, 4, 5 + i]
            return x[rows], labels(y[rows], i)

    base = taskset(images(shape=(4,)))
    return TaskDataset(Pair(base.dataset, base.task_transforms, num_tasks=2))


def test_a_draw_that_fits_two_tasks_is_refused() -> None:
    maml, tasks = linear(), overlapping()
    (x, y), _other = tasks[0], tasks[1]
    step(maml, (x[:5], y[:5]))
    with pytest.raises(AmbiguousTaskError, match=r"task [01] of taskset \d+ and task [01] of taskset"):
        recording_of(maml).training_tasks()
    assert "fit two tasks" in recording_of(maml).describe()


def test_a_later_row_decides_between_tasks() -> None:
    maml, tasks = linear(), overlapping()
    (x, y), _other = tasks[0], tasks[1]
    step(maml, (x, y), split=lambda _rows: ([0, 1, 2], [3, 5]))
    assert [task.key for task in recording_of(maml).training_tasks()] == [0]


def test_the_labels_seen_decide_between_tasks() -> None:
    maml, tasks = linear(), overlapping(labels=lambda y, key: (y + key) % 5)
    (x, y), _other = tasks[0], tasks[1]
    step(maml, (x[:5], y[:5]))
    assert [task.key for task in recording_of(maml).training_tasks()] == [0]


def test_an_ambiguous_validation_is_no_obstacle() -> None:
    maml, tasks = linear(), overlapping()
    (x, y), _other = tasks[0], tasks[1]
    fast_adapt((x[:5], y[:5]), maml.clone(), cross_entropy)
    step(maml, (x, y))
    assert [task.key for task in recording_of(maml).training_tasks()] == [0]


def test_unknown_input_that_trained_is_refused() -> None:
    maml, tasks = linear(), wrapped()
    step(maml, tasks[0])
    x, y = tasks[1]
    step(maml, (x + 1, y))
    with pytest.raises(UnmatchedInputError, match=r"2 forward.*\(10, 4\).*TaskDataset"):
        recording_of(maml).training_tasks()
    recording_of(maml).options.unmatched = "ignore"
    assert [task.key for task in recording_of(maml).training_tasks()] == [0]


def test_unknown_query_rows_are_not_passed_over() -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    learner.adapt(cross_entropy(learner(x[:5]), y[:5]))
    cross_entropy(learner(x[5:] + 1), y[5:]).backward()
    with pytest.raises(UnmatchedInputError):
        recording_of(maml).training_tasks()


def test_two_tasks_for_one_clone_are_refused() -> None:
    maml, tasks = linear(), wrapped()
    learner = maml.clone()
    for key in (0, 1):
        fast_adapt(tasks[key], learner, cross_entropy)[0].backward(retain_graph=True)
    with pytest.raises(UnmatchedInputError):
        recording_of(maml).training_tasks()


def test_unknown_input_without_part_in_training_is_only_mentioned() -> None:
    maml, tasks = linear(), wrapped()
    fast_adapt((torch.randn(10, 4), torch.arange(10) % 5), maml.clone(), cross_entropy)
    learner = maml.clone()
    learner(torch.zeros(3, 4))  # a look at the shapes, say
    fast_adapt(tasks[0], learner, cross_entropy)[0].backward()
    assert [task.key for task in recording_of(maml).training_tasks()] == [0]
    assert "3 forwards of input that no recorded taskset had served" in recording_of(maml).describe()


def test_nothing_recorded_says_why() -> None:
    maml, tasks = linear(), wrapped()
    with pytest.raises(NothingRecordedError, match="no clone of this learner"):
        recording_of(maml).training_tasks()
    fast_adapt((torch.randn(10, 4), torch.arange(10) % 5), maml.clone(), cross_entropy)
    with pytest.raises(NothingRecordedError, match="num_workers=0"):
        recording_of(maml).training_tasks()
    fast_adapt(tasks[0], maml.clone(), cross_entropy)
    with pytest.raises(NothingRecordedError, match="1 task.*no backward"):
        recording_of(maml).training_tasks()


def test_labels_changed_after_sampling() -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    step(maml, (x, (y + 1) % 5))
    (task,) = recording_of(maml).training_tasks()
    assert task.labels == "changed"
    rows = list(task.support_rows)
    assert torch.equal(task.support[0], x[rows])
    assert torch.equal(task.support[1], (y[rows] + 1) % 5)
    with pytest.raises(LabelMismatchError, match=r"task 0 \(key 0"):
        task.query  # noqa: B018


def test_labels_that_changed_between_steps_are_unknown() -> None:
    maml, tasks = linear(), wrapped()
    x, y = tasks[0]
    learner = maml.clone()
    for shift in (0, 1):
        learner.adapt(cross_entropy(learner(x[:5]), (y[:5] + shift) % 5))
    cross_entropy(learner(x[5:]), y[5:]).backward()
    (task,) = recording_of(maml).training_tasks()
    with pytest.raises(LabelMismatchError):
        task.support  # noqa: B018


@pytest.mark.parametrize("first_order", [False, True])
def test_labels_of_a_regression(first_order: bool) -> None:
    maml, tasks = MAML(nn.Linear(4, 1), lr=0.1, first_order=first_order), wrapped()
    x, y = tasks[0]
    for shift, expected in ((0.0, "confirmed"), (0.5, "changed")):
        learner = maml.clone()
        loss = nn.functional.mse_loss(learner(x[::2]).squeeze(1), y[::2].float() + shift, reduction="sum") / 5
        learner.adapt(loss)
        nn.functional.mse_loss(learner(x[1::2]), y[1::2].float()[:, None]).backward()
        (task,) = recording_of(maml).training_tasks()
        assert (task.labels, task.first_order) == (expected, first_order)


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, y: -(nn.functional.one_hot(y, 5) * output.log_softmax(1)).sum(),
        lambda output, y: nn.functional.mse_loss(output, nn.functional.one_hot(y, 5).float()),
        lambda output, y: cross_entropy(output.flip(0), y.flip(0)),
    ],
    ids=["by hand", "one-hot", "reordered"],
)
def test_labels_that_cannot_be_read_are_not_called_changed(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    maml, tasks = linear(), wrapped()
    fast_adapt(tasks[0], maml.clone(), loss)[0].backward()
    (task,) = recording_of(maml).training_tasks()
    assert task.labels == "unseen"


def test_label_smoothing_is_seen_through() -> None:
    maml, tasks = linear(), wrapped()
    fast_adapt(tasks[0], maml.clone(), nn.CrossEntropyLoss(label_smoothing=0.1))[0].backward()
    assert recording_of(maml).training_tasks()[0].labels == "confirmed"


def test_served_batches_do_not_outgrow_their_bounds() -> None:
    maml, tasks = linear(), wrapped()
    batches = [tasks[i] for i in range(6)]
    step(maml, batches[0])
    catch_up()
    entries = list(own_batches(tasks._plain)._entries.values())
    assert len(entries) == 6
    own = ServedBatches(max_batches=4, max_tensor_bytes=2 * entries[0].content.nbytes)
    for served in entries:
        own.post(Served(served.taskset, 0, served.key, served.description, served.content))
    assert [served.key for served in own._entries.values()] == [2, 3, 4, 5]
    assert [served.content.tensors is None for served in own._entries.values()] == [True, True, False, False]
    held = {digest for served in own._entries.values() for digest in served.content.rows}
    assert set(own._by_row) == held


def test_serving_a_task_again_makes_no_second_entry() -> None:
    tasks = wrapped()
    for _ in range(3):
        tasks[0]
    catch_up()
    assert len(own_batches(tasks._plain)) == 1
