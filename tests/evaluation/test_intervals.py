"""Intervals and ceilings with known signal and noise: independent normal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from l2l_influence.evaluation import (
    Interval,
    Outcome,
    ceiling,
    lds,
    lds_difference,
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
    """A signal of variance 1, ``(G, T)``, and the signal plus independent noise for each seed, ``(S, G, T)``."""
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
    found = ceiling(change, samples=2).value
    assert reached == pytest.approx(of_ranks(math.sqrt(1 / (1 + noise**2 / seeds))), abs=0.02)
    assert found == pytest.approx(reached, abs=0.03)
    _, more = drawn(1, 1500, 12, noise)  # a prediction with noise of its own, drawn as the first of other seeds
    assert lds(more[0], change[1:].mean(0)) < found


def test_the_ceiling_does_not_flatter_where_test_tasks_differ() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1500, 2))
    change = signal + np.array([0.1, 10.0]) * rng.normal(size=(4, 1500, 2))
    assert ceiling(change, samples=2).value > lds(signal, change.mean(0)) + 0.05


def test_retraining_without_noise_is_reliable_and_noise_alone_is_not() -> None:
    signal, _ = drawn(1, 30, 5, 0)
    assert reliability(np.stack([signal] * 3)) == pytest.approx(1)
    assert ceiling(np.stack([signal] * 3), samples=20) == pytest.approx((1, 1, 1))
    _, noise = drawn(4, 3000, 10, noise=1e6)
    assert abs(reliability(noise)) < 0.03
    against = np.stack([signal, -signal])
    assert reliability(against) < 0 and ceiling(against, samples=20) == (0, 0, 0)


def covered(figure: Callable[[Floats, Floats, int], Interval], truth: float, noise: float = 1.0) -> int:
    """How many of 60 intervals contain the truth; at 90 % this number has a standard deviation of 2.3."""
    hits = 0
    for repetition in range(60):
        found = figure(*drawn(4, 50, 1, noise, seed=repetition), repetition)
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    return hits


def test_intervals_cover_what_they_are_about() -> None:
    truth = of_ranks(math.sqrt(1 / (1 + 1 / 4)))
    assert 47 <= covered(lambda p, t, s: lds_interval(p, t, level=0.9, samples=60, seed=s), truth) <= 59
    assert 47 <= covered(lambda p, t, s: ceiling(t, level=0.9, samples=60, seed=s), truth) <= 59


def worse(signal: Floats, seed: int) -> Floats:
    """The signal plus noise of the same size."""
    return signal + np.random.default_rng(1000 + seed).normal(size=signal.shape)


def test_differences_cover_what_they_are_about() -> None:
    r = math.sqrt(1 / (1 + 1 / 4))
    truth = of_ranks(r) - of_ranks(r / math.sqrt(2))
    hits = covered(lambda p, t, s: lds_difference(p, worse(p, s), t, level=0.9, samples=60, seed=s), truth)
    assert 47 <= hits <= 59


def test_a_difference_is_that_of_the_two_scores_and_narrower_than_they_are() -> None:
    signal, change = drawn(4, 60, 3, 2.0)
    near = signal + 0.1 * worse(signal, 0)
    found = lds_difference(signal, near, change, samples=200)
    mean = change.mean(0)
    assert found.value == pytest.approx(lds(signal, mean) - lds(near, mean))
    alone = lds_interval(signal, change, samples=200)
    assert found.high - found.low < (alone.high - alone.low) / 3
    assert lds_difference(signal, signal, change, samples=20) == (0, 0, 0)


def test_an_interval_is_about_its_seeds() -> None:
    """Identical seeds give the same interval as one of them."""
    signal, change = drawn(1, 20, 3, 1.0)
    expected = lds_interval(signal, change, samples=50)
    assert lds_interval(signal, np.concatenate([change] * 4), samples=50) == pytest.approx(expected)


def test_intervals_are_seeded_and_wider_at_higher_levels() -> None:
    signal, change = drawn(3, 20, 4, 1.0)
    first = lds_interval(signal, change, samples=100, seed=5)
    assert first == lds_interval(signal, change, samples=100, seed=5)
    assert first != lds_interval(signal, change, samples=100, seed=6)
    narrow = lds_interval(signal, change, samples=100, seed=5, level=0.5)
    assert first.low < narrow.low < narrow.high < first.high
    assert first.value == lds(signal, change.mean(0))


def test_one_seed_has_an_interval_but_no_ceiling() -> None:
    signal, change = drawn(1, 20, 4, 1.0)
    assert lds_interval(signal, change, samples=20) == lds_interval(signal, change[0], samples=20)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        ceiling(change)


def test_where_nothing_varies_there_is_no_figure() -> None:
    signal, change = drawn(2, 20, 3, 1.0)
    constant = signal.copy()
    constant[:, 1] = 7
    assert np.isnan(lds_interval(constant, change)).all()
    assert np.isnan(lds_difference(signal, constant, change)).all()
    change[:, :, 1] = 7
    assert np.isnan(lds_interval(signal, change)).all() and np.isnan(ceiling(change)).all()


def test_bootstrap_samples_of_few_removals_may_have_no_order() -> None:
    """One in nine samples of 3 holds the same removal three times."""
    found = lds_interval([[1.0], [2], [3]], [[1.0], [2], [3]], samples=100)
    assert found == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("broken", [np.zeros(4), np.zeros((2, 2, 3)), np.full((2, 4, 3), np.nan)])
def test_what_are_no_changes_is_refused(broken: Floats) -> None:
    with pytest.raises(ValueError, match="at least 3 removals"):
        reliability(broken)


# ---- from retraining to figures -----------------------------------------------------------------------------------

ITEMS, TESTS = 12, 6
EFFECTS = np.random.default_rng(0).normal(size=(ITEMS, TESTS))
"""Contribution of each item to the loss of each test task: its score, because retraining is linear in the weights."""


def retrain(noise: float, weights: Floats, seed: int) -> Outcome:
    own = np.random.default_rng([seed, *(weights * 8).astype(int)])  # noise that no two retrainings share
    return Outcome(weights @ EFFECTS + noise * own.normal(size=TESTS))


def test_true_scores_reach_one_without_noise_and_the_ceiling_with_it() -> None:
    subsets = random_subsets(ITEMS, 300, seed=1)
    quiet = measure(lambda w, s: retrain(0.0, w, s), subsets, progress=False)
    np.testing.assert_allclose(quiet.predicted(EFFECTS), quiet.mean_change, atol=1e-12)
    assert lds(quiet.predicted(EFFECTS), quiet.mean_change) == pytest.approx(1)
    noisy = measure(lambda w, s: retrain(3.0, w, s), subsets, range(4), progress=False)
    best = lds_interval(noisy.predicted(EFFECTS), noisy.change, samples=200)
    bound = ceiling(noisy.change, samples=200)
    assert bound.value < 0.85
    assert best.value == pytest.approx(bound.value, abs=0.05) and bound.low < best.value < bound.high


def test_single_removals_measure_the_scores_themselves() -> None:
    truth = measure(lambda w, s: retrain(0.0, w, s), leave_one_out(ITEMS), progress=False)
    np.testing.assert_allclose(truth.mean_change, -EFFECTS, atol=1e-12)
