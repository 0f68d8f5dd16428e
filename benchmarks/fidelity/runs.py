"""Recorded runs of learners: told, or seen in learn2learn's own loop."""

from __future__ import annotations

import random

import learn2learn as l2l
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer

from l2l_influence import Checkpoints, record
from l2l_influence.recording import Study

from ..estimators.worlds import Stacked
from .training import MetaTraining, Schedule
from .worlds import Batch, pairs


class ListedTasks(l2l.data.Taskset):
    """A finite taskset over batches that are given: support rows first."""

    def __init__(self, tasks: Stacked) -> None:
        nothing = torch.utils.data.TensorDataset(torch.zeros(1), torch.zeros(1, dtype=torch.long))
        super().__init__(nothing, num_tasks=len(tasks))
        self._batches = [(torch.cat([sx, qx]), torch.cat([sy, qy])) for (sx, sy), (qx, qy) in pairs(tasks)]

    def __getitem__(self, i: int) -> Batch:
        return self._batches[i]


def told(training: MetaTraining, tasks: Stacked, lam: Tensor) -> tuple[Study, nn.Module | None]:
    """The study of a learner that stands at λ* after training in full batches, where each task counts as often as the
    others; and its body, in ANIL."""
    model = training.network()
    vector_to_parameters(lam, model.parameters())
    body, head = (model.body, model.module) if training.adapted else (None, model)
    learner = l2l.algorithms.MAML(head, lr=training.lr)
    with record() as study:
        for key, (support, query) in enumerate(pairs(tasks)):
            study.add_episode(
                learner=learner, support=support, query=query, lr=training.lr, steps=training.steps, key=key
            )
    return study, body


CHECKPOINTS = 5
"""Of a training, at even distances."""


def between(schedule: Schedule) -> int:
    """Steps from one checkpoint to the next."""
    return max(1, schedule.steps // CHECKPOINTS)


def followed(training: MetaTraining, schedule: Schedule, lam: Tensor, optimiser: Optimizer) -> Checkpoints:
    """Checkpoints of a training without learn2learn's loop: of a learner whose parameters are views of ``lam``."""
    model = training.network()
    vector_to_parameters(lam, model.parameters())
    learner = model if training.adapted else nn.ModuleDict({"module": model})  # ANIL's has both parts by name already
    return Checkpoints(learner, optimiser, every=between(schedule))


def looped(
    training: MetaTraining, tasks: Stacked, schedule: Schedule, start: Tensor
) -> tuple[Study, Tensor, Checkpoints]:
    """A learner trained as in learn2learn's examples, by a loop that knows nothing of being recorded; λ*; and the way
    there."""
    model, shots = training.network(), tasks.support_y.shape[1]
    vector_to_parameters(start.clone(), model.parameters())
    random.seed(0)
    with record() as study:
        maml, taskset, loss = l2l.algorithms.MAML(model, lr=training.lr), ListedTasks(tasks), nn.CrossEntropyLoss()
        optimiser = torch.optim.Adam(maml.parameters(), schedule.lr, weight_decay=schedule.weight_decay)
        cooling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / schedule.steps)
        checkpoints = Checkpoints(maml, optimiser, every=between(schedule))
        for _ in range(schedule.steps):
            optimiser.zero_grad()
            for _ in range(schedule.batch or len(tasks)):
                learner, (x, y) = maml.clone(), taskset.sample()
                for _ in range(training.steps):
                    learner.adapt(loss(learner(x[:shots]), y[:shots]))
                (loss(learner(x[shots:]), y[shots:]) / (schedule.batch or len(tasks))).backward()
            optimiser.step()
            cooling.step()
    return study, parameters_to_vector(model.parameters()).detach(), checkpoints
