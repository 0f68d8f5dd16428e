"""Networks, tasks, and the gradients that learn2learn's MAML and ANIL loops leave in ``.grad``."""

from __future__ import annotations

from collections import OrderedDict

import learn2learn as l2l
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled

from ...reference_problems.autograd import randn

LR = 0.1


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


def convolutional() -> nn.Module:
    body = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.LayerNorm([3, 3, 3])]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(27, 3))


def headed() -> nn.Module:
    body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.LayerNorm(6))
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(6, 3)))


def mean_tasks(*shape: int) -> list[Task]:
    mean, y = torch.full((5,), 0.2, dtype=torch.float64), torch.arange(10) % 3
    return [Task((x[:5], y[:5]), (x[5:], y[5:]), mean, mean) for x in randn(3, 3, 10, *shape)]


def backward(
    whole: nn.Module, body: nn.Module, adapted: nn.Module, task: Task, steps: int, first_order: bool
) -> Tensor:
    """What learn2learn's recipe leaves in ``.grad``: K times ``adapt`` on the body's features, then ``backward``."""
    whole.zero_grad()
    learner = l2l.algorithms.MAML(adapted, LR, first_order=first_order).clone()
    for _ in range(steps):
        learner.adapt(F.cross_entropy(learner(body(task.support[0])), task.support[1]))
    F.cross_entropy(learner(body(task.query[0])), task.query[1]).backward()
    return torch.cat([parameter.grad.flatten() for parameter in whole.parameters()])


STEPS_AND_ORDERS = pytest.mark.parametrize(
    "steps, first_order",
    [(1, False), (3, False), (1, True), (3, True)],
    ids=["1 step", "3 steps", "1 step, first order", "3 steps, first order"],
)


def gradients(module: nn.Module, tasks: list[Task], kind: Unrolled, theta_keys: list[str] | None = None) -> Tensor:
    loss = ModelLoss(FunctionalModel(module), lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    problem = BilevelProblem(loss, loss, kind, 0.0, theta_keys)
    return next(problem.at(loss.model.parameters, tasks).microbatches()).total_gradient
