"""Measured removals, where retraining can be written down: the parameter is the mean of what is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from l2l_influence.evaluation import measure_removals, random_groups
from l2l_influence.evaluation.metrics import Floats
from l2l_influence.evaluation.retrain import Parameters

POINTS = torch.tensor([0.0, 1.0, 2.0, 9.0])
TARGETS = torch.tensor([1.0, 3.0])


def train(kept: Sequence[int], start: Parameters) -> Parameters:
    return {"mean": POINTS[list(kept)].mean() + start["mean"]}


def losses(parameters: Parameters) -> Floats:
    return ((parameters["mean"] - TARGETS) ** 2).double().numpy()


def test_change_is_measured_against_training_with_all() -> None:
    groups = np.array([[False, False, False, True], [True, True, False, False]])
    seen = []
    removals = measure_removals(train, losses, {"mean": torch.tensor(0.0)}, groups, lambda: seen.append(1))
    np.testing.assert_allclose(removals.baseline, [4.0, 0.0])  # mean of all: 3
    np.testing.assert_allclose(removals.change, [[0 - 4, 4 - 0], [4.5**2 - 4, 2.5**2 - 0]])  # means 1 and 5.5
    assert len(seen) == 3


def test_harmful_members_predict_a_falling_loss() -> None:
    groups = np.array([[True, True, False], [False, False, True]])
    removals = measure_removals(lambda kept, start: start, lambda _: np.zeros(2), {}, groups)
    np.testing.assert_allclose(removals.predicted(np.array([2.0, -0.5, 4.0])), [-1.5, -4.0])
    each = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(removals.predicted(each), [[-3.0, 0.0], [0.0, -3.0]])


def test_groups_hold_the_same_share_of_each_stratum() -> None:
    strata = [[0, 2, 4, 6, 8, 9], [1, 3, 5, 7]]
    groups = random_groups(strata, 20, share=0.5, seed=3)
    assert groups.shape == (20, 10)
    assert (groups[:, strata[0]].sum(1) == 3).all() and (groups[:, strata[1]].sum(1) == 2).all()
    assert len(np.unique(groups, axis=0)) > 10
    np.testing.assert_array_equal(groups, random_groups(strata, 20, share=0.5, seed=3))


@pytest.mark.parametrize("strata", [[[0, 1], [1, 2]], [[0, 3]]])
def test_strata_must_part_the_positions(strata: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="each position once"):
        random_groups(strata, 2)
