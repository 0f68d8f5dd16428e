"""Kinds of total Hessian, by the name that a user gives."""

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
"""All kinds with their default settings."""


def curvature(kind: str | Curvature) -> Curvature:
    """The curvature of this name. An object with settings, such as ``Sketch(samples=16)``, is returned as it is.

    Raises:
        ValueError: there is no kind of this name.
    """
    if isinstance(kind, Curvature):
        return kind
    if kind not in CURVATURES:
        raise ValueError(f"the kind of the total Hessian must be one of {sorted(CURVATURES)}, got {kind!r}")
    return CURVATURES[kind]
