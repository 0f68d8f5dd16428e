"""What a learner that is asked about is: trained, recorded, and with ways to train it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from l2l_influence.bilevel import Layout
from l2l_influence.evaluation.metrics import Flags, Floats
from l2l_influence.recording import Study
from l2l_influence.recording.outer_steps.checkpoints import Checkpoint

from ..estimators.retraining import Weights
from ..estimators.worlds import Stacked

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """How much of everything is done.

    Attributes:
        share: of each world's own number of training tasks.
        steps: of each world's own number of training steps.
        tests: test tasks.
        halves: random halves of the items of each level, removed as a whole; and as many random tenths.
        singles: items of each level, removed one at a time; of tasks it is all of them unless the network is large.
        scratch: seeds of retraining from new starts, in worlds that train in full batches.
        noise: seeds of retraining in worlds that train in small batches.
    """

    share: float
    steps: float
    tests: int
    halves: int
    singles: int
    scratch: int
    noise: int


FULL = Size(share=1, steps=1, tests=30, halves=24, singles=16, scratch=2, noise=6)
QUICK = Size(share=0.1, steps=0.05, tests=6, halves=6, singles=3, scratch=2, noise=2)


class Trainer(Protocol):
    """Trains again, for any weights of tasks and samples; can be pickled."""

    def __call__(self, weights: Weights, seed: int) -> Tensor:
        """λ, ``[P]``."""

    def losses(self, lam: Tensor) -> Floats:
        """Of the test tasks, ``[T]``."""


@dataclass(frozen=True)
class World:
    """A trained learner, what it was trained on, and how to train it again.

    Attributes:
        name: as the command calls it; ``title`` as tables do.
        train, test: its tasks; ``wrong`` says which of the training tasks have wrong query labels.
        study: its recording; ``lam`` is λ*, ``[P]``, in the order of ``layout``.
        options: what hooks are to know of the problem.
        trainers: by name of the ground truth; the first is the one that scores are first held against.
        seeds: of each ground truth.
        levels: what is removed.
        large: whether estimators that are dear are left out, and most single removals.
        checkpoints: of the way to λ*; none where λ* is a minimum that no steps of a user's led to.
    """

    name: str
    title: str
    train: Stacked
    wrong: tuple[int, ...]
    test: Stacked
    study: Study
    lam: Tensor
    layout: Layout
    options: Mapping[str, Any]
    trainers: Mapping[str, Trainer]
    seeds: Mapping[str, int]
    levels: tuple[str, ...] = ("task", "query", "support")
    large: bool = False
    checkpoints: Sequence[Checkpoint] = ()

    @property
    def flags(self) -> Flags:
        """``[N]``, whether a training task has wrong labels."""
        return np.isin(np.arange(len(self.train)), self.wrong)

    @property
    def tests(self) -> list[tuple[Batch, Batch]]:
        """Test tasks as hooks take them."""
        return pairs(self.test)


def pairs(tasks: Stacked) -> list[tuple[Batch, Batch]]:
    """Support and query set of each task."""
    return [((sx, sy), (qx, qy)) for sx, sy, qx, qy in zip(*vars(tasks).values(), strict=True)]
