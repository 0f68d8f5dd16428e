"""Kinds of total Hessian by the name that a user gives."""

from __future__ import annotations

from .base import Curvature
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
    """The curvature of that name; one with settings of its own, such as ``Sketch(samples=16)``, is taken as it is."""
    if isinstance(kind, Curvature):
        return kind
    if kind not in CURVATURES:
        raise ValueError(f"the total Hessian's kind must be one of {sorted(CURVATURES)}, not {kind!r}")
    return CURVATURES[kind]
