"""What happens when a solve cannot be trusted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from ...errors import NegativeCurvatureError, NotConvergedError
from .base import LinearOperator, LinearSolver, OnUnconverged, Solution, SolveReport
from .lanczos import extreme_eigenvalues
from .minres import MINRES

OnIndefinite = Literal["raise", "damp", "minres"]

PRODUCTS = 30
"""Spent on estimating how negative a matrix is before it is damped."""

MARGIN = 2.0
"""Damping is this many times what the curvature seen calls for: there may be more negative curvature elsewhere."""

TRIES = 20
"""Damping at least doubles each time."""


@dataclass(frozen=True)
class Policy:
    """What to do when a solve cannot be trusted.

    Only the rows that cannot be trusted are solved again, each as if it were alone: a row is a system of its own (one
    inner problem a task), and its answer must not depend on what it was batched with.

    Args:
        on_indefinite: where a solver that needs a positive definite matrix meets zero or negative curvature:
            ``"raise"`` an error; ``"damp"``, with a warning: add to the diagonal of that row's matrix until only
            positive curvature is met; or ``"minres"``: solve the same system by :class:`~.minres.MINRES`, which gives
            the stationary point of an indefinite model and no minimum.
        on_unconverged: ``"raise"`` or ``"warn"``.

    Raises:
        ValueError: an unknown word.
    """

    on_indefinite: OnIndefinite = "raise"
    on_unconverged: OnUnconverged = "raise"

    def __post_init__(self) -> None:
        for name, words in (("on_indefinite", get_args(OnIndefinite)), ("on_unconverged", get_args(OnUnconverged))):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {list(words)}, not {getattr(self, name)!r}")

    def solve(self, operator: LinearOperator, solver: LinearSolver, b: Tensor, what: str) -> Solution[Tensor]:
        """``A_r x_r = b_r`` for each row of ``b``, ``[R, P]``, as well as the report says; ``what`` names the system.

        Raises:
            NegativeCurvatureError, NotConvergedError: see :func:`enforce`.
        """
        solution = solver.solve(operator, b)
        if solution.report.indefinite and self.on_indefinite == "damp":
            solution = _by_damping(operator, solver, b, solution)
        elif solution.report.indefinite and self.on_indefinite == "minres":
            solution = _by_minres(operator, b, solution)
        enforce(solution.report, what, self.on_unconverged)
        if bool(solution.report.damping.any()):
            _warn_of_damping(solution.report, what)
        return solution


def enforce(report: SolveReport, what: str, on_unconverged: OnUnconverged = "raise") -> None:
    """Raise (or warn) when a solve cannot be trusted.

    Raises:
        NegativeCurvatureError: the operator is not positive definite along a direction that the solver tried, and the
            solver needs it to be.
        NotConvergedError: the tolerance was missed and ``on_unconverged`` is ``"raise"``.
    """
    if report.indefinite:
        raise NegativeCurvatureError(
            f"{what}: {report.solver} met curvature {float(report.smallest_curvature.min()):.3g}, so the matrix is not "
            "positive definite and its inverse does not describe a minimum. Use a larger regulariser (proximal, l2 or "
            "damping), a positive semi-definite curvature ('gram', 'gauss-newton'), or train closer to a minimum; "
            'on_indefinite="damp" or "minres" goes on regardless, and says so'
        )
    if bool(report.converged.all()):
        return
    message = f"{what}: {report}. Allow more iterations, a larger tolerance, or a larger regulariser or damping"
    if on_unconverged == "raise":
        raise NotConvergedError(message)
    warnings.warn(message, stacklevel=3)


class Damped(LinearOperator):
    """``A_r + damping_r · I``, a damping of its own for each row, ``[R]``."""

    def __init__(self, operator: LinearOperator, damping: Tensor) -> None:
        self.note, self.shift = operator.note, operator.shift
        self._operator, self._damping = operator, damping.unsqueeze(-1)

    def matvec(self, v: Tensor) -> Tensor:
        return self._operator.matvec(v) + self._damping * v


def _by_damping(
    operator: LinearOperator, solver: LinearSolver, b: Tensor, solution: Solution[Tensor]
) -> Solution[Tensor]:
    """The refused rows with more and more on the diagonal; one that is refused in the end stays so."""
    plain = _without_preconditioner(solver)
    lowest, highest = extreme_eigenvalues(operator, b, PRODUCTS)
    least = torch.maximum(-MARGIN * lowest, torch.finfo(b.dtype).eps ** 0.5 * highest.abs())
    for _ in range(TRIES):
        report = solution.report
        if not report.indefinite:
            break
        damping = torch.maximum(MARGIN * (report.damping - report.smallest_curvature), least)
        again = plain.solve(Damped(operator, damping), _only(report.refused, b))
        solution = _put_in(solution, Solution(again.value, replace(again.report, damping=damping)))
    return solution


def _without_preconditioner(solver: LinearSolver) -> LinearSolver:
    """What is close to an indefinite A is far from A with enough on its diagonal: it would only slow a solver down."""
    return solver if solver.preconditioner is None else replace(cast(Any, solver), preconditioner=None)


def _by_minres(operator: LinearOperator, b: Tensor, solution: Solution[Tensor]) -> Solution[Tensor]:
    """The refused rows again, to the same tolerance."""
    report = solution.report
    return _put_in(solution, MINRES(report.tolerance).solve(operator, _only(report.refused, b)))


def _only(rows: Tensor, b: Tensor) -> Tensor:
    """``b`` with zeros elsewhere: operators want all of their rows, and solvers do nothing for zeros."""
    return torch.where(rows.unsqueeze(-1), b, 0.0)


def _put_in(solution: Solution[Tensor], again: Solution[Tensor]) -> Solution[Tensor]:
    """``solution`` with its refused rows from ``again``."""
    old, new = solution.report, again.report
    fields = ("converged", "refused", "residual", "smallest_curvature", "damping")
    merged: dict[str, Any] = {name: torch.where(old.refused, getattr(new, name), getattr(old, name)) for name in fields}
    same = old.solver.split(", then ")[-1] == new.solver
    solver = old.solver if same else f"{old.solver}, then {new.solver}"
    report = replace(old, solver=solver, iterations=old.iterations + new.iterations, **merged)
    return Solution(torch.where(old.refused.unsqueeze(-1), again.value, solution.value), report)


def _warn_of_damping(report: SolveReport, what: str) -> None:
    count = int((report.damping > 0).sum())
    warnings.warn(
        f"{what}: {count} of {len(report.damping)} matrices are not positive definite, so up to "
        f"{float(report.damping.max()):.3g} was added to their diagonals: the answers there are those of a larger "
        "regulariser",
        stacklevel=3,
    )
