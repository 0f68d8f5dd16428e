"""Bilevel problems: inner solutions, total derivatives, solvers. Knows torch and nothing of learn2learn."""

from .functional import FunctionalModel
from .hessians import Sketch, Subsample
from .inner import EKFAC, LearnedRates, LearnedTransforms, PlainSteps, Proximal, StepRule, Unrolled, UnrolledWith
from .layout import Layout
from .loss import ModelLoss
from .problem import BilevelProblem, InnerSolution
from .solvers import CG, MINRES, Dense, Neumann, Policy, Solution, SolveReport
from .stationarity import Stationarity
from .task import Task
from .total_hessian import HessianOperator

__all__ = [
    "BilevelProblem",
    "CG",
    "Dense",
    "EKFAC",
    "FunctionalModel",
    "HessianOperator",
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
    "Unrolled",
    "UnrolledWith",
]
