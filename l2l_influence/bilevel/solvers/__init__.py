"""Linear solvers, one a file, behind one small interface (:mod:`.base`)."""

from .base import LinearOperator, LinearSolver, Shifted, Solution, SolveReport, enforce
from .cg import CG
from .dense import Dense
from .gram import Gram, LowRankPlusIdentity
from .neumann import Neumann

__all__ = [
    "CG",
    "Dense",
    "Gram",
    "LinearOperator",
    "LinearSolver",
    "LowRankPlusIdentity",
    "Neumann",
    "Shifted",
    "Solution",
    "SolveReport",
    "enforce",
]
