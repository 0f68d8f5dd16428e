"""Train a learner with its recording, and stack the same tasks as tensors for fast retraining."""

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
    """Size of the demo.

    Attributes:
        iterations: meta-iterations of training.
        retrain_steps: full-batch steps of each retraining.
        subsets: number of subsets of tasks to retrain without, for each design of removals.
        test_tasks: number of correct tasks on held-out images.
    """

    iterations: int = 420
    retrain_steps: int = 60
    subsets: int = 16
    test_tasks: int = 100


QUICK = Scale(iterations=120, retrain_steps=30, subsets=6, test_tasks=30)


@dataclass(frozen=True)
class DemoRun:
    """The result of training.

    Attributes:
        digits: the tasks, and which of them are wrong.
        maml, tasks: the recorded learner and taskset.
        full_batch: MAML on stacked tasks, with the settings of this run.
        train, test: the stacked tasks, in the order of the tasksets.
        weights: c_i, how often each training task was drawn, divided by the average, ``(N,)``.
        seed, scale: of this run.
        seconds: duration of training.
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
        """``(N,)``, True for training tasks with wrong labels."""
        return np.isin(np.arange(len(self.weights)), list(self.digits.wrong))

    @property
    def l2(self) -> float:
        """δ_o: Adam's weight decay belongs to the average over tasks, the influence objective is a sum."""
        return WEIGHT_DECAY * len(self.weights)

    def test_result(self, parameters: dict[str, Tensor]) -> tuple[Floats, Floats]:
        """Loss and accuracy of each test task."""
        return self.full_batch.evaluate(parameters, self.test)


def train(seed: int, scale: Scale, advance: Advance) -> DemoRun:
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
    return DemoRun(
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


def train_again(run: DemoRun, removed: list[int], advance: Advance) -> dict[str, Tensor]:
    """Train with the same loop and the same initial parameters, without some tasks."""
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
    times_trained = torch.zeros(len(tasks))
    for task in recording_of(maml).training_tasks(tasks):
        times_trained[task.key] = task.times_trained
    return times_trained / times_trained.mean()
