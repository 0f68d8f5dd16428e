"""Inverses of the inner Hessian H_in = ∂_θθ L_I, by name. Adding one means adding a function to ``INVERSES``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...errors import LossStructureError
from ..solvers import CG, ClosedForm, Dense, LinearOperator, LinearSolver, LowRank, Stored
from .base import InnerProblem

GRAM_LIMIT = 200
"""Up to this many outputs a task (n·C), the Gram matrix is the cheapest exact inverse."""

System = tuple[LinearOperator, LinearSolver]

Inverse = Callable[[InnerProblem, Tensor, float, float], System]
"""``(problem, theta, delta, tolerance)``: the inner Hessian at θ, and what to solve with. A function, or an object with
settings of its own."""


class InnerHessian(LinearOperator):
    """``∂_θθ Σ_j w_j ℓ_j + δI`` of each task at its θ, one row a task."""

    def __init__(self, problem: InnerProblem, theta: Tensor, delta: float, note: str = "") -> None:
        self.note = note
        self._problem, self._theta, self._delta = problem, theta, delta

    def matvec(self, v: Tensor) -> Tensor:
        problem = self._problem
        return problem.objective.hessian_theta(problem.lam, self._theta, problem.samples, v) + self._delta * v


def _gram(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    rows = problem.objective.gauss_newton_factor(problem.lam, theta, problem.samples)
    return LowRank(rows, "gram").plus_identity(delta), ClosedForm()


def _cg(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    return InnerHessian(problem, theta, delta, "cg"), CG(tolerance=tolerance, max_iterations=1000)


def _dense(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    return Stored(InnerHessian(problem, theta, delta), theta, "dense"), Dense(tolerance=max(tolerance, 1e-6))


INVERSES: dict[str, Inverse] = {
    "gram": _gram,
    "cg": _cg,
    "dense": _dense,
}


def pick(inverse: str | Inverse, problem: InnerProblem) -> Inverse:
    """The inverse of that name; ``"auto"`` is gram where the outputs can be seen and are few, otherwise cg."""
    if not isinstance(inverse, str):
        return inverse
    name = _by_size(problem) if inverse == "auto" else inverse
    if name not in INVERSES:
        raise ValueError(f"inner_solver must be 'auto' or one of {sorted(INVERSES)}, not {name!r}")
    return INVERSES[name]


def _by_size(problem: InnerProblem) -> str:
    try:
        count = problem.objective.output_count(problem.lam, problem.start, problem.samples)
    except LossStructureError:
        return "cg"
    return "gram" if count <= GRAM_LIMIT else "cg"
