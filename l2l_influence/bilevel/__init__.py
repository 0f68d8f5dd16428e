"""Bilevel problems: inner solutions, total derivatives, solvers. Knows torch and nothing of learn2learn."""

from .functional import FunctionalModel
from .hessians import Sketch, Subsample
from .inner import EKFAC, LearnedRates, LearnedTransforms, PlainSteps, Proximal, StepRule, Unrolled, UnrolledWith
from .layout import Layout
from .loss import ModelLoss
from .problem import BilevelProblem, InnerSolution, TotalHessian
from .solvers import CG, MINRES, Dense, Neumann, Policy, Solution, SolveReport
from .stationarity import Stationarity
from .task import Task

__all__ = [
    "BilevelProblem",
    "CG",
    "Dense",
    "EKFAC",
    "FunctionalModel",
    "InnerSolution",
    "Layout",
    "LearnedRates",
    "LearnedTransforms",
    "MINRES",
    "ModelLoss",
    "Neumann",
    "PlainSteps",
    "Policy",
    "Proximal",
    "Sketch",
    "Solution",
    "SolveReport",
    "Stationarity",
    "StepRule",
    "Subsample",
    "Task",
    "TotalHessian",
    "Unrolled",
    "UnrolledWith",
]
