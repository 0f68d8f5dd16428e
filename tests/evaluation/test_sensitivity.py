"""Scores at other strengths of damping and δ, against hooks that were made with these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import spearmanr
from torch import nn

from l2l_influence import QueryInfluence, TaskInfluence
from l2l_influence.errors import InfluenceError
from l2l_influence.evaluation import GroundTruth, Sensitivity, plot_sensitivity, sensitivity_of
from tests.reference_problems.learn2learn import labelled_batches, pairs, train

LOSS = nn.CrossEntropyLoss()
SCALES = (0.01, 1.0, 100.0)


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return train(model, labelled_batches(8, 1), LOSS, steps=2, order=[*range(8)] * 10, optimizer_lr=0.3)


@pytest.fixture(scope="module")
def tests():
    return pairs(labelled_batches(5, 2))


@pytest.fixture(scope="module")
def hook(run) -> TaskInfluence:
    return TaskInfluence(*run, LOSS, progress=False)


def anew(run, tests, **options) -> np.ndarray:
    return TaskInfluence(*run, LOSS, progress=False, **options).score_matrix(tests)[1].numpy()


def test_damping_is_that_of_hooks_made_with_it(run, hook, tests) -> None:
    own = anew(run, tests)
    found = sensitivity_of(hook, tests, scales=SCALES[::-1])
    assert found.setting == "damping" and found.lds is None and not found.refused
    assert found.values == pytest.approx([found.own * scale for scale in SCALES])
    others = [anew(run, tests, damping=value) for value in found.values]
    np.testing.assert_allclose(others[1], own, rtol=1e-6)
    expected = [spearmanr(other.mean(1), own.mean(1))[0] for other in others]
    np.testing.assert_allclose(found.agreement, expected)
    assert found.agreement[1] == pytest.approx(1) and min(found.agreement) < 1


def test_delta_is_that_of_proximal_hooks(run, hook, tests) -> None:
    found = sensitivity_of(hook, tests, setting="δ", scales=SCALES)
    assert found.own == pytest.approx(1 / (0.1 * 2)), "1/(lr·K), for a mean loss"
    own = anew(run, tests)
    others = [anew(run, tests, inner="proximal", proximal=5 * scale) for scale in SCALES]
    np.testing.assert_allclose(found.agreement, [spearmanr(other.mean(1), own.mean(1))[0] for other in others])
    given = TaskInfluence(*run, LOSS, inner="proximal", proximal=0.5, progress=False)
    assert sensitivity_of(given, tests, setting="δ", scales=[1.0]).own == 0.5


def test_lds_is_against_the_truth_that_is_given(run, tests) -> None:
    """A truth in which retraining does what one damping says puts that damping at 1."""
    hook = QueryInfluence(*run, LOSS, progress=False)
    first = sensitivity_of(hook, tests, scales=[10.0])
    scores = QueryInfluence(*run, LOSS, damping=first.values[0], progress=False).score_matrix(tests)[1].numpy()
    removals = np.random.default_rng(0).random((12, len(scores))) < 0.5
    truth = GroundTruth(removals.astype(float), (0,), np.zeros((1, 5)), -(removals @ scores)[None], None)
    found = sensitivity_of(hook, tests, scales=(1.0, 10.0), truth=truth)
    assert found.lds is not None
    assert found.lds[1] == pytest.approx(1) and found.lds[0] < 1
    with pytest.raises(ValueError):
        sensitivity_of(hook, tests[:2], scales=[1.0], truth=truth)


def test_what_is_refused_is_said_and_left_out(run, tests) -> None:
    hook = TaskInfluence(*run, LOSS, hessian="exact", l2=1e-6, damping=50.0, progress=False)
    found = sensitivity_of(hook, tests, scales=(1e-9, 1.0))
    assert np.isnan(found.agreement[0]) and found.agreement[1] == pytest.approx(1)
    assert list(found.refused) == [found.values[0]] and "not positive definite" in found.refused[found.values[0]]
    with pytest.raises(InfluenceError, match="not positive definite"):
        sensitivity_of(TaskInfluence(*run, LOSS, hessian="exact", l2=1e-6, damping=1e-8, progress=False), tests)


def test_the_hook_is_left_as_it_is(run, hook, tests) -> None:
    before, kept = hook.score_matrix(tests)[1], hook.fitted()
    sensitivity_of(hook, tests, scales=[3.0])
    sensitivity_of(hook, tests, setting="δ", scales=[3.0])
    assert hook.fitted() is kept and torch.equal(hook.score_matrix(tests)[1], before)


def test_only_positive_scales_are_taken(hook, tests) -> None:
    with pytest.raises(ValueError, match="positive"):
        sensitivity_of(hook, tests, scales=[0.0, 1.0])


def test_the_picture_shows_figures_what_is_in_use_and_what_was_refused(tmp_path: Path) -> None:
    damping = Sensitivity(
        "damping", (0.1, 1.0, 10.0), 1.0, (float("nan"), 1.0, 0.5), (float("nan"), 0.7, 0.6), {0.1: "x"}
    )
    delta = Sensitivity("δ", (1.0, 2.0), 2.0, (0.2, -0.4), None, {})
    figure = plot_sensitivity([damping, delta], tmp_path / "sensitivity.png")
    left, right = figure.axes
    drawn = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_allclose(drawn["LDS against retraining"].get_ydata(), [np.nan, 0.7, 0.6])
    np.testing.assert_allclose(drawn["in use"].get_xdata(), [1, 1])
    np.testing.assert_allclose(drawn["refused"].get_xdata(), [0.1])
    assert left.get_xscale() == "log" and right.get_title(loc="left") == "Sensitivity to δ"
    assert right.get_ylim()[0] < -0.4 and right.get_ylim() == left.get_ylim()
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"rank correlation with the hook's own scores", "LDS against retraining", "in use", "refused"}
    assert imread(tmp_path / "sensitivity.png")[..., :3].std() > 0.05
    assert len(plot_sensitivity(delta).axes) == 1
