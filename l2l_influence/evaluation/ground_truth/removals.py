"""What to remove: designs of removals, one a row, as flags ``(G, n)`` of the items that each takes away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..metrics import Flags, descending


def leave_one_out(items: int, count: int | None = None, seed: int = 0) -> Flags:
    """Single items, each in a removal of its own: ``count`` of them drawn without replacement, or all in order."""
    flags = np.eye(items, dtype=bool)
    if count is None:
        return flags
    chosen: Flags = flags[np.sort(np.random.default_rng(seed).choice(items, count, replace=False))]
    return chosen


def leave_groups_out(groups: Sequence[Sequence[int]], items: int) -> Flags:
    """The groups given, by the positions of their members: all tasks with one class, all samples of one task, …"""
    flags = np.zeros((len(groups), items), dtype=bool)
    for row, group in zip(flags, groups, strict=True):
        row[list(group)] = True
    return flags


def random_subsets(items: int, count: int, share: float = 0.5, seed: int = 0) -> Flags:
    """``count`` random subsets that hold this share of the items."""
    return random_groups([range(items)], count, share, seed)


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


def most_harmful(scores: ArrayLike, shares: Sequence[float]) -> Flags:
    """The highest scores, a growing share of all: measured, :attr:`~.Truth.losses` is a removal curve.

    Args:
        scores: ``(n,)``, positive = harmful; of equal scores the first comes first.
        shares: of the items that each removal takes, from 0 to 1.
    """
    order = descending(scores)
    return leave_groups_out([order[: round(share * len(order))].tolist() for share in shares], len(order))
