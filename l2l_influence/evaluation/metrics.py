"""How good are scores? Pure functions of scores and of what turned out to be true."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def precision_at_k(scores: ArrayLike, positive: ArrayLike, k: int) -> float:
    """Share of positives among the ``k`` highest scores (ties: first come, first served)."""
    flags = _ranked(scores, positive)
    if not 1 <= k <= len(flags):
        raise ValueError(f"k must be between 1 and the number of scores, {len(flags)}, not {k}")
    return float(flags[:k].mean())


def found_curve(scores: ArrayLike, positive: ArrayLike) -> Floats:
    """Share of all positives found after checking the 1, 2, …, n highest scores; shape ``(n,)``."""
    flags = _ranked(scores, positive)
    if not flags.any():
        raise ValueError("there is nothing to find: no positives")
    found: Floats = np.cumsum(flags) / flags.sum()
    return found


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Probability that a positive scores higher than a negative, ties counted as half (area under the ROC curve)."""
    flags = np.asarray(positive, dtype=bool)
    hits, misses = int(flags.sum()), int((~flags).sum())
    if hits == 0 or misses == 0:
        raise ValueError(f"the area under the ROC curve needs positives and negatives, got {hits} and {misses}")
    return float((ranks(scores)[flags].sum() - hits * (hits + 1) / 2) / (hits * misses))


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Linear correlation; nan where one side is constant."""
    x, y = (_vector(side) - _vector(side).mean() for side in (a, b))
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(
            f"a correlation needs two equally long vectors of at least 2 numbers, got {x.shape}, {y.shape}"
        )
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank; nan where one side is constant."""
    return pearson(ranks(a), ranks(b))


def slope(predicted: ArrayLike, true: ArrayLike) -> float:
    """True units per predicted unit (least squares with a free offset): 1 where the size is right; nan if constant."""
    x, y = _vector(predicted), _vector(true)
    x = x - x.mean()
    return float(x @ y) / float(x @ x) if float(x @ x) > 0 else float("nan")


def lds(predicted: ArrayLike, true: ArrayLike) -> float:
    """Linear datamodelling score: rank correlation over groups, averaged over test tasks.

    Args:
        predicted, true: change of the loss of each test task (columns) by the removal of each group (rows), ``(G, T)``.
    """
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"predicted and true changes must be equal-sized matrices, got {p.shape} and {t.shape}")
    return float(np.mean([spearman(p[:, column], t[:, column]) for column in range(p.shape[1])]))


def ranks(values: ArrayLike) -> Floats:
    """1 for the smallest value; equal values share the mean of their ranks."""
    vector = _vector(values)
    _, where, count = np.unique(vector, return_inverse=True, return_counts=True)
    mean_rank: Floats = np.cumsum(count) - (count - 1) / 2
    return mean_rank[where]


def _ranked(scores: ArrayLike, positive: ArrayLike) -> Flags:
    """The flags in order of falling score."""
    values, flags = _vector(scores), np.asarray(positive, dtype=bool)
    if values.shape != flags.shape:
        raise ValueError(f"one flag a score is needed, got {values.shape} scores and {flags.shape} flags")
    flagged: Flags = flags[np.argsort(-values, kind="stable")]
    return flagged


def _vector(values: Any) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"a non-empty vector of finite numbers is needed, got {vector!r}")
    return vector
