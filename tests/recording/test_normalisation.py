"""Batch normalisation is analysed with the statistics that the loop's own worked with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l2l_influence import MAML, Study, TaskInfluence, TotalGradient, record
from l2l_influence.errors import BatchNormError
from l2l_influence.recording import recording_of
from l2l_influence.recording.study.merging import merged

from .hazards import Block, cross_entropy, each_way, gradients_agree, in_double, normalised, step
from .loops import DROP_INS, PLAIN, Kit

SWITCHES: dict[str, Callable[[Any], Any]] = {
    "the learner": lambda maml: maml.eval(),
    "its model": lambda maml: maml.module.eval(),
    "its layers of that kind": lambda maml: maml.module[1].eval(),
}


@each_way
@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_gradients_are_the_loop_s_in_evaluation_mode(switch: Callable[[Any], Any], kit: Kit, block: Block) -> None:
    maml = kit.MAML(normalised(), lr=0.1)
    switch(maml)
    gradients_agree(maml, kit, block)
    assert {task.batch_norm for task in recording_of(maml).training_tasks()} == {"running"}


@each_way
def test_and_in_training_mode(kit: Kit, block: Block) -> None:
    maml = kit.MAML(normalised(), lr=0.1)
    gradients_agree(maml, kit, block)
    assert {task.batch_norm for task in recording_of(maml).training_tasks()} == {"batch"}


@pytest.mark.parametrize("layer", [nn.Identity(), nn.LayerNorm(8), nn.BatchNorm1d(8, track_running_stats=False)])
def test_a_mode_that_makes_no_difference_is_none(layer: nn.Module) -> None:
    maml = MAML(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 5)).double(), lr=0.1)
    for key, batch in enumerate(in_double(DROP_INS)):
        maml.train(key % 2 == 0)
        step(maml, batch)
    assert [task.batch_norm for task in recording_of(maml).training_tasks()] == [None] * 3
    assert TotalGradient(maml, loss=cross_entropy, progress=False).of(0)


def test_instance_normalisation_has_running_statistics_too() -> None:
    layer = nn.InstanceNorm1d(1, track_running_stats=True)
    maml = MAML(nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 5)).double(), lr=0.1)
    maml.eval()
    tasks = in_double(DROP_INS)
    step(maml, tasks[0])
    assert [task.batch_norm for task in recording_of(maml).training_tasks()] == ["running"]


# ---- not always the same ----------------------------------------------------------------------------------------


def fed_in_two_modes(maml: Any, batch: Any) -> None:
    """Adapted in training mode, then judged in evaluation mode."""
    (x, y), learner = batch, maml.clone()
    learner.adapt(cross_entropy(learner(x[::2]), y[::2]))
    learner.eval()
    cross_entropy(learner(x[1::2]), y[1::2]).backward()


def in_part(maml: Any, batch: Any) -> None:
    maml.module[0][1].eval()
    step(maml, batch)


@each_way
@pytest.mark.parametrize("feed", [fed_in_two_modes, in_part])
def test_two_modes_in_a_task_are_refused_unless_told(feed: Callable[..., None], kit: Kit, block: Block) -> None:
    maml, tasks = kit.MAML(nn.Sequential(normalised(), nn.BatchNorm1d(5)).double(), lr=0.1), in_double(kit)
    with block():
        feed(maml, tasks[0])
    with pytest.raises(BatchNormError, match="task 0 used both, in different layers or forward calls"):
        TotalGradient(maml, loss=cross_entropy, progress=False).of(0)
    modes = ("batch", "running")
    one, other = (TotalGradient(maml, loss=cross_entropy, batch_norm=mode, progress=False).of(0) for mode in modes)
    assert not torch.allclose(one["0.0.weight"], other["0.0.weight"])


@each_way
def test_two_modes_of_tasks_are_refused(kit: Kit, block: Block) -> None:
    maml, tasks = kit.MAML(normalised(), lr=0.1), in_double(kit)
    with block():
        for key in range(3):
            maml.train(key != 1)
            step(maml, tasks[key])
    with pytest.raises(BatchNormError, match="task 2 used the first, task 1 the second"):
        TotalGradient(maml, loss=cross_entropy, progress=False).of(0)


@each_way
def test_the_mode_of_what_did_not_train_does_not_matter(kit: Kit, block: Block) -> None:
    """Of draws for validation, of the same tasks too; and of a forward that nothing came of."""
    maml, tasks = kit.MAML(normalised(), lr=0.1), in_double(kit)
    with block():
        for key in (0, 1):
            (x, y), learner = tasks[key], maml.clone()
            learner.adapt(cross_entropy(learner(x[::2]), y[::2]))
            cross_entropy(learner(x[1::2]), y[1::2]).backward()
            learner.eval()
            learner(x[1::2])
            validated = maml.clone()
            validated.eval()
            validated.adapt(cross_entropy(validated(x[::2]), y[::2]))
    assert [task.batch_norm for task in recording_of(maml).training_tasks()] == ["batch"] * 2


# ---- where else it has to come through --------------------------------------------------------------------------


EVEN, ODD = slice(None, None, 2), slice(1, None, 2)


class Bodied:
    """ANIL with normalisation in the body and in the head, whose modes are given."""

    def __init__(self, body: bool, head: bool, together: bool = False) -> None:
        self.together = together
        self.body, self.maml = normalised()[:3].train(body), PLAIN.MAML(normalised()[1:].train(head), lr=0.1)
        self.tasks = in_double(PLAIN)

    def backward(self, key: int) -> None:
        (x, y), learner = self.tasks[key], self.maml.clone()
        both = self.body(x) if self.together else None
        support, query = (self.body(x[rows]) if both is None else both[rows] for rows in (EVEN, ODD))
        learner.adapt(cross_entropy(learner(support), y[EVEN]))
        cross_entropy(learner(query), y[ODD]).backward()

    def gradients(self) -> dict[str, Tensor]:
        named = {"body": self.body, "module": self.maml.module}
        return {f"{part}.{name}": p.grad for part in named for name, p in named[part].named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_the_body_s_mode_counts_with_the_head_s(training: bool) -> None:
    with record():
        loop = Bodied(training, training)
        loop.backward(0)
    found = TotalGradient(loop.maml, loss=cross_entropy, progress=False).of(0)
    for name, expected in loop.gradients().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


def test_a_body_in_another_mode_than_the_head_is_refused() -> None:
    with record() as study:
        Bodied(False, True).backward(0)
    with pytest.raises(BatchNormError, match="task 0 used both, in different layers or forward calls"):
        TaskInfluence(study, loss=cross_entropy, progress=False).influence(0)


def test_sets_that_the_head_alone_normalises_apart_are_refused() -> None:
    """With running statistics sets need not be known, and the gradients are the loop's."""
    with record() as study:
        Bodied(True, True, together=True).backward(0)
    with pytest.raises(BatchNormError, match="the features of both sets of task 0 in one batch"):
        TaskInfluence(study, loss=cross_entropy, progress=False).influence(0)
    with record():
        loop = Bodied(False, False, together=True)
        loop.backward(0)
    found = TotalGradient(loop.maml, loss=cross_entropy, progress=False).of(0)
    for name, expected in loop.gradients().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


