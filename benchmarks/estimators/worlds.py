"""The problems: digits that ship with scikit-learn, networks small enough for dense algebra, float64, seeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from l2l_influence.bilevel import BilevelProblem, Layout, ModelLoss, Proximal, Task, Unrolled
from l2l_influence.bilevel.inner import InnerKind

Named = dict[str, Tensor]

WAYS, SHOTS = 5, 5
TRAINING_IMAGES = 1200
PRINCIPAL = 16
"""Principal components of the 64 pixels that the networks see."""


@dataclass(frozen=True)
class Stacked:
    """Tasks of equal shape: images ``[N, n, d]`` and labels ``[N, n]``, of support and query sets."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __len__(self) -> int:
        return len(self.support_x)

    def listed(self) -> list[Task]:
        """As the package takes them, their losses reduced to means."""
        rows = zip(self.support_x, self.support_y, self.query_x, self.query_y, strict=True)
        return [Task((sx, sy), (qx, qy), _mean(sy), _mean(qy)) for sx, sy, qx, qy in rows]


@dataclass(frozen=True)
class Size:
    """How many tasks, removals and repetitions.

    Attributes:
        tasks: training tasks, relative to a problem's own number.
        tests: test tasks.
        removals: of each kind of item, one at a time.
        halves: random halves of the training tasks, removed as a whole.
        hidden: units of the networks, relative to a problem's own number.
        seeds: repetitions, each with other tasks and another start.
    """

    tasks: float
    tests: int
    removals: int
    halves: int
    hidden: float
    seeds: int


FULL = Size(tasks=1, tests=60, removals=20, halves=24, hidden=1, seeds=3)
QUICK = Size(tasks=0.25, tests=8, removals=4, halves=4, hidden=0.25, seeds=1)


@dataclass(frozen=True)
class World:
    """A bilevel problem and where its training starts.

    Attributes:
        name: as tables call it.
        kind: of its inner problem.
        l2: δ_o.
        start: λ before training.
        adapted: the keys that a task adapts; None for all.
        train, test: its tasks.
    """

    name: str
    kind: InnerKind
    l2: float
    start: Named
    adapted: list[str] | None
    train: Stacked
    test: Stacked

    @property
    def layout(self) -> Layout:
        return Layout(self.start)

    def problem(self, kind: InnerKind | None = None) -> BilevelProblem:
        """In the package's terms; with another inner kind where one is given."""
        loss = ModelLoss(network, criterion)
        return BilevelProblem(loss, loss, kind or self.kind, self.l2, self.adapted)


def features(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The hidden layer, or x itself where there is none. Like :func:`network` for one task or for a stack of them."""
    if "body.weight" not in parameters:
        return x
    return torch.tanh(_layer(parameters, "body", x))


def network(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return _layer(parameters, "head", features(parameters, x))


def _layer(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    if weight.dim() == 2:
        return F.linear(x, weight, bias)  # which is what EK-FAC knows a layer by
    return x @ weight.mT + bias.unsqueeze(-2)


def criterion(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def convex(seed: int, size: Size) -> World:
    """Every task adapts a linear softmax classifier on fixed features: the inner problem is convex."""
    draw = _generator(seed)
    start = _linear("head", PRINCIPAL, WAYS, draw)
    return World("convex", Proximal(0.5, "gram"), 0.1, start, None, *_tasks(24, size, draw))


def anil(seed: int, size: Size) -> World:
    """A shared tanh body, and a linear head that each task adapts."""
    draw = _generator(seed)
    hidden = round(12 * size.hidden)
    start = _linear("body", PRINCIPAL, hidden, draw) | _linear("head", hidden, WAYS, draw)
    return World("anil", Proximal(0.5, "gram"), 0.1, start, ["head.weight", "head.bias"], *_tasks(20, size, draw))


def maml(seed: int, size: Size) -> World:
    """Three gradient steps of all parameters of a tanh network; a fifth of the tasks have wrong query labels."""
    draw = _generator(seed)
    hidden = round(16 * size.hidden)
    start = _linear("body", PRINCIPAL, hidden, draw) | _linear("head", hidden, WAYS, draw)
    train, test = _tasks(40, size, draw)
    wrong = torch.arange(len(train)) % 5 == 0
    spoilt = torch.where(wrong.unsqueeze(-1), (train.query_y + 1) % WAYS, train.query_y)
    train = Stacked(train.support_x, train.support_y, train.query_x, spoilt)
    return World("maml", Unrolled(lr=0.5, steps=3), 0.5, start, None, train, test)


WORLDS: dict[str, Callable[[int, Size], World]] = {
    "convex": convex,
    "anil": anil,
    "maml": maml,
}


class _Images(NamedTuple):
    """The first ``PRINCIPAL`` principal components of images ``[n, d]``, and their digits ``[n]``."""

    x: Tensor
    y: Tensor


@cache
def _images() -> _Images:
    """Standardised; the first ``TRAINING_IMAGES`` are for training tasks, the rest for test tasks."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=_generator(0))
    pixels, y = torch.as_tensor(bunch.data)[order], torch.as_tensor(bunch.target)[order]
    known = pixels[:TRAINING_IMAGES]
    directions = torch.linalg.svd(known - known.mean(0), full_matrices=False).Vh[:PRINCIPAL]
    x = (pixels - known.mean(0)) @ directions.T
    return _Images(x / x[:TRAINING_IMAGES].std(), y)


def _tasks(count: int, size: Size, draw: torch.Generator) -> tuple[Stacked, Stacked]:
    last = len(_images().y)
    train = _draw(round(count * size.tasks), range(TRAINING_IMAGES), draw)
    return train, _draw(size.tests, range(TRAINING_IMAGES, last), draw)


def _draw(count: int, rows: range, draw: torch.Generator) -> Stacked:
    """Five digits out of ten, in rising order, and of each ``SHOTS`` images to adapt to and as many to ask."""
    x, y = _images()
    of_digit = [torch.tensor([row for row in rows if y[row] == digit]) for digit in range(10)]
    support, query = [], []
    for _ in range(count):
        digits = torch.randperm(10, generator=draw)[:WAYS].sort().values
        pools = [of_digit[digit] for digit in digits]
        chosen = [pool[torch.randperm(len(pool), generator=draw)[: 2 * SHOTS]] for pool in pools]
        support.append(torch.cat([pool[:SHOTS] for pool in chosen]))
        query.append(torch.cat([pool[SHOTS:] for pool in chosen]))
    labels = torch.arange(WAYS).repeat_interleave(SHOTS).expand(count, -1)
    return Stacked(x[torch.stack(support)], labels, x[torch.stack(query)], labels)


def _linear(name: str, inputs: int, outputs: int, draw: torch.Generator) -> Named:
    weight = torch.randn(outputs, inputs, generator=draw, dtype=torch.float64) / inputs**0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs, dtype=torch.float64)}


def _mean(like: Tensor) -> Tensor:
    return torch.full((len(like),), 1 / len(like), dtype=torch.float64)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
