"""Kinds of total Hessian D²_λ L_Total (Def. 4.2), one per file, by the name that a user gives."""

from .base import Curvature, Subsets, TaskSum
from .kinds import CURVATURES, curvature
from .sketch import Sketch
from .subsample import Subsample

__all__ = ["CURVATURES", "Curvature", "Sketch", "Subsample", "Subsets", "TaskSum", "curvature"]
