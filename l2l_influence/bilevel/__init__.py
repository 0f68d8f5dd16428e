"""Bilevel problems: inner solutions, total derivatives, solvers. Knows torch and nothing of learn2learn."""

from .functional import FunctionalModel
from .hessians import Sketch, Subsample
from .inner import Proximal, Unrolled, UnrolledWith
from .layout import Layout
from .loss import ModelLoss
from .problem import BilevelProblem, InnerSolution, TotalHessian
from .solvers import CG, Dense, Neumann, Solution, SolveReport
from .task import Task

__all__ = [
    "BilevelProblem",
    "CG",
    "Dense",
    "FunctionalModel",
    "InnerSolution",
    "Layout",
    "ModelLoss",
    "Neumann",
    "Proximal",
    "Sketch",
    "Solution",
    "SolveReport",
    "Subsample",
    "Task",
    "TotalHessian",
    "Unrolled",
    "UnrolledWith",
]
