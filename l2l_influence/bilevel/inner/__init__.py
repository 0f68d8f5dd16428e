"""Solutions θ_i(λ) of the inner problem: one interface (:mod:`.base`), and one file per kind."""

from .base import InnerKind, InnerMap, InnerProblem, SecondDerivative
from .direct import ApproximateJacobian, FixedJacobian, IdentityJacobian, NoInner, StartMap, ZeroJacobian
from .inverses.ekfac import EKFAC
from .inverses.inverse import Inverse
from .proximal import Proximal, ProximalMap
from .steps.rules import LearnedRates, LearnedTransforms, PlainSteps, Step, StepRule
from .steps.stateful import StatefulMap, UnrolledWith
from .steps.steps import StepsMap
from .steps.unrolled import Unrolled, UnrolledMap

__all__ = [
    "EKFAC",
    "IdentityJacobian",
    "ZeroJacobian",
    "InnerKind",
    "InnerMap",
    "InnerProblem",
    "Inverse",
    "LearnedRates",
    "LearnedTransforms",
    "NoInner",
    "PlainSteps",
    "Proximal",
    "ProximalMap",
    "FixedJacobian",
    "SecondDerivative",
    "ApproximateJacobian",
    "StartMap",
    "StatefulMap",
    "Step",
    "StepRule",
    "StepsMap",
    "Unrolled",
    "UnrolledMap",
    "UnrolledWith",
]
