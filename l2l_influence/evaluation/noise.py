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
    Seeds are not drawn: means over fewer different seeds are noisier than the mean that the figure is about.

    Args:
        predicted: ``(G, T)``.
        change: ``(S, G, T)``, as :class:`Truth` has it, or ``(G, T)``.
        level: of confidence.
        draws: of G removals, with replacement.
        seed: of the draws.

    Raises:
        ValueError: sizes do not fit, numbers are not finite, or there are fewer than 3 removals.
    """
    p, t = matrices(predicted, _seeds(change).mean(0))
    return _bootstrap(lambda rows: _mean(rank_correlations(p[rows], t[rows])), len(t), level, draws, seed)


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
    """
    seeds = _seeds(change)
    return _stepped_up(_halves(seeds, seed), len(seeds), np.arange(seeds.shape[1]))


def ceiling(change: ArrayLike, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
    """What LDS against the mean over these seeds the best possible scores would have: the root of :func:`reliability`.

    Scores that knew the signal itself would correlate to √R with a mean of signal and noise (correction for
    attenuation). The ceiling is that of predictions without noise of their own; one more retraining, taken as the
    prediction, reaches less. Reliabilities of test tasks are averaged before the root, so that where they differ the
    ceiling is too high rather than too low. A reliability below 0 is a ceiling of 0.

    Args:
        change: as for :func:`reliability`.
        level, draws: of the bootstrap over removals.
        seed: of the draws, and of the splits.
    """
    seeds = _seeds(change)
    halves = _halves(seeds, seed)

    def root(rows: Rows) -> float:
        return float(np.sqrt(np.clip(_stepped_up(halves, len(seeds), rows), 0, 1)))

    return _bootstrap(root, seeds.shape[1], level, draws, seed)


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


def _stepped_up(halves: tuple[Floats, Floats], seeds: int, rows: Rows) -> float:
    one, other = halves
    r, k = _mean(rank_correlations(one[rows], other[rows])), seeds / (seeds // 2)
    return k * r / (1 + (k - 1) * r) if r > 0 else r


def _mean(values: Floats) -> float:
    """Of what is defined: a resampling may repeat one removal only."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _bootstrap(figure: Callable[[Rows], float], removals: int, level: float, draws: int, seed: int) -> Interval:
    """``figure(rows)`` of all removals, and of as many drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [figure(rng.integers(removals, size=removals)) for _ in range(draws)]
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(figure(np.arange(removals)), float(low), float(high))
