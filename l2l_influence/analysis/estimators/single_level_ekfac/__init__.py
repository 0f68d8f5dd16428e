"""Influence by EK-FAC as for one ordinary model, without an inner problem."""

from .estimator import SingleLevelEKFAC

__all__ = ["SingleLevelEKFAC"]
