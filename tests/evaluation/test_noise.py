"""Intervals and ceilings where signal and noise are known: independent normal numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from l2l_influence.evaluation import (
    Outcome,
    ceiling,
    lds,
    lds_interval,
    leave_one_out,
    measure,
    random_subsets,
    reliability,
)
from l2l_influence.evaluation.metrics import Floats


def of_ranks(r: float) -> float:
    """The rank correlation of two normal variables with correlation r."""
    return 6 / math.pi * math.asin(r / 2)


def drawn(seeds: int, removals: int, tests: int, noise: float, seed: int = 0) -> tuple[Floats, Floats]:
    """A signal of variance 1, ``(G, T)``, and what as many seeds of noise make of it, ``(S, G, T)``."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(removals, tests))
    return signal, signal + noise * rng.normal(size=(seeds, removals, tests))


def test_lds_of_known_correlation() -> None:
    signal, (change,) = drawn(1, 2000, 10, noise=1.5)
    assert lds(signal, change) == pytest.approx(of_ranks(1 / math.sqrt(1 + 1.5**2)), abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 4, 7])
@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_reliability_is_the_share_of_the_signal(seeds: int, noise: float) -> None:
    _, change = drawn(seeds, 1500, 12, noise)
    assert reliability(change) == pytest.approx(1 / (1 + noise**2 / seeds), abs=0.03)


@pytest.mark.parametrize("seeds", [2, 3, 4, 7])
@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_the_ceiling_is_what_knowing_the_signal_reaches(seeds: int, noise: float) -> None:
    signal, change = drawn(seeds, 1500, 12, noise)
    reached = lds(signal, change.mean(0))
    found = ceiling(change, draws=2).value
    assert reached == pytest.approx(of_ranks(math.sqrt(1 / (1 + noise**2 / seeds))), abs=0.02)
    assert found == pytest.approx(reached, abs=0.03)
    _, more = drawn(1, 1500, 12, noise)  # a prediction with noise of its own, drawn as the first of other seeds
    assert lds(more[0], change[1:].mean(0)) < found


def test_the_ceiling_does_not_flatter_where_test_tasks_differ() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1500, 2))
    change = signal + np.array([0.1, 10.0]) * rng.normal(size=(4, 1500, 2))
    assert ceiling(change, draws=2).value > lds(signal, change.mean(0)) + 0.05


def test_retraining_without_noise_is_reliable_and_noise_alone_is_not() -> None:
    signal, _ = drawn(1, 30, 5, 0)
    assert reliability(np.stack([signal] * 3)) == pytest.approx(1)
    assert ceiling(np.stack([signal] * 3), draws=20) == pytest.approx((1, 1, 1))
    _, noise = drawn(4, 3000, 10, noise=1e6)
    assert abs(reliability(noise)) < 0.03
    against = np.stack([signal, -signal])
    assert reliability(against) < 0 and ceiling(against, draws=20) == (0, 0, 0)


@pytest.mark.parametrize("about", ["lds", "ceiling"])
def test_intervals_cover_what_they_are_about(about: str) -> None:
    """Nine of ten should; of 120 repetitions the count has a standard deviation of 3.3."""
    noise, seeds, hits = 1.0, 4, 0
    truth = of_ranks(math.sqrt(1 / (1 + noise**2 / seeds)))
    for repetition in range(120):
        signal, change = drawn(seeds, 50, 1, noise, seed=repetition)
        if about == "lds":
            found = lds_interval(signal, change, level=0.9, draws=150, seed=repetition)
        else:
            found = ceiling(change, level=0.9, draws=150, seed=repetition)
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    assert 98 <= hits <= 118


def test_intervals_are_seeded_and_wider_at_higher_levels() -> None:
    signal, change = drawn(3, 20, 4, 1.0)
    first = lds_interval(signal, change, draws=100, seed=5)
    assert first == lds_interval(signal, change, draws=100, seed=5)
    assert first != lds_interval(signal, change, draws=100, seed=6)
    narrow = lds_interval(signal, change, draws=100, seed=5, level=0.5)
    assert first.low < narrow.low < narrow.high < first.high
    assert first.value == lds(signal, change.mean(0))


def test_one_seed_has_an_interval_but_no_ceiling() -> None:
    signal, change = drawn(1, 20, 4, 1.0)
    assert lds_interval(signal, change, draws=20) == lds_interval(signal, change[0], draws=20)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        ceiling(change)


@pytest.mark.parametrize("broken", [np.zeros(4), np.zeros((2, 2, 3)), np.full((2, 4, 3), np.nan)])
def test_what_are_no_changes_is_refused(broken: Floats) -> None:
    with pytest.raises(ValueError, match="at least 3 removals"):
        reliability(broken)


# ---- from retraining to figures -----------------------------------------------------------------------------------

ITEMS, TESTS = 12, 6
EFFECTS = np.random.default_rng(0).normal(size=(ITEMS, TESTS))
"""What each item adds to the loss of each test task: its score, for retraining is linear in the weights."""


def retrain(noise: float, weights: Floats, seed: int) -> Outcome:
    own = np.random.default_rng([seed, *(weights * 8).astype(int)])  # noise that no two retrainings share
    return Outcome(weights @ EFFECTS + noise * own.normal(size=TESTS))


def test_true_scores_reach_one_without_noise_and_the_ceiling_with_it() -> None:
    subsets = random_subsets(ITEMS, 300, seed=1)
    quiet = measure(lambda w, s: retrain(0.0, w, s), subsets, progress=False)
    np.testing.assert_allclose(quiet.predicted(EFFECTS), quiet.mean_change, atol=1e-12)
    assert lds(quiet.predicted(EFFECTS), quiet.mean_change) == pytest.approx(1)
    noisy = measure(lambda w, s: retrain(3.0, w, s), subsets, range(4), progress=False)
    best = lds_interval(noisy.predicted(EFFECTS), noisy.change, draws=200)
    bound = ceiling(noisy.change, draws=200)
    assert bound.value < 0.85
    assert best.value == pytest.approx(bound.value, abs=0.05) and bound.low < best.value < bound.high


def test_single_removals_measure_the_scores_themselves() -> None:
    truth = measure(lambda w, s: retrain(0.0, w, s), leave_one_out(ITEMS), progress=False)
    np.testing.assert_allclose(truth.mean_change, -EFFECTS, atol=1e-12)
