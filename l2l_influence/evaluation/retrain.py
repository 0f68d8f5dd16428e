"""The truth about removals: train again without the tasks, and see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .metrics import Flags, Floats

Parameters = Mapping[str, Tensor]
Train = Callable[[Sequence[int], Parameters], Parameters]
"""``train(positions of the tasks to train on, where to start) -> parameters``."""

Losses = Callable[[Parameters], Floats]
"""Loss of each test task under these parameters, ``(T,)``."""


@dataclass(frozen=True)
class Removals:
    """What the removal of groups of training tasks did.

    Attributes:
        groups: ``(G, N)``, whether group g took away training task n.
        change: ``(G, T)``, loss of test task t after retraining without the group minus its loss after the same
            retraining with all tasks; negative = the removal helped.
        baseline: ``(T,)``, the losses after that retraining with all tasks.
    """

    groups: Flags
    change: Floats
    baseline: Floats

    def predicted(self, scores: Floats) -> Floats:
        """The change that influence scores (positive = harmful) predict: a group's is minus the sum of its members'.

        Args:
            scores: ``(N,)`` for the mean test loss, or ``(N, T)`` for each test task.
        """
        change: Floats = -(self.groups.astype(np.float64) @ scores)
        return change


def measure_removals(
    train: Train,
    losses: Losses,
    start: Parameters,
    groups: Flags,
    advance: Callable[[], None] = lambda: None,
) -> Removals:
    """Retrain from ``start`` without each group, and once with all tasks for comparison.

    The comparison takes out what going on training does by itself. ``advance`` is called after each retraining.
    """

    def after(kept: Iterable[int]) -> Floats:
        result = losses(train(list(kept), start))
        advance()
        return result

    baseline = after(range(groups.shape[1]))
    change = np.stack([after(np.flatnonzero(~group).tolist()) for group in groups]) - baseline
    return Removals(groups, change, baseline)


def random_groups(strata: Sequence[Sequence[int]], count: int, share: float = 0.5, seed: int = 0) -> Flags:
    """``count`` random groups that hold the same share of each stratum, as ``(count, N)`` flags.

    Args:
        strata: positions 0 … N−1, parted into those among which the groups are to be balanced.
        count: number of groups.
        share: of each stratum that a group holds.
        seed: of the draw.
    """
    total = sum(len(stratum) for stratum in strata)
    if sorted(position for stratum in strata for position in stratum) != list(range(total)):
        raise ValueError("the strata must hold each position once, from 0 to the number of tasks less one")
    rng = np.random.default_rng(seed)
    groups = np.zeros((count, total), dtype=bool)
    for group in groups:
        for stratum in strata:
            group[rng.choice(np.asarray(stratum), round(share * len(stratum)), replace=False)] = True
    return groups
