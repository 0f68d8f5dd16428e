"""Policies for solves that cannot be trusted."""

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
"""Products that estimate how negative a matrix is, before it is damped."""

MARGIN = 2.0
"""Damping is this many times what the observed curvature requires: other directions may be more negative."""

TRIES = 20
"""Attempts at damping; each at least doubles it."""


@dataclass(frozen=True)
class Policy:
    """Decides what happens if a solve cannot be trusted.

    Only the rows that cannot be trusted are solved again, each on its own: a row is a separate system (the inner
    problem of one task), and its answer must not depend on the other rows of the batch.

    Args:
        on_indefinite: if a solver for positive definite systems meets zero or negative curvature: ``"raise"`` an error;
            ``"damp"``, with a warning: add to the diagonal of that row's matrix until only positive curvature is seen;
            or ``"minres"``: solve the same system by :class:`~.minres.MINRES`, which gives the stationary point of an
            indefinite model, and no minimum.
        on_unconverged: ``"raise"`` an error or ``"warn"`` if a solve misses its tolerance.

    Raises:
        ValueError: a setting is unknown.

    >>> Policy(on_indefinite="damp").on_unconverged
    'raise'
    >>> Policy(on_unconverged="ignore")
    Traceback (most recent call last):
    ValueError: on_unconverged must be one of ['raise', 'warn'], got 'ignore'
    """

    on_indefinite: OnIndefinite = "raise"
    on_unconverged: OnUnconverged = "raise"

    def __post_init__(self) -> None:
        for name, words in (("on_indefinite", get_args(OnIndefinite)), ("on_unconverged", get_args(OnUnconverged))):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {list(words)}, got {getattr(self, name)!r}")

    def solve(self, operator: LinearOperator, solver: LinearSolver, b: Tensor, what: str) -> Solution[Tensor]:
        """Solve ``A_r x_r = b_r`` for each row of ``b``, ``[R, P]``, and apply the policy.

        Args:
            what: what messages call the system.

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
    """Raise an error, or warn, if a solve cannot be trusted.

    Raises:
        NegativeCurvatureError: the solver needs a positive definite matrix, and met a direction of zero or negative
            curvature.
        NotConvergedError: the tolerance was missed and ``on_unconverged`` is ``"raise"``.
    """
    if report.indefinite:
        raise NegativeCurvatureError(
            f"{what}: {report.solver} met curvature {float(report.smallest_curvature.min()):.3g}, so the matrix is not "
            "positive definite and its inverse does not describe a minimum. Use a larger regulariser (proximal, l2 or "
            "damping), a positive semi-definite curvature ('gram', 'gauss-newton'), or train closer to a minimum; "
            'or continue with on_indefinite="damp" or "minres"'
        )
    if bool(report.converged.all()):
        return
    message = f"{what}: {report}. Allow more iterations, a larger tolerance, or a larger regulariser or damping"
    if on_unconverged == "raise":
        raise NotConvergedError(message)
    warnings.warn(message, stacklevel=3)


class Damped(LinearOperator):
    """``A_r + damping_r · I``, with a damping for each row, ``[R]``."""

    def __init__(self, operator: LinearOperator, damping: Tensor) -> None:
        self.note, self.shift = operator.note, operator.shift
        self._operator, self._damping = operator, damping.unsqueeze(-1)

    def matvec(self, v: Tensor) -> Tensor:
        return self._operator.matvec(v) + self._damping * v


def _by_damping(
    operator: LinearOperator, solver: LinearSolver, b: Tensor, solution: Solution[Tensor]
) -> Solution[Tensor]:
    """Solve the refused rows with increasing damping; a row that is refused each time stays refused."""
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
    """The solver without a preconditioner: one that is close to an indefinite A is far from A plus enough damping."""
    return solver if solver.preconditioner is None else replace(cast(Any, solver), preconditioner=None)


def _by_minres(operator: LinearOperator, b: Tensor, solution: Solution[Tensor]) -> Solution[Tensor]:
    """Solve the refused rows again, to the same tolerance."""
    report = solution.report
    return _put_in(solution, MINRES(report.tolerance).solve(operator, _only(report.refused, b)))


def _only(rows: Tensor, b: Tensor) -> Tensor:
    """``b`` in these rows, 0 in the others: operators take all of their rows, and solvers do nothing for zeros."""
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
        f"{float(report.damping.max()):.3g} was added to their diagonals: their solutions are those of a problem with "
        "a larger regulariser",
        stacklevel=3,
    )
