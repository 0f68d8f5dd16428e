"""λ* without a task or a query sample, against re-optimisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from l2l_influence.bilevel import BilevelProblem

from ..reference_problems.autograd import relative
from ..reference_problems.closed_form import CONVEX_DELTA, CONVEX_L2, ConvexProblem, Ridge, Softmax


@pytest.fixture(scope="module")
def softmax():
    return ConvexProblem(Softmax)


@pytest.fixture(scope="module")
def ridge():
    return ConvexProblem(Ridge)


def cosine(a, b):
    return float(F.cosine_similarity(a, b, dim=0))


def test_the_reference_is_a_stationary_point_of_the_total_loss(softmax):
    """Checked by the package's own inner solutions and finite differences of L_Total."""

    def total(lam):
        terms = softmax.problem.at(softmax.named(lam), softmax.tasks).microbatches()
        return sum(float(at.outer_loss().sum()) for at in terms) + 0.5 * CONVEX_L2 * float(lam.square().sum())

    step = 1e-4
    for e in torch.eye(len(softmax.lam), dtype=torch.float64)[:4]:
        assert abs(total(softmax.lam + step * e) - total(softmax.lam - step * e)) / (2 * step) < 1e-6
        assert total(softmax.lam + 0.1 * e) > total(softmax.lam)


@pytest.mark.parametrize("k", range(8))
def test_removing_a_task_moves_lambda_where_retraining_does(softmax, k):
    expected = softmax.without_task(k) - softmax.lam
    found = softmax.removed(softmax.task_influence(k), "task") - softmax.lam
    assert cosine(found, expected) > 0.99
    assert relative(found, expected) < 0.25  # first order, with Gauss–Newton curvature


@pytest.mark.parametrize(("k", "j"), [(0, 0), (3, 5), (11, 11), (-1, -2)])
def test_removing_a_query_sample_moves_lambda_where_retraining_does(softmax, k, j):
    expected = softmax.without_query(k, j) - softmax.lam
    found = softmax.removed(softmax.query_influence(k, j), "query") - softmax.lam
    assert cosine(found, expected) > 0.99
    assert relative(found, expected) < 0.2


@pytest.mark.parametrize("level", ["task", "query"])
def test_the_sign_of_removal_is_the_one_that_approaches_retraining(softmax, level):
    influence = softmax.task_influence(2) if level == "task" else softmax.query_influence(2, 3)
    expected = softmax.without_task(2) if level == "task" else softmax.without_query(2, 3)
    stay = (softmax.lam - expected).norm()
    assert (softmax.removed(influence, level) - expected).norm() < 0.3 * stay
    wrong = {key: -value for key, value in influence.items()}
    assert (softmax.removed(wrong, level) - expected).norm() > 1.5 * stay


def test_remove_adds_the_influence_of_a_support_sample_and_subtracts_the_others(softmax):
    lam, influence = softmax.named(softmax.lam), softmax.task_influence(0)
    kept = {key: value.clone() for key, value in lam.items()}
    for level, sign in (("task", -1), ("query", -1), ("support", 1)):
        found = softmax.problem.remove(lam, influence, level)
        assert torch.equal(found["head"], lam["head"] + sign * influence["head"])
    assert torch.equal(lam["head"], kept["head"])
    with pytest.raises(ValueError, match="level"):
        softmax.problem.remove(lam, influence, "tasks")


@pytest.mark.parametrize("k", [0, 7, 23])
def test_ridge_task_influence_is_the_derivative_by_the_tasks_weight(ridge, k):
    """Quadratic losses: Gauss–Newton is the Hessian, so the theorem must hold to rounding."""
    ends = []
    for epsilon in (1e-4, -1e-4):
        weights = ridge.task_weights.clone()
        weights[k] += epsilon
        ends.append(ridge.optimum(task_weights=weights))
    expected = (ends[0] - ends[1]) / 2e-4
    assert relative(ridge.task_influence(k)["head"].reshape(-1), expected) < 1e-5


@pytest.mark.parametrize(("k", "j"), [(0, 0), (5, 11)])
def test_ridge_query_influence_is_the_derivative_by_the_samples_weight(ridge, k, j):
    ends = []
    for epsilon in (1e-4, -1e-4):
        weights = ridge.query_weights.clone()
        weights[k, j] += epsilon
        ends.append(ridge.optimum(query_weights=weights))
    expected = (ends[0] - ends[1]) / 2e-4
    assert relative(ridge.query_influence(k, j)["head"].reshape(-1), expected) < 1e-5


def test_the_influence_of_a_task_that_was_drawn_often_is_that_of_all_its_draws(ridge):
    """By the *relative* weight: removal then takes out all draws at once."""
    weights = ridge.task_weights.clone()
    weights[4] = 3
    lam, ends = ridge.optimum(task_weights=weights), []
    for factor in (1 + 1e-4, 1 - 1e-4):
        varied = weights.clone()
        varied[4] *= factor
        ends.append(ridge.optimum(task_weights=varied))
    found = ridge.problem.task_influence(ridge.named(lam), ridge.tasks, 4, "gauss-newton", weights)
    assert relative(found["head"].reshape(-1), (ends[0] - ends[1]) / 2e-4) < 1e-5


def test_the_influences_of_a_tasks_query_samples_sum_to_the_tasks(softmax):
    parts = [softmax.query_influence(6, j)["head"] for j in range(12)]
    assert relative(sum(parts), softmax.task_influence(6)["head"]) < 1e-6


def test_influences_do_not_depend_on_the_inner_inverse(softmax):
    """Outputs linear in θ: the Gram inverse, CG and the dense one are one matrix."""
    expected = softmax.task_influence(1)["head"]
    for solver in ("gram", "cg", "auto"):
        problem = BilevelProblem(
            Softmax.loss, Softmax.loss, CONVEX_DELTA, CONVEX_L2, inner_solver=solver, inner_tolerance=1e-11
        )
        found = problem.task_influence(softmax.named(softmax.lam), softmax.tasks, 1, "gauss-newton")
        assert relative(found["head"], expected) < 1e-6
