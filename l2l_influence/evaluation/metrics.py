"""Metrics that compare scores with the truth: known labels, or measured effects of removals. All are pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def precision_at_k(scores: ArrayLike, positive: ArrayLike, k: int) -> float:
    """Share of positives among the ``k`` highest scores; of equal scores the first comes first.

    >>> from l2l_influence.evaluation import precision_at_k
    >>> precision_at_k([0.1, 5.0, 3.0, -2.0], [True, True, False, True], k=2)
    0.5
    """
    flags = _ranked(scores, positive)
    if not 1 <= k <= len(flags):
        raise ValueError(f"k must be between 1 and the number of scores, {len(flags)}; got {k}")
    return float(flags[:k].mean())


def found_curve(scores: ArrayLike, positive: ArrayLike) -> Floats:
    """Share of all positives among the 1, 2, …, n highest scores; shape ``(n,)``.

    >>> from l2l_influence.evaluation import found_curve
    >>> found_curve([3, 1, 2, 0], [False, True, True, False]).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    flags = _ranked(scores, positive)
    if not flags.any():
        raise ValueError("there are no positives to find: at least one flag must be True")
    found: Floats = np.cumsum(flags) / flags.sum()
    return found


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative (ties count half).

    >>> from l2l_influence.evaluation import auc
    >>> auc([0.9, 0.8, 0.3, 0.1], [True, False, True, False])
    0.75
    """
    flags = np.asarray(positive, dtype=bool)
    hits, misses = int(flags.sum()), int((~flags).sum())
    if hits == 0 or misses == 0:
        raise ValueError(f"the area under the ROC curve needs positives and negatives; got {hits} and {misses}")
    return float((rankdata(_vector(scores))[flags].sum() - hits * (hits + 1) / 2) / (hits * misses))


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's linear correlation; nan if one side is constant.

    >>> from l2l_influence.evaluation import pearson
    >>> round(pearson([1, 2, 3], [2, 4, 7]), 4)
    0.9934
    """
    x, y = (_vector(side) - _vector(side).mean() for side in (a, b))
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(
            f"a correlation needs two equally long vectors of at least 2 numbers; got shapes {x.shape} and {y.shape}"
        )
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank; nan if one side is constant.

    >>> from l2l_influence.evaluation import spearman
    >>> round(spearman([1, 2, 3], [2, 4, 7]), 4)
    1.0
    """
    return pearson(rankdata(_vector(a)), rankdata(_vector(b)))


def slope(predicted: ArrayLike, true: ArrayLike) -> float:
    """True change per unit of predicted change, by least squares with intercept: 1 = sizes are right; nan if constant.

    >>> from l2l_influence.evaluation import slope
    >>> slope(predicted=[1, 2, 3], true=[2, 4, 6])
    2.0
    """
    x, y = _vector(predicted), _vector(true)
    x = x - x.mean()
    return float(x @ y) / float(x @ x) if float(x @ x) > 0 else float("nan")


def lds(predicted: ArrayLike, true: ArrayLike) -> float:
    """Linear datamodelling score: rank correlation over removals, averaged over test tasks.

    Args:
        predicted, true: change of the loss of each test task (columns) by each removal (rows), ``(G, T)``.

    >>> from l2l_influence.evaluation import lds
    >>> round(lds([[1, 3], [2, 1], [3, 2]], [[0.1, 0.9], [0.2, 0.1], [0.3, 0.4]]), 4)  # 3 removals, 2 test tasks
    1.0
    """
    p, t = matrices(predicted, true)
    return float(rank_correlations(p, t).mean())


def matrices(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    """Both as arrays ``(G, T)``.

    Raises:
        ValueError: they are not matrices of equal size, or contain numbers that are not finite.
    """
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 2:
        raise ValueError(f"predicted and true changes must be equal-sized matrices; got shapes {p.shape} and {t.shape}")
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise ValueError("predicted and true changes must be finite numbers")
    return p, t


def rank_correlations(a: Floats, b: Floats) -> Floats:
    """Spearman's rank correlation of each pair of columns, ``(G, T)`` → ``(T,)``; nan where one side is constant."""
    x, y = (rankdata(side, axis=0) - (len(side) + 1) / 2 for side in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0)))


def cosine(a: ArrayLike, b: ArrayLike) -> Floats:
    """Cosine of the angle between each pair of rows, such as predicted and true Δλ: ``(…, P)`` → ``(…)``; nan where one
    is 0.

    >>> from l2l_influence.evaluation import cosine
    >>> cosine([[6.0, 8.0], [1.0, 0.0]], [[3.0, 4.0], [0.0, 2.0]]).tolist()
    [1.0, 0.0]
    """
    x, y = _rows(a, b)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)))


def relative_error(predicted: ArrayLike, true: ArrayLike) -> Floats:
    """‖predicted − true‖ / ‖true‖ of each pair of rows: ``(…, P)`` → ``(…)``; 1 for a prediction of 0.

    >>> from l2l_influence.evaluation import relative_error
    >>> relative_error([[6.0, 8.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 2.0]]).tolist()
    [1.0, 1.0]
    """
    x, y = _rows(predicted, true)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.linalg.norm(x - y, axis=-1) / np.linalg.norm(y, axis=-1))


def self_ranks(scores: ArrayLike, rows: ArrayLike) -> Floats:
    """Rank of each test item by its own score, where training items are used as test items.

    A training item should be among the items that are most helpful to itself.

    Args:
        scores: ``(n, T)``, positive = harmful: scores of all n training items for T of them used as test items.
        rows: ``(T,)``, the row of each test item.

    Returns:
        ``(T,)``: 1 = the item itself is the most helpful (lowest), n = the least; ties share their mean rank.

    >>> from l2l_influence.evaluation import self_ranks
    >>> self_ranks([[-5.0, 0.0], [-1.0, -2.0], [0.0, -3.0]], rows=[0, 1]).tolist()
    [1.0, 2.0]
    """
    positions = np.asarray(rows, dtype=np.intp)
    return np.asarray(rankdata(np.asarray(scores, dtype=np.float64), axis=0)[positions, np.arange(len(positions))])


def descending(scores: ArrayLike) -> NDArray[np.intp]:
    """Positions by decreasing score; of equal scores the first comes first."""
    return np.argsort(-_vector(scores), kind="stable")


def _ranked(scores: ArrayLike, positive: ArrayLike) -> Flags:
    """The flags by decreasing score."""
    values, flags = _vector(scores), np.asarray(positive, dtype=bool)
    if values.shape != flags.shape:
        raise ValueError(f"each score needs one flag; got {values.shape} scores and {flags.shape} flags")
    flagged: Flags = flags[descending(values)]
    return flagged


def _vector(values: Any) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"expected a non-empty vector of finite numbers; got {vector!r}")
    return vector


def _rows(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(f"expected equally many vectors of equal length; got shapes {x.shape} and {y.shape}")
    return x, y
