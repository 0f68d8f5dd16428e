"""Training with the wrappers gives the same bits as training without."""

from __future__ import annotations

from typing import Any

import learn2learn as l2l
import pytest
import torch
from learn2learn.vision.models import OmniglotCNN, OmniglotFC
from torch import nn

from l2l_influence.recording import MAML, TaskDataset, recording_of

from .identity import assert_same, everything, random_rows, seed
from .omniglot_loop import fast_adapt, images, taskset, train

MODELS = {"fc": lambda: OmniglotFC(28 * 28, 5), "cnn": lambda: OmniglotCNN(5)}


@pytest.mark.parametrize("num_tasks", [8, -1])
@pytest.mark.parametrize("model", MODELS)
def test_recorded_training_is_bit_identical(model: str, num_tasks: int) -> None:
    def run(learner: type, wrap: Any) -> dict[str, Any]:
        seed()
        training, validation = wrap(taskset(images(), num_tasks)), wrap(taskset(images(seed=1), num_tasks))
        return everything(train(learner(MODELS[model](), lr=0.5), training, validation, split=random_rows, steps=2))

    plain = run(l2l.algorithms.MAML, lambda tasks: tasks)
    recorded = run(MAML, TaskDataset)
    assert_same(plain, recorded)


@pytest.mark.parametrize("first_order", [False, True])
def test_summed_loss_is_bit_identical(first_order: bool) -> None:
    def run(learner: type, wrap: Any) -> list[torch.Tensor]:
        seed()
        tasks = wrap(taskset(images(), 8))
        maml = learner(MODELS["fc"](), lr=0.5, first_order=first_order)
        losses = [fast_adapt(tasks.sample(), maml.clone(), nn.CrossEntropyLoss(), steps=2)[0] for _ in range(3)]
        return list(torch.autograd.grad(sum(losses), list(maml.parameters())))

    for plain, recorded in zip(run(l2l.algorithms.MAML, lambda tasks: tasks), run(MAML, TaskDataset), strict=True):
        assert torch.equal(plain, recorded)


def test_reading_the_recording_disturbs_nothing() -> None:
    seed()
    tasks = TaskDataset(taskset(images(), 8))
    run = train(MAML(MODELS["cnn"](), lr=0.5), tasks, tasks)
    recording_of(run.maml).options.data_bytes = 0
    before = everything(run)
    recording = recording_of(run.maml)
    for task in recording.tasks:
        task.support, task.query  # noqa: B018
    recording.describe()
    assert_same(before, everything(run))


def test_learner_is_a_learn2learn_learner() -> None:
    plain, maml = l2l.algorithms.MAML(MODELS["cnn"](), lr=0.5), MAML(MODELS["cnn"](), lr=0.5)
    assert isinstance(maml, l2l.algorithms.MAML)
    assert list(plain.state_dict()) == list(maml.state_dict())
    assert vars(plain).keys() == vars(maml).keys()
    clone = maml.clone(first_order=True)
    assert type(clone) is MAML
    assert clone.first_order
    assert vars(plain.clone()).keys() == vars(clone).keys()
