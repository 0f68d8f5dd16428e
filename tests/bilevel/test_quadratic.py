"""Linear predictions with squared errors: every quantity in closed form, and the limits of the proximal strength.

Predictions are x·θ̃, where θ̃ is λ with the adapted entries replaced by θ. E (Q × P) picks the adapted entries,
K = I − EᵀE keeps the others. X, W, y are inputs, weights and targets of the support set, X', W', y' of the query set.

    ∂_θ L_I = E Xᵀ W (X (K λ + Eᵀ θ) − y) + δ (θ − E λ) = 0    so, with  A = E Xᵀ W X Eᵀ + δ I,
    θ       = A⁻¹ (E Xᵀ W (y − X K λ) + δ E λ),    dθ/dλ = J = A⁻¹ (δ E − E Xᵀ W X K),
    θ̃       = K λ + Eᵀ θ,                          dθ̃/dλ = T = K + Eᵀ J,
    L_O     = ½ r'ᵀ W' r',  r' = X' θ̃ − y',        g = Tᵀ X'ᵀ W' r',    H = Tᵀ X'ᵀ W' X' T.

T does not depend on λ, so H is the Hessian, all of it. The total gradient of query sample j is w'_j Tᵀ x'_j r'_j. For
the weight of a support sample x, y with residual r = x·θ̃ − y, differentiate A θ = ... and A J = ... by w:

    dθ/dw = −A⁻¹ E x r,    dJ/dw = −A⁻¹ E x (xᵀ T),    dg/dw = (Eᵀ dJ/dw)ᵀ X'ᵀ W' r' + Tᵀ X'ᵀ W' X' Eᵀ dθ/dw.

The gradient of L_Total is affine in λ: λ* solves (l2 I + Σ c_i H_i) λ = −Σ c_i g_i(λ = 0), with any tasks left out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from l2l_influence.bilevel import BilevelProblem, Layout, Task

from .toys import randn, relative

SHARED, HEAD, TASKS, SUPPORT, QUERY = 2, 3, 4, 6, 8
SIZE = SHARED + HEAD
DELTA, L2 = 1.5, 0.4
C = [1.0, 2.0, 0.5, 1.5]
EYE = torch.eye(SIZE, dtype=torch.float64)


def squared(lam, theta, x, y):
    whole = {**lam, **theta}
    return 0.5 * torch.nn.functional.mse_loss(x @ torch.cat([whole["shared"], whole["head"]]), y, reduction="none")


def make_tasks(support: int = SUPPORT) -> list[Task]:
    def pair(seed, n):
        x = randn(seed, n, SIZE)
        return x, x @ (randn(0, SIZE) + 0.5 * randn(seed % 10, SIZE)) + 0.3 * randn(seed + 1, n)

    def weights(seed, n):
        return 0.5 + randn(seed, n).abs()

    sizes = ((100 + i, 200 + i) for i in range(TASKS))
    return [Task(pair(a, support), pair(b, QUERY), weights(a, support), weights(b, QUERY)) for a, b in sizes]


class Formulas:
    """One task's quantities at λ, by the formulas above."""

    def __init__(self, task: Task, lam: Tensor, adapted: Tensor, delta: float) -> None:
        (x, y), w = task.support, task.support_weights
        (self.query_x, query_y), self.query_w = task.query, task.query_weights
        self.e, keep = EYE[adapted], torch.diag((~adapted).double())
        self.a = self.e @ x.T @ (w[:, None] * x) @ self.e.T + delta * torch.eye(len(self.e)).double()
        self.theta = torch.linalg.solve(self.a, self.e @ x.T @ (w * (y - x @ keep @ lam)) + delta * self.e @ lam)
        self.jacobian = torch.linalg.solve(self.a, delta * self.e - self.e @ x.T @ (w[:, None] * x) @ keep)
        self.t = keep + self.e.T @ self.jacobian
        self.adapted = keep @ lam + self.e.T @ self.theta
        self.support_x, self.residual = x, x @ self.adapted - y
        self.query_residual = self.query_x @ self.adapted - query_y
        self.slope = self.query_x.T @ (self.query_w * self.query_residual)
        self.curvature = self.query_x.T @ (self.query_w[:, None] * self.query_x)
        self.gradient, self.hessian = self.t.T @ self.slope, self.t.T @ self.curvature @ self.t

    def query_gradient(self, j: int) -> Tensor:
        return self.query_w[j] * self.query_residual[j] * self.t.T @ self.query_x[j]

    def gradient_by_support(self, j: int) -> Tensor:
        """dg/dw_j."""
        x = self.support_x[j]
        into = -torch.linalg.solve(self.a, self.e @ x)
        theta, jacobian = into * self.residual[j], torch.outer(into, x @ self.t)
        return (self.e.T @ jacobian).T @ self.slope + self.t.T @ self.curvature @ self.e.T @ theta


class World:
    """The tasks, their formulas at λ*, and the package's problem there."""

    def __init__(self, theta_keys: list[str] | None) -> None:
        self.tasks = make_tasks()
        self.mask = torch.tensor([theta_keys is None] * SHARED + [True] * HEAD)
        self.optimum = self.solve(C)
        self.formulas = [self.at(task, self.optimum) for task in self.tasks]
        self.layout = Layout({"shared": EYE[0, :SHARED], "head": EYE[0, SHARED:]})
        self.lam = self.layout.unravel(self.optimum)
        self.problem = BilevelProblem(
            squared, squared, DELTA, L2, theta_keys, inner_solver="dense", inner_tolerance=1e-12
        )
        self.matrix = L2 * EYE + sum(c * one.hessian for c, one in zip(C, self.formulas, strict=True))

    def at(self, task: Task, lam: Tensor) -> Formulas:
        return Formulas(task, lam, self.mask, DELTA)

    def solve(self, weights: list[float]) -> Tensor:
        """λ* for these task weights; the gradient is affine in λ."""
        zero = [self.at(task, torch.zeros(SIZE).double()) for task in self.tasks]
        matrix = L2 * EYE + sum(c * one.hessian for c, one in zip(weights, zero, strict=True))
        return torch.linalg.solve(matrix, -sum(c * one.gradient for c, one in zip(weights, zero, strict=True)))


@pytest.fixture(scope="module", params=[None, ["head"]], ids=["maml", "anil"])
def world(request):
    return World(request.param)


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
