"""Solutions θ_i(λ) of the inner problem: one interface (:mod:`.base`), one file a kind."""

from .base import InnerKind, InnerMap, InnerProblem, SecondDerivative
from .direct import Carried, Constant
from .proximal import Proximal, ProximalMap
from .unrolled import Unrolled, UnrolledMap

__all__ = [
    "Carried",
    "Constant",
    "InnerKind",
    "InnerMap",
    "InnerProblem",
    "Proximal",
    "ProximalMap",
    "SecondDerivative",
    "Unrolled",
    "UnrolledMap",
]
