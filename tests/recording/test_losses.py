"""Which losses a loop calls, with which labels: read off the calls inside record(), else off the graph."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import learn2learn as l2l
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence import Study, TaskInfluence
from l2l_influence.bilevel import BilevelProblem, Task
from l2l_influence.errors import LossStructureError, RecordingError
from l2l_influence.recording import MAML, RecordedTask, TaskDataset, record, recording_of
from l2l_influence.recording.episodes.losses import Loss

from .omniglot_loop import images, taskset

WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
Call = Callable[[Tensor, Tensor], Tensor]


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 5).float()


def small(num_tasks: int = 3) -> Any:
    return taskset(images(shape=(4,)), num_tasks)


def train(maml: Any, tasks: Any, inner: Call, outer: Call | None = None) -> None:
    for i in range(len(tasks)):
        x, y = tasks[i]
        learner = maml.clone()
        learner.adapt(inner(learner(x[::2]), y[::2]))
        (outer or inner)(learner(x[1::2]), y[1::2]).backward()


def watched(inner: Call, outer: Call | None = None) -> Study:
    with record() as study:
        train(l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), small(), inner, outer)
    return study


def first(inner: Call, outer: Call | None = None) -> RecordedTask:
    return watched(inner, outer).training_tasks()[0]


CALLS: dict[str, tuple[Call, Loss]] = {
    "mean": (nn.CrossEntropyLoss(), Loss("cross_entropy")),
    "as a function": (lambda o, y: F.cross_entropy(target=y, input=o), Loss("cross_entropy")),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), Loss("cross_entropy", (("reduction", "sum"),))),
    "class weights": (
        nn.CrossEntropyLoss(weight=WEIGHTS),
        Loss("cross_entropy", (("weight", tuple(WEIGHTS.tolist())),)),
    ),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.5), Loss("cross_entropy", (("label_smoothing", 0.5),))),
    "ignored": (nn.CrossEntropyLoss(ignore_index=2), Loss("cross_entropy", (("ignore_index", 2),))),
    "likelihood": (lambda o, y: F.nll_loss(o.log_softmax(-1), y), Loss("cross_entropy")),
    "divided": (lambda o, y: F.cross_entropy(o, y) / 4, Loss("cross_entropy", scale=0.25)),
    "reduced by hand": (lambda o, y: F.cross_entropy(o, y, reduction="none").mean(), Loss("cross_entropy")),
    "summed by hand": (
        lambda o, y: F.cross_entropy(o, y, reduction="none").sum(),
        Loss("cross_entropy", (("reduction", "sum"),)),
    ),
    "huber": (lambda o, y: F.huber_loss(o, one_hot(y), delta=0.5), Loss("huber_loss", (("delta", 0.5),))),
    "absolute": (lambda o, y: F.l1_loss(o, one_hot(y)), Loss("l1_loss")),
    "squares": (lambda o, y: F.mse_loss(o, one_hot(y)), Loss("mse_loss")),
    "logits": (
        lambda o, y: F.binary_cross_entropy_with_logits(o, one_hot(y), pos_weight=WEIGHTS),
        Loss("binary_cross_entropy_with_logits", (("pos_weight", tuple(WEIGHTS.tolist())),)),
    ),
}


def close(found: Loss | None, expected: Loss) -> bool:
    return found is not None and found.agrees(expected)


@pytest.mark.parametrize("name", CALLS)
def test_calls_inside_record(name: str) -> None:
    call, expected = CALLS[name]
    task = first(call)
    assert close(task.loss, expected) and close(task.query_loss, expected)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("smoothing", "absolute")])
def test_the_graph_of_the_inner_loss_with_drop_ins(name: str) -> None:
    """Smoothing and absolute differences leave no node that says what they are."""
    call, expected = CALLS[name]
    maml = MAML(nn.Linear(4, 5), lr=0.1)
    train(maml, TaskDataset(small()), call)
    task = recording_of(maml).training_tasks()[0]
    assert close(task.loss, expected) and task.query_loss is None


@pytest.mark.parametrize("name", CALLS)
def test_the_module_is_the_loss(name: str) -> None:
    call, expected = CALLS[name]
    outputs, y = torch.randn(10, 5), torch.arange(10) % 5
    target = y if expected.function == "cross_entropy" else one_hot(y)
    assert torch.allclose(expected.scale * expected.module()(outputs, target), call(outputs, y))


OTHERS: dict[str, Call] = {
    "by hand": lambda o, y: -(one_hot(y) * o.log_softmax(1)).sum(),
    "a penalty on outputs": lambda o, y: F.cross_entropy(o, y) + 0.1 * o.square().mean(),
    "unequal weights": lambda o, y: (torch.arange(5.0) * F.cross_entropy(o, y, reduction="none")).sum(),
    "two losses": lambda o, y: F.cross_entropy(o, y) + F.mse_loss(o, one_hot(y)),
    "of other outputs": lambda o, y: F.cross_entropy(2 * o, y),
    "old arguments": lambda o, y: F.cross_entropy(o, y, size_average=False),
    "weights of samples": lambda o, y: F.binary_cross_entropy_with_logits(o, one_hot(y), weight=torch.rand(5, 5)),
}


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_none_of_torchs_losses_is_not_taken_for_one(name: str) -> None:
    study = watched(OTHERS[name])
    assert study.training_tasks()[0].loss is None
    with pytest.raises(LossStructureError, match=r"loss"):
        TaskInfluence(study).scores([split(small()[0])])


def test_a_model_that_ends_in_log_probabilities() -> None:
    with record() as study:
        maml = l2l.algorithms.MAML(nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(1)), lr=0.1)
        train(maml, small(), nn.NLLLoss())
    assert close(study.training_tasks()[0].loss, Loss("nll_loss"))
    assert len(TaskInfluence(study, progress=False).scores([split(small()[0])])) == 3


def test_a_penalty_on_parameters_is_no_part_of_torchs_loss() -> None:
    with record() as study:
        maml, (x, y) = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), small()[0]
        learner = maml.clone()
        penalty = sum(parameter.square().sum() for parameter in learner.parameters())
        learner.adapt(F.cross_entropy(learner(x[::2]), y[::2]) + 0.1 * penalty)
        F.cross_entropy(learner(x[1::2]), y[1::2]).backward()
    (task,) = study.training_tasks()
    assert task.loss is None and close(task.query_loss, Loss("cross_entropy")) and task.labels == "confirmed"


def test_no_graph_is_kept_alive_by_what_a_loss_counted() -> None:
    """What the square counts by its root depends on the root."""
    with record() as study:
        maml, (x, y) = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), small()[0]
        learner = maml.clone()
        learner.adapt(F.cross_entropy(learner(x[::2]), y[::2]).square())
        F.cross_entropy(learner(x[1::2]), y[1::2]).backward()
        gc.disable()
        try:
            del learner
            study.describe()  # has the recorder catch up
            assert not recording_of(maml).open_forwards(), "the draw is over when its graph is gone"
        finally:
            gc.enable()
    assert len(study.training_tasks()) == 1


def split(batch: tuple[Tensor, Tensor]) -> Any:
    x, y = batch
    return (x[::2], y[::2]), (x[1::2], y[1::2])


@pytest.mark.parametrize("name", ["mean", "sum", "class weights", "smoothing", "ignored", "likelihood", "divided"])
def test_hooks_need_not_be_told_the_loss(name: str) -> None:
    """They find what plain autograd finds of the loop's own losses: the gradient of the mean query loss."""
    call, _ = CALLS[name]
    with record() as study:
        maml = l2l.algorithms.MAML(nn.Linear(4, 5).double(), lr=0.1)
        tasks = [(x.double(), y) for x, y in (small()[i] for i in range(3))]
        train(maml, Listed(tasks), with_double_weights(call))
        for parameter in maml.parameters():
            parameter.grad = None
    hook = TaskInfluence(study, progress=False)
    scores = hook.scores([split(task) for task in tasks])
    assert scores.notes[0].startswith("loss: ") and "as the loop called it" in scores.notes[0]
    scale = 4.0 if name == "divided" else 1.0  # what multiplies all query losses alike is no part of the objective
    for row in scores:
        learner = maml.clone()
        (xs, ys), (xq, yq) = split(tasks[row.task])
        learner.adapt(with_double_weights(call)(learner(xs), ys))
        loss = scale * with_double_weights(call)(learner(xq), yq)
        assert float(loss.detach()) == pytest.approx(row.loss, rel=1e-9)


