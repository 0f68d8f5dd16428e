"""Total gradients of second-order MAML: the query loss after K steps, differentiated through them."""

from __future__ import annotations

import higher
import learn2learn as l2l
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l_influence.bilevel import Task, Unrolled

from .contest import Contest, Contestant
from .worlds import World, flat

LR = 0.5
AGREEMENT = 1e-4


def contest(world: World, steps: int) -> Contest:
    truth = backward(world, steps)
    return Contest(
        f"total gradients, {steps} unrolled step{'s' if steps > 1 else ''}",
        [
            Contestant("l2l_influence, unrolled", lambda: world.gradients(Unrolled(LR, steps))),
            Contestant("higher", lambda: with_higher(world, steps)),
            Contestant("learn2learn's backward", lambda: backward(world, steps)),
        ],
        lambda gradients: (gradients - truth).norm(dim=1) / truth.norm(dim=1),
        AGREEMENT,
    )


def with_higher(world: World, steps: int) -> Tensor:
    """A functional copy of the module for each task, as its MAML example has it."""
    return torch.stack([_with_higher(world, steps, task) for task in world.tasks])


def _with_higher(world: World, steps: int, task: Task) -> Tensor:
    optimizer = torch.optim.SGD(world.module.parameters(), LR)
    with higher.innerloop_ctx(world.module, optimizer, copy_initial_weights=False) as (module, inner):
        for _ in range(steps):
            inner.step(_loss(module(task.support[0]), task))
        outer = F.cross_entropy(module(task.query[0]), task.query[1])
        return flat(torch.autograd.grad(outer, list(world.module.parameters())))


def backward(world: World, steps: int) -> Tensor:
    """The loop of an epoch."""
    maml = l2l.algorithms.MAML(world.module, LR)
    return torch.stack([_backward(maml, steps, task) for task in world.tasks])


def _backward(maml: l2l.algorithms.MAML, steps: int, task: Task) -> Tensor:
    learner = maml.clone()
    for _ in range(steps):
        learner.adapt(_loss(learner(task.support[0]), task))
    outer = F.cross_entropy(learner(task.query[0]), task.query[1])
    return flat(torch.autograd.grad(outer, list(maml.module.parameters())))


def _loss(outputs: Tensor, task: Task) -> Tensor:
    return F.cross_entropy(outputs, task.support[1])
