"""How good are scores? Pure functions of scores and of what turned out to be true."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

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
    return float((rankdata(_vector(scores))[flags].sum() - hits * (hits + 1) / 2) / (hits * misses))


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
    return pearson(rankdata(_vector(a)), rankdata(_vector(b)))


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
    p, t = matrices(predicted, true)
    return float(rank_correlations(p, t).mean())


def matrices(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    """Both as finite ``(G, T)``.

    Raises:
        ValueError: they are not.
    """
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"predicted and true changes must be equal-sized matrices, got {p.shape} and {t.shape}")
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise ValueError("predicted and true changes must be finite numbers")
    return p, t


def rank_correlations(a: Floats, b: Floats) -> Floats:
    """Spearman's of each pair of columns, ``(G, T)`` → ``(T,)``; nan where one side is constant."""
    x, y = (rankdata(side, axis=0) - (len(side) + 1) / 2 for side in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0)))


def cosine(a: ArrayLike, b: ArrayLike) -> Floats:
    """Of the angle between each pair of rows, as of predicted and true Δλ, ``(…, P)`` → ``(…)``; nan where one is 0."""
    x, y = _rows(a, b)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)))


def relative_error(predicted: ArrayLike, true: ArrayLike) -> Floats:
    """‖predicted − true‖ / ‖true‖ of each pair of rows, ``(…, P)`` → ``(…)``; 1 for a prediction of 0."""
    x, y = _rows(predicted, true)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.linalg.norm(x - y, axis=-1) / np.linalg.norm(y, axis=-1))


def self_ranks(scores: ArrayLike, own: ArrayLike) -> Floats:
    """Where training items stand when they are the test: each should be the most helpful to itself.

    Args:
        scores: ``(n, T)``, positive = harmful, of all training items for T of them used as test items.
        own: ``(T,)``, the row of each test item.

    Returns:
        ``(T,)``: 1 where no item is more helpful (lower) than the item itself, n where none is less; ties share their
        mean.
    """
    rows = np.asarray(own, dtype=np.intp)
    return np.asarray(rankdata(np.asarray(scores, dtype=np.float64), axis=0)[rows, np.arange(len(rows))])


def descending(scores: ArrayLike) -> NDArray[np.intp]:
    """Positions in order of falling score (ties: first come, first served)."""
    return np.argsort(-_vector(scores), kind="stable")


def _ranked(scores: ArrayLike, positive: ArrayLike) -> Flags:
    """The flags in order of falling score."""
    values, flags = _vector(scores), np.asarray(positive, dtype=bool)
    if values.shape != flags.shape:
        raise ValueError(f"one flag a score is needed, got {values.shape} scores and {flags.shape} flags")
    flagged: Flags = flags[descending(values)]
    return flagged


def _vector(values: Any) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"a non-empty vector of finite numbers is needed, got {vector!r}")
    return vector


def _rows(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(f"equally many vectors of equal length are needed, got {x.shape} and {y.shape}")
    return x, y
