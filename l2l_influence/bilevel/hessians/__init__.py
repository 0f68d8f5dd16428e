"""Kinds of total Hessian D²_λ L_Total (Def. 4.2), one a file, by the name that a user gives."""

from .base import Curvature, Groups, TaskSum
from .direct import Direct, DirectFirstOrder
from .exact import Exact, Hessian
from .gamma import Gamma
from .gauss_newton import GaussNewton
from .identity import Identity
from .sketch import Sketch

CURVATURES: dict[str, Curvature] = {
    "exact": Exact(),
    "hessian": Hessian(),
    "gauss-newton": GaussNewton(),
    "sketch": Sketch(),
    "gamma": Gamma(),
    "direct": Direct(),
    "direct-first-order": DirectFirstOrder(),
    "identity": Identity(),
}


def curvature(kind: str | Curvature) -> Curvature:
    """The curvature of that name; one with settings of its own, such as ``Sketch(draws=16)``, is taken as it is."""
    if isinstance(kind, Curvature):
        return kind
    if kind not in CURVATURES:
        raise ValueError(f"the total Hessian's kind must be one of {sorted(CURVATURES)}, not {kind!r}")
    return CURVATURES[kind]


__all__ = ["CURVATURES", "Curvature", "Groups", "Sketch", "TaskSum", "curvature"]
