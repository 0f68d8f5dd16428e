"""The metrics against scikit-learn, SciPy and counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from l2l_influence.evaluation import (
    auc,
    cosine,
    found_curve,
    lds,
    pearson,
    precision_at_k,
    relative_error,
    self_ranks,
    slope,
    spearman,
)

Pairs = list[tuple[int, int]]
pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30)
flagged = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30)


def test_precision_counts_positives_at_the_top() -> None:
    assert precision_at_k([0.1, 5.0, 3.0, -2.0], [True, True, False, True], 1) == 1.0
    assert precision_at_k([0.1, 5.0, 3.0, -2.0], [True, True, False, True], 2) == 0.5
    assert precision_at_k([0.1, 5.0, 3.0, -2.0], [True, True, False, True], 4) == 0.75


@pytest.mark.parametrize("k", [0, 5])
def test_precision_needs_a_possible_k(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the number of scores, 4"):
        precision_at_k([1, 2, 3, 4], [True, False, False, True], k)


def test_found_curve_adds_up_along_the_ranking() -> None:
    np.testing.assert_array_equal(found_curve([3, 1, 2, 0], [False, True, True, False]), [0, 0.5, 1, 1])


@given(flagged)
def test_auc_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    scores, flags = zip(*rows, strict=True)
    if len(set(flags)) < 2:
        with pytest.raises(ValueError, match="positives and negatives"):
            auc(scores, flags)
    else:
        assert auc(scores, flags) == pytest.approx(roc_auc_score(flags, scores))


@given(pairs)
def test_correlations_are_scipys(rows: Pairs) -> None:
    a, b = zip(*rows, strict=True)
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert math.isnan(pearson(a, b)) and math.isnan(spearman(a, b))
    else:
        assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-12)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)


@given(pairs)
def test_slope_is_the_least_squares_line(rows: Pairs) -> None:
    x, y = zip(*rows, strict=True)
    if len(set(x)) < 2:
        assert math.isnan(slope(x, y))
    else:
        assert slope(x, y) == pytest.approx(stats.linregress(x, y).slope, abs=1e-12)


def test_lds_is_the_mean_over_test_tasks() -> None:
    rng = np.random.default_rng(0)
    predicted, true = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    columns = [stats.spearmanr(predicted[:, t], true[:, t])[0] for t in range(4)]
    assert lds(predicted, true) == pytest.approx(np.mean(columns))


@pytest.mark.parametrize("broken", [[1.0, float("nan")], [], [[1.0, 2.0]]])
def test_what_is_no_vector_of_numbers_is_refused(broken: list[float]) -> None:
    with pytest.raises(ValueError, match="vector of finite numbers"):
        pearson(broken, [1.0, 2.0])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="equally long"):
        pearson([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="each score needs one flag"):
        precision_at_k([1, 2, 3], [True, False], 1)
    with pytest.raises(ValueError, match="equal-sized"):
        lds(np.zeros((3, 2)), np.zeros((2, 3)))


def test_direction_and_size_of_a_step() -> None:
    true = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    predicted = np.array([[6.0, 8.0], [1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(cosine(predicted, true), [1, 0, -1], atol=1e-15)
    np.testing.assert_allclose(relative_error(predicted, true), [1, math.sqrt(5) / 2, 2])
    np.testing.assert_allclose(relative_error(0 * true, true), 1)
    assert cosine(predicted[0], true[0]) == pytest.approx(1) and np.isnan(cosine(predicted, 0 * true)).all()
    np.testing.assert_allclose(cosine(np.stack([predicted] * 2), np.stack([true] * 2)), [[1, 0, -1]] * 2, atol=1e-15)
    with pytest.raises(ValueError, match="equal length"):
        cosine(predicted, true[0])


def test_own_rank_counts_the_more_helpful() -> None:
    scores = np.array([[-5.0, 0.0, 1.0], [-1.0, -2.0, 1.0], [0.0, -3.0, 1.0], [2.0, 4.0, 1.0]])
    np.testing.assert_array_equal(self_ranks(scores, [0, 1, 3]), [1, 2, 2.5])


@pytest.mark.parametrize("wrong", [(0, 1), (1, float("inf"))])
def test_scores_that_are_no_numbers_have_no_lds(wrong: tuple[int, float]) -> None:
    side, value = wrong
    sides = [np.zeros((3, 2)), np.zeros((3, 2))]
    sides[side][1, 1] = value if side else float("nan")
    with pytest.raises(ValueError, match="finite"):
        lds(*sides)
