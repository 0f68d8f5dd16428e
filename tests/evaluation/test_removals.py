"""Designs of removals."""

from __future__ import annotations

import numpy as np
import pytest

from l2l_influence.evaluation import leave_one_out, leave_subsets_out, most_harmful, random_subsets, stratified_subsets


def test_single_items() -> None:
    np.testing.assert_array_equal(leave_one_out(4), np.eye(4, dtype=bool))
    some = leave_one_out(20, 8, seed=1)
    assert some.shape == (8, 20) and (some.sum(1) == 1).all() and some.any(0).sum() == 8
    np.testing.assert_array_equal(some, leave_one_out(20, 8, seed=1))
    assert (some != leave_one_out(20, 8, seed=2)).any()


def test_given_subsets() -> None:
    np.testing.assert_array_equal(leave_subsets_out([[0, 2], [], [3]], 4), [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_subsets_take_the_same_share_of_each_stratum() -> None:
    strata = [[0, 2, 4, 6, 8, 9], [1, 3, 5, 7]]
    subsets = stratified_subsets(strata, 20, share=0.5, seed=3)
    assert subsets.shape == (20, 10)
    assert (subsets[:, strata[0]].sum(1) == 3).all() and (subsets[:, strata[1]].sum(1) == 2).all()
    assert len(np.unique(subsets, axis=0)) > 10
    np.testing.assert_array_equal(subsets, stratified_subsets(strata, 20, share=0.5, seed=3))


@pytest.mark.parametrize("strata", [[[0, 1], [1, 2]], [[0, 3]]])
def test_strata_must_part_the_positions(strata: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="each position once"):
        stratified_subsets(strata, 2)


def test_subsets_are_drawn_evenly() -> None:
    subsets = random_subsets(30, 400, share=0.2, seed=0)
    assert (subsets.sum(1) == 6).all()
    assert abs(subsets.mean(0) - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / 400)


def test_the_most_harmful_go_first() -> None:
    found = most_harmful([0.1, 5.0, -3.0, 5.0], [0, 0.25, 0.5, 1])
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]])
