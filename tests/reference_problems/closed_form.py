"""Problems whose quantities are known in closed form, or by Newton's method on formulas written out.

:class:`QuadraticProblem`: linear predictions with squared errors.

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

:class:`ConvexProblem`: linear models (softmax and ridge regression), for which both levels are solved by Newton's
method. Neither shares anything with the package but :class:`Layout`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from l2l_influence.bilevel import BilevelProblem, Layout, Task

from .autograd import generator, randn

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


class QuadraticProblem:
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


# ---- softmax and ridge regression ---------------------------------------------------------------------------------

FEATURES, CLASSES = 4, 3
CONVEX_DELTA, CONVEX_L2 = 2.0, 1.0


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


class ConvexProblem:
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
        self.problem = BilevelProblem(
            model.loss, model.loss, CONVEX_DELTA, CONVEX_L2, inner_solver="dense", inner_tolerance=1e-11
        )
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
        z = CONVEX_DELTA * torch.linalg.inv(inner)
        slope = torch.einsum("t,tqp,tq->p", tasks, z, slopes) + CONVEX_L2 * lam
        hessian = torch.einsum("t,tqp,tqr,trs->ps", tasks, z, curvatures, z) + CONVEX_L2 * torch.eye(len(lam)).to(lam)
        return slope, hessian

    def _inner(self, lam):
        """θ ``[T, Q]`` and H_in ``[T, Q, Q]``."""
        theta = lam.expand(len(self.tasks), -1)
        ones = torch.ones(self.support_x.shape[:2]).to(lam)
        for _ in range(50):
            slopes, curvatures = self._sums(theta, self.support_x, self.support_y, ones)
            slopes, curvatures = (
                slopes + CONVEX_DELTA * (theta - lam),
                curvatures + CONVEX_DELTA * torch.eye(len(lam)).to(lam),
            )
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
