"""How sure is a figure, and how high could it be? Bootstrap intervals, and the ceiling that noise sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import Floats, matrices, rank_correlations

Rows = NDArray[np.intp]
SPLITS = 30
"""Into halves, drawn at random; the same ones count once."""


class Interval(NamedTuple):
    """A figure, and the ends of its bootstrap interval (percentiles of the figure on resampled data)."""

    value: float
    low: float
    high: float


def lds_interval(
    predicted: ArrayLike, change: ArrayLike, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Interval:
    """:func:`lds` against changes averaged over seeds, with its bootstrap interval over removals.

    Each removal is a retraining with noise of its own, so that removals drawn anew carry the noise of training along.
    Seeds are not drawn: means over fewer different seeds are noisier than the mean that the figure is about. So the
    interval is about these seeds: what a seed makes of an item in every removal alike is not in it.
    ``lds(predicted, change[s])`` of single seeds shows how much they differ.

    Args:
        predicted: ``(G, T)``.
        change: ``(S, G, T)``, as :class:`Truth` has it, or ``(G, T)``.
        level: of confidence.
        draws: of G removals, with replacement.
        seed: of the draws.

    Returns:
        All three nan where the score is: predicted or true changes of a test task do not vary.

    Raises:
        ValueError: sizes do not fit, numbers are not finite, or there are fewer than 3 removals.
    """
    p, t = matrices(predicted, _seeds(change).mean(0))
    return _bootstrap(lambda rows: rank_correlations(p[rows], t[rows]), np.mean, len(t), level, draws, seed)


def lds_difference(
    predicted: ArrayLike,
    other: ArrayLike,
    change: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """How much higher the :func:`lds` of ``predicted`` is than that of ``other``, on the same draws of removals.

    Far narrower than the intervals of the two beside each other would suggest: an odd removal is odd for both.

    Args:
        predicted, other: ``(G, T)`` both.
        change, level, draws, seed: as for :func:`lds_interval`, as are what is returned and raised.
    """
    mean = _seeds(change).mean(0)
    (p, t), (q, _) = matrices(predicted, mean), matrices(other, mean)

    def gains(rows: Rows) -> Floats:
        return rank_correlations(p[rows], t[rows]) - rank_correlations(q[rows], t[rows])

    return _bootstrap(gains, np.mean, len(t), level, draws, seed)


def reliability(change: ArrayLike, seed: int = 0) -> float:
    """Of changes averaged over their S seeds, as to the order of removals: 1 without noise, 0 for nothing but noise.

    Seeds are split into two halves of h = ⌊S/2⌋, and r is the rank correlation over removals of the two halves' mean
    changes, averaged over test tasks and splits. Spearman and Brown step it up from h seeds to S, ``k = S/h``:
    ``R = k r / (1 + (k − 1) r)``. If change = signal + noise, of variances σ² and ν², with noise independent between
    seeds, R estimates the signal's share of the variance of the mean over S seeds: ``σ² / (σ² + ν²/S)``. So it is for
    linear correlations; for normal changes that of ranks gives up to 0.02 less. An r below 0 is returned as it is.

    Args:
        change: ``(S, G, T)``, at least 2 seeds and 3 removals; ``change.mean(2, keepdims=True)`` asks for that of the
            mean test loss.
        seed: of the choice of splits, where there are more than can be taken.

    Raises:
        ValueError: there are fewer than 2 seeds or 3 removals, or numbers are not finite.
    """
    seeds = _seeds(change)
    return _stepped_up(float(rank_correlations(*_halves(seeds, seed)).mean()), len(seeds))


def ceiling(change: ArrayLike, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
    """What LDS against the mean over these seeds the best possible scores would have: the root of :func:`reliability`.

    Scores that knew the signal itself would correlate to √R with a mean of signal and noise (correction for
    attenuation). The ceiling is that of predictions without noise of their own; one more retraining, taken as the
    prediction, reaches less. Reliabilities of test tasks are averaged before the root, so that where they differ the
    ceiling is too high rather than too low. A reliability below 0 is a ceiling of 0.

    Args:
        change: as for :func:`reliability`.
        level, draws: of the bootstrap over removals; see :func:`lds_interval`.
        seed: of the draws, and of the splits.

    Returns:
        All three nan where the changes of a test task do not vary.

    Raises:
        ValueError: there are fewer than 2 seeds or 3 removals, or numbers are not finite.
    """
    seeds = _seeds(change)
    one, other = _halves(seeds, seed)

    def root(correlations: Floats) -> float:
        return float(np.sqrt(np.clip(_stepped_up(float(correlations.mean()), len(seeds)), 0, 1)))

    return _bootstrap(lambda rows: rank_correlations(one[rows], other[rows]), root, len(one), level, draws, seed)


def _seeds(change: ArrayLike) -> Floats:
    values = np.asarray(change, dtype=np.float64)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1] < 3 or not np.isfinite(values).all():
        raise ValueError(
            f"changes must be finite numbers, (seeds, removals, test tasks), at least 3 removals; got {values.shape}"
        )
    return values


def _halves(seeds: Floats, seed: int) -> tuple[Floats, Floats]:
    """Mean changes over the one and the other half of K different splits, side by side: ``(G, K·T)`` both."""
    if len(seeds) < 2:
        raise ValueError("the reliability of retraining needs at least 2 seeds")
    splits = _splits(len(seeds), seed)
    one, other = (
        np.concatenate([seeds[list(half)].mean(0) for half in halves], 1) for halves in zip(*splits, strict=True)
    )
    return one, other


def _splits(seeds: int, seed: int) -> list[tuple[tuple[int, ...], ...]]:
    """Pairs of halves without a common seed, each pair once."""
    half, rng = seeds // 2, np.random.default_rng(seed)
    orders = [rng.permutation(seeds).tolist() for _ in range(SPLITS)]
    pairs = [(tuple(sorted(order[:half])), tuple(sorted(order[half : 2 * half]))) for order in orders]
    return sorted({tuple(sorted(pair)) for pair in pairs})


def _stepped_up(r: float, seeds: int) -> float:
    k = seeds / (seeds // 2)
    return k * r / (1 + (k - 1) * r) if r > 0 else r


def _bootstrap(
    columns: Callable[[Rows], Floats],
    figure: Callable[[Floats], float],
    removals: int,
    level: float,
    draws: int,
    seed: int,
) -> Interval:
    """``figure(columns(rows))`` of all removals, and of as many drawn with replacement.

    Columns that a draw leaves undefined, because it holds the same removal again and again, are left out there.
    """
    value = float(figure(columns(np.arange(removals))))
    if not np.isfinite(value):
        return Interval(value, value, value)
    rng = np.random.default_rng(seed)
    drawn = [columns(rng.integers(removals, size=removals)) for _ in range(draws)]
    figures = [figure(defined) for found in drawn if len(defined := found[np.isfinite(found)])]
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
