"""Uncertainty of the linear datamodelling score: bootstrap intervals, and the ceiling that retraining noise sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import Floats, matrices, rank_correlations

Rows = NDArray[np.intp]
SPLITS = 30
"""Number of random splits of the seeds into halves; duplicates count once."""


class Interval(NamedTuple):
    """An estimate with its bootstrap interval (percentiles of the estimate on resampled data)."""

    value: float
    low: float
    high: float


def lds_interval(
    predicted: ArrayLike, change: ArrayLike, *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> Interval:
    """:func:`lds` of predictions against changes averaged over seeds, with its bootstrap interval over removals.

    Each removal is a retraining with its own noise, so resampling removals also resamples the noise of training. Seeds
    are not resampled: a mean over fewer different seeds would be noisier than the mean that is reported. So the
    interval holds for these seeds, and does not contain what a seed changes in all removals alike. To see how much
    seeds differ, compute ``lds(predicted, change[s])`` for each.

    Args:
        predicted: ``(G, T)``.
        change: ``(S, G, T)`` as in :class:`GroundTruth`, or ``(G, T)``.
        level: confidence level.
        samples: number of bootstrap samples, each of G removals with replacement.
        seed: of the resampling.

    Returns:
        All three are nan where the score is: predicted or true changes of a test task do not vary.

    Raises:
        ValueError: sizes do not match, numbers are not finite, or there are fewer than 3 removals.

    >>> from l2l_influence.evaluation import lds_interval
    >>> change = [[0.1], [0.4], [0.2], [0.5], [0.3]]  # 5 removals, 1 test task
    >>> lds_interval([[1.0], [4.0], [2.0], [5.0], [3.0]], change, samples=100)
    Interval(value=1.0, low=1.0, high=1.0)
    """
    p, t = matrices(predicted, _seeds(change).mean(0))
    return _bootstrap(lambda rows: rank_correlations(p[rows], t[rows]), np.mean, len(t), level, samples, seed)


def lds_difference(
    predicted: ArrayLike,
    other: ArrayLike,
    change: ArrayLike,
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """:func:`lds` of ``predicted`` minus that of ``other``, both on the same bootstrap samples of removals.

    The interval is much narrower than a comparison of the two single intervals suggests: an unusual removal is unusual
    for both.

    Args:
        predicted, other: each ``(G, T)``.
        change, level, samples, seed: as in :func:`lds_interval`, which also describes returned values and errors.

    >>> from l2l_influence.evaluation import lds_difference
    >>> change = [[0.1], [0.4], [0.2], [0.5], [0.3]]
    >>> lds_difference([[1], [4], [2], [5], [3]], [[4], [1], [2], [5], [3]], change, samples=100).value > 0
    True
    """
    mean = _seeds(change).mean(0)
    (p, t), (q, _) = matrices(predicted, mean), matrices(other, mean)

    def gains(rows: Rows) -> Floats:
        return rank_correlations(p[rows], t[rows]) - rank_correlations(q[rows], t[rows])

    return _bootstrap(gains, np.mean, len(t), level, samples, seed)


def reliability(change: ArrayLike, seed: int = 0) -> float:
    """Reliability of the mean change over S seeds as a ranking of removals: 1 = no noise, 0 = nothing but noise.

    The seeds are split into two halves of h = ⌊S/2⌋. Let r be the rank correlation over removals between the mean
    changes of the two halves, averaged over test tasks and splits. The Spearman–Brown formula extrapolates from h seeds
    to S: with ``k = S/h``, ``R = k r / (1 + (k − 1) r)``. If change = signal + noise, with variances σ² and ν² and
    noise independent between seeds, R estimates the signal's share of the variance of the mean over S seeds,
    ``σ² / (σ² + ν²/S)``. This holds for linear correlations; for rank correlations of normal changes R is up to 0.02
    lower. A negative r is returned unchanged.

    Args:
        change: ``(S, G, T)``, with at least 2 seeds and 3 removals. For the reliability of the mean test loss pass
            ``change.mean(2, keepdims=True)``.
        seed: of the choice of splits, if there are too many to use all.

    Raises:
        ValueError: there are fewer than 2 seeds or 3 removals, or numbers are not finite.

    >>> import numpy as np
    >>> from l2l_influence.evaluation import reliability
    >>> signal = np.array([[0.1], [0.4], [0.2], [0.5]])
    >>> round(reliability(np.stack([signal, signal])), 6)
    1.0
    """
    seeds = _seeds(change)
    return _extrapolated(float(rank_correlations(*_halves(seeds, seed)).mean()), len(seeds))


def ceiling(change: ArrayLike, *, level: float = 0.95, samples: int = 1000, seed: int = 0) -> Interval:
    """Highest LDS that any scores can reach against the mean over these seeds: the root of :func:`reliability`.

    Scores that know the signal exactly correlate with a mean of signal and noise to √R (correction for attenuation).
    The ceiling holds for predictions without noise; another retraining, used as the prediction, reaches less.
    Reliabilities are averaged over test tasks before the root is taken, so where they differ the ceiling is too high
    rather than too low. A negative reliability gives a ceiling of 0.

    Args:
        change: as in :func:`reliability`.
        level, samples: of the bootstrap over removals; see :func:`lds_interval`.
        seed: of the resampling and of the splits.

    Returns:
        All three are nan where the changes of a test task do not vary.

    Raises:
        ValueError: there are fewer than 2 seeds or 3 removals, or numbers are not finite.

    >>> import numpy as np
    >>> from l2l_influence.evaluation import ceiling
    >>> signal, rng = np.arange(40.0)[:, None], np.random.default_rng(0)
    >>> changes = signal + rng.normal(size=(2, 40, 1))  # 2 seeds, 40 removals
    >>> 0.9 < ceiling(changes, samples=50).value <= 1
    True
    """
    seeds = _seeds(change)
    one, other = _halves(seeds, seed)

    def root(correlations: Floats) -> float:
        return float(np.sqrt(np.clip(_extrapolated(float(correlations.mean()), len(seeds)), 0, 1)))

    return _bootstrap(lambda rows: rank_correlations(one[rows], other[rows]), root, len(one), level, samples, seed)


def _seeds(change: ArrayLike) -> Floats:
    values = np.asarray(change, dtype=np.float64)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1] < 3 or not np.isfinite(values).all():
        raise ValueError(
            "changes must be finite numbers of shape (seeds, removals, test tasks) with at least 3 removals; got shape "
            f"{values.shape}"
        )
    return values


def _halves(seeds: Floats, seed: int) -> tuple[Floats, Floats]:
    """Mean changes over the first and the second half of K different splits, concatenated: each ``(G, K·T)``."""
    if len(seeds) < 2:
        raise ValueError("the reliability of retraining needs at least 2 seeds")
    splits = _splits(len(seeds), seed)
    one, other = (
        np.concatenate([seeds[list(half)].mean(0) for half in halves], 1) for halves in zip(*splits, strict=True)
    )
    return one, other


def _splits(seeds: int, seed: int) -> list[tuple[tuple[int, ...], ...]]:
    """Pairs of disjoint halves of the seeds, without duplicates."""
    half, rng = seeds // 2, np.random.default_rng(seed)
    orders = [rng.permutation(seeds).tolist() for _ in range(SPLITS)]
    pairs = [(tuple(sorted(order[:half])), tuple(sorted(order[half : 2 * half]))) for order in orders]
    return sorted({tuple(sorted(pair)) for pair in pairs})


def _extrapolated(r: float, seeds: int) -> float:
    """Spearman–Brown: the reliability of all seeds, from that of half of them."""
    k = seeds / (seeds // 2)
    return k * r / (1 + (k - 1) * r) if r > 0 else r


def _bootstrap(
    columns: Callable[[Rows], Floats],
    figure: Callable[[Floats], float],
    removals: int,
    level: float,
    samples: int,
    seed: int,
) -> Interval:
    """``figure(columns(rows))`` for all removals, and its percentiles over bootstrap samples of removals.

    Columns that are undefined in a sample, because it repeats one removal only, are left out of that sample.
    """
    value = float(figure(columns(np.arange(removals))))
    if not np.isfinite(value):
        return Interval(value, value, value)
    rng = np.random.default_rng(seed)
    resampled = [columns(rng.integers(removals, size=removals)) for _ in range(samples)]
    figures = [figure(defined) for found in resampled if len(defined := found[np.isfinite(found)])]
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
