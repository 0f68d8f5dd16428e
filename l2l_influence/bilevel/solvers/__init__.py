"""Linear solvers, one per file, behind one small interface (:mod:`.base`)."""

from .agreement import Agreement, agreement
from .base import Invertible, LinearOperator, LinearSolver, OnUnconverged, Solution, SolveReport
from .block_cg import BlockCG
from .cg import CG
from .closed_form import ClosedForm, MultipleOfIdentity
from .dense import Dense, Stored
from .factors import OuterProducts, SideBySide
from .gram import LowRank, LowRankOperator, LowRankPlusIdentity
from .minres import MINRES
from .neumann import Neumann
from .policy import OnIndefinite, Policy, enforce


def solver_for(operator: LinearOperator, tolerance: float) -> LinearSolver:
    """The default solver: the closed-form one if the operator knows its inverse, else CG."""
    return ClosedForm(tolerance) if isinstance(operator, Invertible) else CG(tolerance)


__all__ = [
    "Agreement",
    "BlockCG",
    "CG",
    "ClosedForm",
    "Dense",
    "LowRankOperator",
    "Invertible",
    "LinearOperator",
    "LinearSolver",
    "LowRank",
    "LowRankPlusIdentity",
    "MINRES",
    "MultipleOfIdentity",
    "Neumann",
    "OnIndefinite",
    "OnUnconverged",
    "OuterProducts",
    "Policy",
    "SideBySide",
    "Solution",
    "SolveReport",
    "Stored",
    "agreement",
    "enforce",
    "solver_for",
]
