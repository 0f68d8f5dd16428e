"""Inverses of the inner Hessian H_in = ∂_θθ L_I, by name. To add one, add an entry to ``INVERSES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ....errors import LossStructureError
from ...solvers import (
    CG,
    MINRES,
    ClosedForm,
    Dense,
    Invertible,
    LinearOperator,
    LinearSolver,
    MultipleOfIdentity,
    Neumann,
    Stored,
)
from ..base import InnerProblem
from .ekfac import EKFAC
from .gram import gauss_newton_rows, rows_nbytes

GRAM_LIMIT = 200
"""Up to this many outputs per task (n·C), the Gram matrix is the cheapest exact inverse."""

GRAM_BYTES = 2**29
"""Bytes that its rows may take for one task. The choice must not depend on which tasks share a batch."""

System = tuple[LinearOperator, LinearSolver]
"""The inner Hessian, and the solver for it."""

Inverse = Callable[[InnerProblem, Tensor, float, float], System]
"""``(problem, theta, delta, tolerance)`` to the inner Hessian at θ and a solver for it: a function, or an object with
settings."""


class InnerHessian(LinearOperator):
    """``∂_θθ Σ_j w_j ℓ_j + δI`` of each task at its θ, one row per task."""

    def __init__(self, problem: InnerProblem, theta: Tensor, delta: float, note: str = "") -> None:
        self.note, self.shift = note, delta
        self._problem, self._theta = problem, theta

    def matvec(self, v: Tensor) -> Tensor:
        problem = self._problem
        return problem.objective.hessian_theta(problem.lam, self._theta, problem.samples, v) + self.shift * v

    def for_many_products(self) -> LinearOperator:
        problem = self._problem
        try:
            gradient = problem.objective.linearise_theta(problem.lam, self._theta, problem.samples)
        except LossStructureError:  # a normalisation that can't be recomposed
            return self
        return _Linearised(gradient, self.shift, self.note)


class _Linearised(LinearOperator):
    """``J v + shift·v``, with products J that share one forward and backward pass."""

    def __init__(self, product: Callable[[Tensor], Tensor], shift: float, note: str) -> None:
        self.note, self.shift = note, shift
        self._product = product

    def matvec(self, v: Tensor) -> Tensor:
        return self._product(v).add_(v, alpha=self.shift)


def _gram(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    """The Gauss–Newton part of H_in, exactly."""
    operator = gauss_newton_rows(problem, theta).plus_identity(delta)
    operator.note = "gram"
    return operator, ClosedForm()


def _dense(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    return Stored(InnerHessian(problem, theta, delta), theta, "dense"), Dense(tolerance=max(tolerance, 1e-6))


def _identity(problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
    """H_in ≈ δI: dθ/dλ is that of a loss without curvature, as in first-order MAML."""
    return MultipleOfIdentity(delta, "identity"), ClosedForm()


@dataclass(frozen=True)
class Iterative:
    """All of H_in, by an iterative solver that needs only products.

    Args:
        solver: makes the solver for a tolerance.
        approximation: an inverse in closed form that preconditions the solver.
    """

    solver: Callable[..., LinearSolver]
    approximation: Inverse | None = None

    def __call__(self, problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
        if self.approximation is None:
            solver = self.solver(tolerance=tolerance)
            return InnerHessian(problem, theta, delta, solver.name), solver
        close, _ = self.approximation(problem, theta, delta, tolerance)
        solver = self.solver(tolerance=tolerance, preconditioner=_invertible(close))
        return InnerHessian(problem, theta, delta, f"{solver.name} ({close.note})"), solver


def _invertible(operator: LinearOperator) -> Invertible:
    if not isinstance(operator, Invertible):
        raise ValueError(
            f"{type(operator).__name__} has no closed-form inverse, so it cannot precondition a solver: use 'gram' or "
            "EKFAC(...) as the approximation"
        )
    return operator


_CG = partial(CG, max_iterations=1000)

INVERSES: dict[str, Inverse] = {
    "gram": _gram,
    "cg": Iterative(_CG),
    "cg+gram": Iterative(_CG, _gram),
    "cg+ekfac": Iterative(_CG, EKFAC()),
    "minres": Iterative(MINRES),
    "neumann": Iterative(Neumann),
    "neumann+ekfac": Iterative(Neumann, EKFAC()),
    "ekfac": EKFAC(),
    "dense": _dense,
    "identity": _identity,
}
"""All inverses, by the name that ``inner_solver`` takes."""


def pick(inverse: str | Inverse, problem: InnerProblem) -> Inverse:
    """The inverse of this name; ``"auto"`` is gram if a task's outputs can be seen and are few, otherwise cg.

    Raises:
        ValueError: there is no inverse of this name.
    """
    if not isinstance(inverse, str):
        return inverse
    if inverse == "auto":
        return _by_size(problem)
    if inverse not in INVERSES:
        raise ValueError(f"inner_solver must be 'auto' or one of {sorted(INVERSES)}, got {inverse!r}")
    return INVERSES[inverse]


@dataclass(frozen=True)
class Picked:
    """An inverse that was picked by size; its note says why."""

    name: str
    why: str

    def __call__(self, problem: InnerProblem, theta: Tensor, delta: float, tolerance: float) -> System:
        operator, solver = INVERSES[self.name](problem, theta, delta, tolerance)
        operator.note = f"{self.name} ({self.why})"
        return operator, solver


def _by_size(problem: InnerProblem) -> Picked:
    try:
        count = problem.objective.output_count(problem.lam, problem.start, problem.samples)
    except LossStructureError:
        return Picked("cg", "the loss hides the model's outputs, which gram needs")
    if count > GRAM_LIMIT:
        return Picked("cg", f"{count} outputs a task: too many for gram")
    size = rows_nbytes(problem, count)
    if size > GRAM_BYTES:
        return Picked("cg", f"{count} outputs a task, whose gram rows would take {size / 2**30:.1f} GiB")
    return Picked("gram", f"{count} outputs a task")