def test_it_is_saved(tmp_path: Path) -> None:
    maml = PLAIN.MAML(normalised(), lr=0.1)
    maml.eval()
    with record() as study:
        step(maml, in_double(PLAIN)[0])
    loaded = Study.load(study.save(tmp_path / "study"), normalised())
    assert [task.batch_norm for task in loaded.tasks] == ["running"]
    one, other = (TotalGradient(either, loss=cross_entropy, progress=False).of(0) for either in (study, loaded))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_hook_that_has_answered_notices(tmp_path: Path) -> None:
    maml, tasks = DROP_INS.MAML(normalised(), lr=0.1), in_double(DROP_INS)
    maml.eval()
    step(maml, tasks[0])
    hook = TotalGradient(maml, loss=cross_entropy, progress=False)
    before, kept = hook.of(0), [buffer.clone() for buffer in maml.buffers()]
    maml.train()
    step(maml, tasks[0])
    for buffer, value in zip(maml.buffers(), kept, strict=True):
        buffer.copy_(value)  # nothing is left of the other draw but its mode
    assert not torch.allclose(hook.of(0)["0.weight"], before["0.weight"])


def test_processes_that_differ_in_it_drew_different_tasks(parts: list[Any]) -> None:
    def judged_by(statistics: str) -> Any:
        return replace(parts[0], tasks=[replace(task, batch_norm=statistics) for task in parts[0].tasks])

    assert len(merged([judged_by("batch"), judged_by("batch")]).tasks) == 2
    assert len(merged([judged_by("batch"), judged_by("running")]).tasks) == 4
