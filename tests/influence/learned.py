"""Learners that learn their inner steps, and short recorded loops with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import learn2learn as l2l
import torch
from learn2learn.nn import KroneckerLinear
from learn2learn.optim import KroneckerTransform, MetaCurvatureTransform, ModuleTransform
from torch import Tensor, nn

from l2l_influence import Study, record

from ..reference_problems.learn2learn import ListedTasks, classification_batches

LOSS, LR = nn.CrossEntropyLoss(), 0.3

Maker = Callable[..., Any]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3))


def gbml(transform: Any, **settings: Any) -> Maker:
    return lambda model, **more: l2l.algorithms.GBML(model, transform, lr=LR, **settings, **more)


def meta_sgd(model: nn.Module, **settings: Any) -> Any:
    return l2l.algorithms.MetaSGD(model, lr=LR, **settings)


class Bounded(nn.Module):
    """A transform that a user may write."""

    def __init__(self, _parameter: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, gradient: Tensor) -> Tensor:
        return torch.tanh(self.scale * gradient)


MAKERS: dict[str, Maker] = {
    "meta-sgd": meta_sgd,
    "kronecker": gbml(KroneckerTransform(KroneckerLinear)),
    "kronecker, biased": gbml(KroneckerTransform(KroneckerLinear, bias=True, psd=False)),
    "kronecker, adapted": gbml(KroneckerTransform(KroneckerLinear), adapt_transform=True),
    "module": gbml(ModuleTransform(nn.Linear)),
    "module, adapted": gbml(ModuleTransform(nn.Linear), adapt_transform=True),
    "meta-curvature": gbml(MetaCurvatureTransform),
    "meta-curvature, adapted": gbml(MetaCurvatureTransform, adapt_transform=True),
    "user's own": gbml(Bounded),
    "weights only": gbml(lambda parameter: Bounded(parameter) if parameter.dim() > 1 else None),
    "none": gbml(lambda parameter: None),
}


def make(rule: str, model: nn.Module | None = None, **settings: Any) -> Any:
    """A learner in float64 whose rates or transforms are away from where they are initialised."""
    torch.manual_seed(0)
    learner = MAKERS[rule](model or network(), **settings).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in classification_batches(count, seed, (3,))]


def outer_loss(learner: Any, pair: Any, steps: int, loss: nn.Module = LOSS) -> Tensor:
    """As users write it."""
    (xs, ys), (xq, yq) = pair
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(loss(clone(xs), ys))
    value: Tensor = loss(clone(xq), yq)
    return value


def recorded(learner: Any, tasks: Sequence[Any], steps: int, loss: nn.Module = LOSS) -> Study:
    """The study of a loop that leaves the learner where it is."""
    served = ListedTasks(tasks)
    with record() as study:
        for key in range(len(tasks)):
            x, y = served[key]
            outer_loss(learner, ((x[::2], y[::2]), (x[1::2], y[1::2])), steps, loss).backward()
    learner.zero_grad()
    return study


def by_own_name(learner: Any) -> dict[str, Tensor]:
    """What backward left in .grad, by the names that hooks use."""
    found = {name.removeprefix("module."): p.grad for name, p in learner.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}
