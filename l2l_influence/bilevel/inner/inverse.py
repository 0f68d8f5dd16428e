"""Inverses of the inner Hessian H_in = ∂_θθ L_I, by name. Adding one means adding a function to ``INVERSES``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...errors import LossStructureError
from ..solvers import CG, Dense, Gram, LinearOperator, LinearSolver, LowRank, Stored
from .base import InnerProblem

GRAM_LIMIT = 200
"""Up to this many outputs a task (n·C), the Gram matrix is the cheapest exact inverse."""

System = tuple[LinearOperator, LinearSolver]


class InnerHessian(LinearOperator):
    """``∂_θθ Σ_j w_j ℓ_j + δI`` of each task at its θ, one row a task."""

    def __init__(self, problem: InnerProblem, theta: Tensor, delta: float) -> None:
        self._problem, self._theta, self._delta = problem, theta, delta

    def matvec(self, v: Tensor) -> Tensor:
        problem = self._problem
        return problem.objective.hessian_theta(problem.lam, self._theta, problem.samples, v) + self._delta * v


def _gram(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    rows = problem.objective.gauss_newton_factor(problem.lam, theta, problem.samples)
    return LowRank(rows).plus_identity(delta), Gram()


def _cg(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    return InnerHessian(problem, theta, delta), CG(tolerance=tolerance, max_iterations=1000)


def _dense(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    return Stored(InnerHessian(problem, theta, delta), theta), Dense(tolerance=max(tolerance, 1e-6))


INVERSES: dict[str, Callable[[InnerProblem, Tensor, float, float], System]] = {
    "gram": _gram,
    "cg": _cg,
    "dense": _dense,
}


def pick(name: str, problem: InnerProblem) -> str:
    """Resolve ``"auto"``: gram where the outputs can be seen and are few, otherwise cg."""
    if name != "auto":
        if name not in INVERSES:
            raise ValueError(f"inner_solver must be 'auto' or one of {sorted(INVERSES)}, not {name!r}")
        return name
    try:
        count = problem.objective.output_count(problem.lam, problem.start, problem.samples)
    except LossStructureError:
        return "cg"
    return "gram" if count <= GRAM_LIMIT else "cg"
