"""Solutions θ_i(λ) of the inner problem: one interface (:mod:`.base`), one file a kind."""

from .base import InnerKind, InnerMap, InnerProblem
from .proximal import Proximal, ProximalMap
from .unrolled import Unrolled, UnrolledMap

__all__ = ["InnerKind", "InnerMap", "InnerProblem", "Proximal", "ProximalMap", "Unrolled", "UnrolledMap"]
