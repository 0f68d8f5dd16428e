"""Linear predictions with squared errors: every quantity in closed form, and the limits of the proximal strength."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from l2l_influence.bilevel import BilevelProblem

from ..reference_problems.autograd import randn, relative
from ..reference_problems.closed_form import (
    EYE,
    HEAD,
    L2,
    SHARED,
    SIZE,
    SUPPORT,
    C,
    QuadraticProblem,
    make_tasks,
    squared,
)


@pytest.fixture(scope="module", params=[None, ["head"]], ids=["maml", "anil"])
def world(request):
    return QuadraticProblem(request.param)


def test_inner_solution_and_total_gradient(world):
    for task, formulas in zip(world.tasks, world.formulas, strict=True):
        solution = world.problem.solve_inner(world.lam, task)
        theta = torch.cat([*solution.theta.values()])
        v, u = randn(1, SIZE), randn(2, len(theta))
        assert relative(theta, formulas.theta) < 1e-10
        assert relative(solution.jvp(v), formulas.jacobian @ v) < 1e-10
        assert relative(solution.vjp(u), formulas.jacobian.T @ u) < 1e-10
        found = world.layout.ravel(world.problem.total_gradient(world.lam, task))
        assert relative(found, formulas.gradient) < 1e-9
    stationarity = sum(c * one.gradient for c, one in zip(C, world.formulas, strict=True)) + L2 * world.optimum
    assert stationarity.norm() < 1e-12


@pytest.mark.parametrize("kind", ["exact", "hessian", "gauss-newton"])
def test_all_curvatures_are_one(world, kind):
    """Nothing is left out where predictions are linear and losses quadratic."""
    found = world.problem.total_hessian(world.lam, world.tasks, kind, C).operator.matvec(EYE)
    assert relative(found, world.matrix - L2 * EYE) < 1e-9


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
def test_influences(world, kind):
    k, given = 1, (world.lam, world.tasks, 1)
    formulas = world.formulas[k]

    def expected(gradient: Tensor) -> Tensor:
        return -torch.linalg.solve(world.matrix, C[k] * gradient)

    found = world.problem.task_influence(*given, kind, C)
    assert relative(world.layout.ravel(found), expected(formulas.gradient)) < 1e-8
    for j in (0, 4):
        found = world.problem.query_influence(*given, j, kind, C)
        assert relative(world.layout.ravel(found), expected(formulas.query_gradient(j))) < 1e-8
        gradient = world.tasks[k].support_weights[j] * formulas.gradient_by_support(j)
        found = world.problem.support_influence(*given, j, kind, C)
        assert relative(world.layout.ravel(found), -expected(gradient)) < 1e-8  # the paper's sign: removal adds it


def test_resolved_support_influence(world):
    k, j = 2, 3
    weights = world.tasks[k].support_weights.clone()
    weights[j] = 0
    without = world.at(replace(world.tasks[k], support_weights=weights), world.optimum).gradient
    expected = -torch.linalg.solve(world.matrix, C[k] * (without - world.formulas[k].gradient))
    found = world.problem.support_influence(world.lam, world.tasks, k, j, "exact", C, removal="resolve")
    assert relative(world.layout.ravel(found), expected) < 1e-8


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
def test_leave_one_out_removal_is_exact(world, kind):
    """One Newton step from λ* on the other tasks' quadratic: ∇ = −c_k g_k there, with their own Hessian."""
    k = 1
    expected = world.solve([0.0 if i == k else c for i, c in enumerate(C)])
    removed, uncorrected = (
        world.problem.remove(
            world.lam, world.problem.task_influence(world.lam, world.tasks, k, kind, C, leave_one_out=corrected)
        )
        for corrected in (True, False)
    )
    assert (world.layout.ravel(removed) - expected).norm() < 1e-8
    assert (world.layout.ravel(uncorrected) - expected).norm() > 1e-3


# ---- limits of the proximal strength ---------------------------------------------------------------------------


class Limit:
    """One task of MAML at some λ, under any δ; ``support`` samples for the SIZE entries of θ."""

    def __init__(self, support: int = SUPPORT) -> None:
        self.task = make_tasks(support)[0]
        self.lam = {"shared": randn(1, SHARED), "head": randn(2, HEAD)}
        self.flat = torch.cat([*self.lam.values()])

    def problem(self, delta: float) -> BilevelProblem:
        return BilevelProblem(squared, squared, delta, L2, inner_solver="dense", inner_tolerance=1e-12)

    def gradient(self, delta: float) -> Tensor:
        return torch.cat([*self.problem(delta).total_gradient(self.lam, self.task).values()])

    def hessian(self, delta: float) -> Tensor:
        return self.problem(delta).total_hessian(self.lam, [self.task], "exact").operator.matvec(EYE)

    def jacobian(self, delta: float) -> Tensor:
        solution = self.problem(delta).solve_inner(self.lam, self.task)
        return torch.stack([solution.jvp(e) for e in EYE], dim=1)


def falls_tenfold(errors: list[float]) -> bool:
    return all(9 < larger / smaller < 11 for larger, smaller in zip(errors, errors[1:], strict=False))


def test_joint_training_is_the_limit_of_a_strong_proximal_term():
    """θ = λ + O(1/δ), so g and H tend to the plain gradient and Hessian of the query loss at λ."""
    limit = Limit()
    (x, y), w = limit.task.query, limit.task.query_weights
    plain = x.T @ (w * (x @ limit.flat - y)), x.T @ (w[:, None] * x)
    strengths = (1e3, 1e4, 1e5)
    assert falls_tenfold([float((limit.gradient(delta) - plain[0]).norm()) for delta in strengths])
    assert falls_tenfold([float((limit.hessian(delta) - plain[1]).norm()) for delta in strengths])
    assert falls_tenfold([float((limit.jacobian(delta) - EYE).norm()) for delta in strengths])
    assert relative(limit.gradient(1e5), plain[0]) < 1e-3
    assert relative(limit.hessian(1e5), plain[1]) < 1e-3


def test_nothing_depends_on_lambda_without_a_proximal_term():
    """The support set determines θ: dθ/dλ = δ (XᵀWX)⁻¹ + O(δ²), and so g = O(δ), H = O(δ²)."""
    limit, strengths = Limit(), (1e-3, 1e-4, 1e-5)
    (x, _), w = limit.task.support, limit.task.support_weights
    assert relative(limit.jacobian(1e-5) / 1e-5, torch.linalg.inv(x.T @ (w[:, None] * x))) < 1e-3
    assert falls_tenfold([float(limit.jacobian(delta).norm()) for delta in strengths])
    assert falls_tenfold([float(limit.gradient(delta).norm()) for delta in strengths])
    assert falls_tenfold([float(limit.hessian(delta).norm()) ** 0.5 for delta in strengths])


def test_what_the_support_set_leaves_open_stays_with_lambda():
    """With fewer samples than parameters dθ/dλ tends to the projection on the null space of X."""
    limit = Limit(support=SIZE - 2)
    x = limit.task.support[0]
    null = EYE - torch.linalg.pinv(x) @ x
    assert falls_tenfold([float((limit.jacobian(delta) - null).norm()) for delta in (1e-3, 1e-4, 1e-5)])
