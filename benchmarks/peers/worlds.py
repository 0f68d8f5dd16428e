"""Tasks at their adapted parameters, and the network, for those who want a module and for those who want a function."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled
from l2l_influence.bilevel.inner import InnerKind

from ..plain import MODELS, WAYS, taskset

LR, STEPS = 0.1, 16
"""How θ_i is found, once, for all who are to differentiate there: as iMAML does it, by steps that end early."""

DELTA = {"OmniglotFC": 1.0, "OmniglotCNN": 0.2}
"""The least round δ that leaves all inner Hessians positive definite at θ_i: conjugate gradients need that."""


@dataclass(frozen=True)
class World:
    """One network and N tasks: support and query sets of an image a class.

    Attributes:
        name: of the network.
        module: with batch normalisation by batch statistics and without buffers, which all can differentiate.
        tasks: in this package's form, with means as losses; they start at θ_i.
        delta: strength of the proximal term.
    """

    name: str
    module: nn.Module
    tasks: list[Task]
    delta: float

    @cached_property
    def loss(self) -> ModelLoss:
        return ModelLoss(FunctionalModel(self.module), _cross_entropy)

    @cached_property
    def lam(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.module.named_parameters()}

    @cached_property
    def theta(self) -> Tensor:
        """θ_i, ``[N, P]``."""
        return torch.stack([flat(task.start.values()) for task in self.tasks if task.start is not None])

    def problem(self, kind: InnerKind) -> BilevelProblem:
        return BilevelProblem(self.loss, self.loss, kind, l2=0.0)

    def gradients(self, kind: InnerKind) -> Tensor:
        """This package's total gradients, ``[N, P]``."""
        solved_tasks = self.problem(kind).at(self.lam, self.tasks)
        return torch.cat([batch.total_gradient for batch in solved_tasks.microbatches()])

    def placed(self) -> Iterator[tuple[nn.Module, Task]]:
        """A module of its own for each task, at θ_i."""
        for task, theta in zip(self.tasks, self.theta, strict=True):
            module = copy.deepcopy(self.module)
            nn.utils.vector_to_parameters(theta, module.parameters())
            yield module, task


def world(name: str, count: int) -> World:
    """``count`` tasks for that network of :data:`~benchmarks.plain.MODELS`."""
    random.seed(0)  # which learn2learn draws tasks from
    torch.manual_seed(0)
    module = _without_buffers(MODELS[name]())
    tasks, mean = [], torch.full((WAYS,), 1 / WAYS)
    for x, y in _episodes(count):
        tasks.append(Task((x[::2], y[::2]), (x[1::2], y[1::2]), mean, mean))
    start = World(name, module, tasks, DELTA[name])
    adapted = start.problem(Unrolled(LR, STEPS))
    found = [adapted.solve_inner(start.lam, task).theta for task in tasks]
    return replace(start, tasks=[replace(task, start=theta) for task, theta in zip(tasks, found, strict=True)])


def flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def like(vector: Tensor, parts: Iterable[Tensor]) -> list[Tensor]:
    """``vector`` in pieces shaped like ``parts``."""
    parts = list(parts)
    pieces = vector.split([part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]


def _episodes(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    tasks = taskset(count)
    return (tasks[i] for i in range(count))


def _cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


def _without_buffers(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module
