"""The mathematics of bilevel problems: inner solutions, total derivatives, linear solvers, influence functions.

Depends on torch alone, and knows nothing of learn2learn. Start with :class:`BilevelProblem` and :class:`Task`.
"""

from .functional import FunctionalModel
from .hessians import Sketch, Subsample
from .inner import (
    EKFAC,
    LearnedRates,
    LearnedTransforms,
    NoInner,
    PlainSteps,
    Proximal,
    StepRule,
    Unrolled,
    UnrolledWith,
)
from .layout import Layout
from .loss import ModelLoss, OutputLoss, SteppedLoss
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
    "NoInner",
    "OutputLoss",
    "PlainSteps",
    "Policy",
    "Proximal",
    "Sketch",
    "Solution",
    "SolveReport",
    "Stationarity",
    "StepRule",
    "SteppedLoss",
    "Subsample",
    "Task",
    "Unrolled",
    "UnrolledWith",
]