def with_double_weights(call: Call) -> Call:
    return call.double() if isinstance(call, nn.Module) else call


class Listed(l2l.data.Taskset):
    """Tasks from a list."""

    def __init__(self, tasks: Any) -> None:
        super().__init__(small().dataset, num_tasks=len(tasks))
        self.tasks = tasks

    def __getitem__(self, i: int) -> Any:
        return self.tasks[i]


def test_losses_of_the_two_levels_may_differ() -> None:
    study = watched(lambda o, y: F.cross_entropy(o, y, reduction="sum"), nn.CrossEntropyLoss(weight=WEIGHTS))
    notes = TaskInfluence(study, progress=False).scores([split(small()[0])]).notes
    assert "reduction='sum') on support sets" in notes[0] and "weight=(1.0, 2.0" in notes[0]


def test_uneven_weights_of_tasks_are_told() -> None:
    factors = iter([1.0, 2.0, 3.0])
    study = watched(F.cross_entropy, lambda o, y: next(factors) * F.cross_entropy(o, y))
    notes = TaskInfluence(study, progress=False).scores([split(small()[0])]).notes
    assert any("by 1 to 3" in note for note in notes)


def test_losses_that_change_in_the_run_are_refused() -> None:
    factors = iter([1.0, 2.0, 3.0])
    study = watched(lambda o, y: next(factors) * F.cross_entropy(o, y), F.cross_entropy)
    with pytest.raises(LossStructureError, match="not every task"):
        TaskInfluence(study).scores([split(small()[0])])


