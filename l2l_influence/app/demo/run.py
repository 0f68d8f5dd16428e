"""A trained learner with its recording, and the same tasks as stacked tensors for quick retraining."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import learn2learn as l2l
import numpy as np
import torch
from torch import Tensor, nn

from ... import MAML, TaskDataset, recording_of
from ...evaluation import FullBatchMAML
from ...evaluation.ground_truth.full_batch import TaskTensors
from ...evaluation.metrics import Flags, Floats
from .data import Digits, digits, support_rows, without
from .training import ADAPT_LR, ADAPT_STEPS, WEIGHT_DECAY, meta_train, new_model

RETRAIN_LR = 2e-3

Advance = Callable[[], None]


@dataclass(frozen=True)
class Scale:
    """How much of everything the demo does.

    Attributes:
        iterations: meta-iterations of training.
        retrain_steps: full-batch steps of each retraining.
        groups: groups of tasks that are left out, for each way of drawing them.
        test_tasks: clean tasks on held-out images.
    """

    iterations: int = 420
    retrain_steps: int = 60
    groups: int = 16
    test_tasks: int = 100


QUICK = Scale(iterations=120, retrain_steps=30, groups=6, test_tasks=30)


@dataclass(frozen=True)
class Run:
    """Everything that training left behind.

    Attributes:
        digits: the tasks, and which are wrong.
        maml, tasks: the recorded learner and taskset.
        full_batch: MAML on stacked tasks, at this run's settings.
        train, test: the stacked tasks, in the order of the tasksets' indices.
        weights: c_i, how often each training task was drawn, relative to the average, ``(N,)``.
        seed, scale: what to repeat it with.
        seconds: of the training loop.
    """

    digits: Digits
    maml: MAML
    tasks: TaskDataset
    full_batch: FullBatchMAML
    train: TaskTensors
    test: TaskTensors
    weights: Tensor
    seed: int
    scale: Scale
    seconds: float

    @property
    def wrong(self) -> Flags:
        """``(N,)``, whether a training task has wrong labels."""
        return np.isin(np.arange(len(self.weights)), list(self.digits.wrong))

    @property
    def l2(self) -> float:
        """δ_o: Adam's weight decay is that of the average over tasks, the influence's objective is a sum."""
        return WEIGHT_DECAY * len(self.weights)

    def test_result(self, parameters: dict[str, Tensor]) -> tuple[Floats, Floats]:
        """Loss and accuracy of each test task."""
        return self.full_batch.evaluate(parameters, self.test)


def train(seed: int, scale: Scale, advance: Advance) -> Run:
    """Make the tasks from ``seed`` and train on them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    made = digits(test_tasks=scale.test_tasks)
    maml = MAML(new_model(), lr=ADAPT_LR)
    tasks = TaskDataset(made.train)
    begin = time.perf_counter()
    meta_train(maml, tasks, scale.iterations, advance)
    seconds = time.perf_counter() - begin
    full_batch = FullBatchMAML(
        maml.module, nn.CrossEntropyLoss(), ADAPT_LR, ADAPT_STEPS, RETRAIN_LR, scale.retrain_steps, WEIGHT_DECAY
    )
    return Run(
        made,
        maml,
        tasks,
        full_batch,
        stacked(made.train),
        stacked(made.test),
        _weights(maml, tasks),
        seed,
        scale,
        seconds,
    )


def train_again(run: Run, removed: list[int], advance: Advance) -> dict[str, Tensor]:
    """The same loop from the same start, without some tasks."""
    torch.manual_seed(run.seed)
    maml = l2l.algorithms.MAML(new_model(), lr=ADAPT_LR)
    meta_train(maml, without(run.digits.train, removed), run.scale.iterations, advance)
    return {name: value.detach() for name, value in maml.module.named_parameters()}


def stacked(taskset: l2l.data.Taskset) -> TaskTensors:
    """All tasks of a taskset, split into support and query."""
    batches = [taskset[task] for task in range(len(taskset))]
    x, y = (torch.stack(parts) for parts in zip(*batches, strict=True))
    support = support_rows()
    return x[:, support], y[:, support], x[:, ~support], y[:, ~support]


def _weights(maml: MAML, tasks: TaskDataset) -> Tensor:
    draws = torch.zeros(len(tasks))
    for task in recording_of(maml).training_tasks(tasks):
        draws[task.key] = task.times_trained
    return draws / draws.mean()
