"""What influences promise, against re-optimisation: λ* without a task or a query sample.

The reference is written out for linear models (softmax and ridge regression) and solves both levels by Newton's method;
it shares nothing with the package.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from l2l_influence.bilevel import BilevelProblem, Task

from .toys import generator, randn, relative

FEATURES, CLASSES = 4, 3
PROXIMAL, L2 = 2.0, 1.0


class Softmax:
    """Softmax regression on ``FEATURES`` inputs: per-sample slopes and curvatures by the outputs."""

    classes = CLASSES

    @staticmethod
    def loss(lam, theta, x, y):
        return F.cross_entropy(x @ theta["head"], y, reduction="none")

    @staticmethod
    def slope(outputs, y):
        return outputs.softmax(-1) - F.one_hot(y, CLASSES)

    @staticmethod
    def curvature(outputs, y):
        p = outputs.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    @staticmethod
    def targets(x, head, seed):
        noise = -torch.log(-torch.log(torch.rand(*x.shape[:2], CLASSES, generator=generator(seed), dtype=x.dtype)))
        return (x @ head + noise).argmax(-1)


class Ridge:
    """Ridge regression with one output: Gauss–Newton is exact and λ* is linear algebra."""

    classes = 1

    @staticmethod
    def loss(lam, theta, x, y):
        return 0.5 * F.mse_loss((x @ theta["head"]).squeeze(-1), y, reduction="none")

    @staticmethod
    def slope(outputs, y):
        return outputs - y.unsqueeze(-1)

    @staticmethod
    def curvature(outputs, y):
        return torch.ones_like(outputs).unsqueeze(-1)

    @staticmethod
    def targets(x, head, seed):
        return (x @ head).squeeze(-1) + 0.3 * randn(seed, *x.shape[:2])


class World:
    """``count`` tasks around a common head, and λ* for any weights of tasks ``[T]`` and query samples ``[T, n]``."""

    def __init__(self, model, count=24, support=8, query=12):
        self.model = model
        heads = randn(0, 1, FEATURES, model.classes) + 0.7 * randn(1, count, FEATURES, model.classes)
        self.support_x, self.query_x = randn(2, count, support, FEATURES), randn(3, count, query, FEATURES)
        self.support_y = model.targets(self.support_x, heads, 4)
        self.query_y = model.targets(self.query_x, heads, 5)
        pairs = zip(self.support_x, self.support_y, self.query_x, self.query_y, strict=True)
        self.tasks = [Task((a, b), (c, d)) for a, b, c, d in pairs]
        self.task_weights = torch.ones(count, dtype=torch.float64)
        self.query_weights = torch.ones(count, query, dtype=torch.float64)
        self.problem = BilevelProblem(model.loss, model.loss, PROXIMAL, L2, inner_solver="dense", inner_tolerance=1e-11)
        self.lam = self.optimum()

    def optimum(self, task_weights=None, query_weights=None):
        """λ* with ‖D_λ L_Total‖ ≤ 1e-10, by Gauss–Newton steps."""
        tasks = self.task_weights if task_weights is None else task_weights
        queries = self.query_weights if query_weights is None else query_weights
        lam = torch.zeros(FEATURES * self.model.classes, dtype=torch.float64)
        for _ in range(300):
            slope, hessian = self._outer(lam, tasks, queries)
            if slope.norm() <= 1e-10:
                return lam
            lam = lam - torch.linalg.solve(hessian, slope)
        raise AssertionError("the reference did not converge")

    def _outer(self, lam, tasks, queries):
        theta, inner = self._inner(lam)
        slopes, curvatures = self._sums(theta, self.query_x, self.query_y, queries)
        z = PROXIMAL * torch.linalg.inv(inner)
        slope = torch.einsum("t,tqp,tq->p", tasks, z, slopes) + L2 * lam
        hessian = torch.einsum("t,tqp,tqr,trs->ps", tasks, z, curvatures, z) + L2 * torch.eye(len(lam)).to(lam)
        return slope, hessian

    def _inner(self, lam):
        """θ ``[T, Q]`` and H_in ``[T, Q, Q]``."""
        theta = lam.expand(len(self.tasks), -1)
        ones = torch.ones(self.support_x.shape[:2]).to(lam)
        for _ in range(50):
            slopes, curvatures = self._sums(theta, self.support_x, self.support_y, ones)
            slopes, curvatures = slopes + PROXIMAL * (theta - lam), curvatures + PROXIMAL * torch.eye(len(lam)).to(lam)
            if slopes.norm() <= 1e-12:
                return theta, curvatures
            theta = theta - torch.linalg.solve(curvatures, slopes)
        raise AssertionError("the reference's inner problems did not converge")

    def _sums(self, theta, x, y, w):
        """Gradient ``[T, Q]`` and Hessian ``[T, Q, Q]`` of Σ_j w_j ℓ_j; exact, the models being linear in θ."""
        outputs = x @ theta.view(len(theta), FEATURES, self.model.classes)
        slopes = torch.einsum("tn,tnf,tnc->tfc", w, x, self.model.slope(outputs, y))
        curvatures = torch.einsum("tn,tnf,tncd,tng->tfcgd", w, x, self.model.curvature(outputs, y), x)
        size = theta.shape[1]
        return slopes.reshape(-1, size), curvatures.reshape(-1, size, size)

    def named(self, lam):
        return {"head": lam.view(FEATURES, self.model.classes)}

    def without_task(self, k):
        weights = self.task_weights.clone()
        weights[k] = 0
        return self.optimum(task_weights=weights)

    def without_query(self, k, j):
        weights = self.query_weights.clone()
        weights[k, j] = 0
        return self.optimum(query_weights=weights)

    def task_influence(self, k, **options):
        return self.problem.task_influence(self.named(self.lam), self.tasks, k, "gauss-newton", **options)

    def query_influence(self, k, j):
        return self.problem.query_influence(self.named(self.lam), self.tasks, k, j, "gauss-newton")

    def removed(self, influence, level):
        return self.problem.remove(self.named(self.lam), influence, level)["head"].reshape(-1)


@pytest.fixture(scope="module")
def softmax():
    return World(Softmax)


@pytest.fixture(scope="module")
def ridge():
    return World(Ridge)


def cosine(a, b):
    return float(F.cosine_similarity(a, b, dim=0))


def test_the_reference_is_a_stationary_point_of_the_total_loss(softmax):
    """Checked by the package's own inner solutions and finite differences of L_Total."""

    def total(lam):
        terms = softmax.problem.at(softmax.named(lam), softmax.tasks).microbatches()
        return sum(float(at.outer_loss().sum()) for at in terms) + 0.5 * L2 * float(lam.square().sum())

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
        problem = BilevelProblem(Softmax.loss, Softmax.loss, PROXIMAL, L2, inner_solver=solver, inner_tolerance=1e-11)
        found = problem.task_influence(softmax.named(softmax.lam), softmax.tasks, 1, "gauss-newton")
        assert relative(found["head"], expected) < 1e-6
