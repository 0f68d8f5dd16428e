"""Linear solvers, one a file, behind one small interface (:mod:`.base`)."""

from .base import LinearOperator, LinearSolver, Solution, SolveReport, enforce
from .cg import CG
from .dense import Dense, Stored
from .gram import Gram, LowRank, LowRankPlusIdentity
from .neumann import Neumann


def solver_for(operator: LinearOperator, tolerance: float) -> LinearSolver:
    """The solver to take when none was asked for: the exact one where the operator has one, else CG."""
    return Gram(tolerance) if isinstance(operator, LowRankPlusIdentity) else CG(tolerance=tolerance)


__all__ = [
    "CG",
    "Dense",
    "Gram",
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
