"""Designs of removals: flags ``(G, n)``, one row a removal, True for the items that it takes away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..metrics import Flags, descending


def leave_one_out(items: int, count: int | None = None, seed: int = 0) -> Flags:
    """Removals of single items: all of them in order, or ``count`` drawn without replacement.

    >>> from l2l_influence.evaluation import leave_one_out
    >>> leave_one_out(3).astype(int).tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> leave_one_out(100, count=8).shape
    (8, 100)
    """
    flags = np.eye(items, dtype=bool)
    if count is None:
        return flags
    chosen: Flags = flags[np.sort(np.random.default_rng(seed).choice(items, count, replace=False))]
    return chosen


def leave_subsets_out(subsets: Sequence[Sequence[int]], items: int) -> Flags:
    """Removals of given subsets, such as all tasks with one class or all samples of one task.

    Args:
        subsets: positions (0 … ``items`` − 1) of the items of each subset.
        items: number of items.

    >>> from l2l_influence.evaluation import leave_subsets_out
    >>> leave_subsets_out([[0, 2], [3]], items=4).astype(int).tolist()
    [[1, 0, 1, 0], [0, 0, 0, 1]]
    """
    flags = np.zeros((len(subsets), items), dtype=bool)
    for row, subset in zip(flags, subsets, strict=True):
        row[list(subset)] = True
    return flags


def random_subsets(items: int, count: int, share: float = 0.5, seed: int = 0) -> Flags:
    """Removals of ``count`` random subsets, each with this share of the items.

    >>> from l2l_influence.evaluation import random_subsets
    >>> random_subsets(items=10, count=4, share=0.3).sum(1).tolist()
    [3, 3, 3, 3]
    """
    return stratified_subsets([range(items)], count, share, seed)


def stratified_subsets(strata: Sequence[Sequence[int]], count: int, share: float = 0.5, seed: int = 0) -> Flags:
    """Removals of random subsets that take the same share of each stratum.

    Args:
        strata: a partition of the positions 0 … n−1, such as correct and mislabelled tasks.
        count: number of subsets G.
        share: share of each stratum that a subset takes.
        seed: of the random draw.

    Returns:
        ``(G, n)``.

    Raises:
        ValueError: ``strata`` is not a partition of 0 … n−1.

    >>> from l2l_influence.evaluation import stratified_subsets
    >>> subsets = stratified_subsets([[0, 1, 2, 3], [4, 5]], count=3)
    >>> subsets[:, :4].sum(1).tolist(), subsets[:, 4:].sum(1).tolist()
    ([2, 2, 2], [1, 1, 1])
    """
    total = sum(len(stratum) for stratum in strata)
    if sorted(position for stratum in strata for position in stratum) != list(range(total)):
        raise ValueError(f"strata must contain each position once, from 0 to the number of items minus 1 ({total - 1})")
    rng = np.random.default_rng(seed)
    subsets = np.zeros((count, total), dtype=bool)
    for subset in subsets:
        for stratum in strata:
            subset[rng.choice(np.asarray(stratum), round(share * len(stratum)), replace=False)] = True
    return subsets


def most_harmful(scores: ArrayLike, shares: Sequence[float]) -> Flags:
    """Removals of the highest-scored items, one for each share. Their :attr:`~.GroundTruth.losses` are a removal curve.

    Args:
        scores: ``(n,)``, positive = harmful; of equal scores the first comes first.
        shares: share of the items that each removal takes, from 0 to 1.

    >>> from l2l_influence.evaluation import most_harmful
    >>> most_harmful([0.1, 5.0, -3.0, 2.0], [0, 0.25, 0.5]).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1]]
    """
    order = descending(scores)
    return leave_subsets_out([order[: round(share * len(order))].tolist() for share in shares], len(order))
