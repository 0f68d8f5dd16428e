"""Linear solvers, one a file, behind one small interface (:mod:`.base`)."""

from .base import Invertible, LinearOperator, LinearSolver, Solution, SolveReport, enforce
from .cg import CG
from .closed_form import ClosedForm
from .dense import Dense, Stored
from .gram import LowRank, LowRankPlusIdentity
from .neumann import Neumann


def solver_for(operator: LinearOperator, tolerance: float) -> LinearSolver:
    """The solver to take when none was asked for: the exact one where the operator has one, else CG."""
    return ClosedForm(tolerance) if isinstance(operator, Invertible) else CG(tolerance=tolerance)


__all__ = [
    "CG",
    "ClosedForm",
    "Dense",
    "Invertible",
    "LinearOperator",
    "LinearSolver",
    "LowRank",
    "LowRankPlusIdentity",
    "Neumann",
    "Solution",
    "SolveReport",
    "Stored",
    "enforce",
    "solver_for",
]
