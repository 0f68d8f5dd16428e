"""Kinds of total Hessian D²_λ L_Total (Def. 4.2), one a file, by the name that a user gives."""

from .base import Curvature, OverTasks, ScaledIdentity
from .gamma import Gamma
from .gauss_newton import GaussNewton

CURVATURES: dict[str, Curvature] = {
    "gamma": Gamma(),
    "gauss-newton": GaussNewton(),
}


def curvature(kind: str) -> Curvature:
    """The curvature of that name."""
    if kind not in CURVATURES:
        raise ValueError(f"the total Hessian's kind must be one of {sorted(CURVATURES)}, not {kind!r}")
    return CURVATURES[kind]


__all__ = ["CURVATURES", "Curvature", "OverTasks", "ScaledIdentity", "curvature"]