def test_labels_changed_after_sampling_are_seen_on_both_sides() -> None:
    tasks = small()
    with record() as study:
        maml = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1)
        for i, (on_support, on_query) in enumerate([(0, 0), (1, 1), (0, 1)]):
            x, y = tasks[i]
            learner = maml.clone()
            learner.adapt(F.cross_entropy(learner(x[::2]), (y[::2] + on_support) % 5))
            F.cross_entropy(learner(x[1::2]), (y[1::2] + on_query) % 5).backward()
    found = study.training_tasks()
    assert [task.labels for task in found] == ["confirmed", "changed", "changed"]
    for task, (on_support, on_query) in zip(found, [(0, 0), (1, 1), (0, 1)], strict=True):
        x, y = tasks[task.key]
        assert torch.equal(task.support[1], (y[::2] + on_support) % 5)
        assert torch.equal(task.query[1], (y[1::2] + on_query) % 5)


def test_rows_that_the_loss_leaves_out_are_an_error() -> None:
    with record() as study:
        maml, (x, y) = l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), small()[0]
        learner = maml.clone()
        learner.adapt(F.cross_entropy(learner(x)[::2], y[::2]))
        F.cross_entropy(learner(x)[1::2], y[1::2]).backward()
    with pytest.raises(RecordingError, match=r"rows that no loss was computed on.*\(10, 4\)"):
        study.training_tasks()


def test_hooks_work_while_the_loop_is_still_recorded() -> None:
    with record() as study:
        train(l2l.algorithms.MAML(nn.Linear(4, 5), lr=0.1), small(), nn.CrossEntropyLoss())
        tests = [split(small()[0])]
        inside = TaskInfluence(study, progress=False).scores(tests)
    outside = TaskInfluence(study, progress=False).scores(tests)
    assert [row.score for row in inside] == pytest.approx([row.score for row in outside])


def test_the_bilevel_core_finds_torchs_losses_while_they_are_watched() -> None:
    def loss(lam: Any, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x @ theta["w"], y, reduction="none")

    problem, lam = BilevelProblem(loss, loss, proximal=1.0, l2=0.1), {"w": torch.ones(4, 5)}
    x, y = small()[0]
    task = Task(support=(x[::2], y[::2]), query=(x[1::2], y[1::2]))
    outside = problem.total_hessian(lam, [task], kind="gauss-newton") @ lam
    with record():
        inside = problem.total_hessian(lam, [task], kind="gauss-newton") @ lam
    assert torch.equal(inside["w"], outside["w"])
