"""Influence functions: the implicit function theorem at λ, with a model of the outer curvature."""

from .estimator import Implicit, ImplicitFit
from .system import RELATIVE_DAMPING, OuterSystem

__all__ = ["RELATIVE_DAMPING", "Implicit", "ImplicitFit", "OuterSystem"]
