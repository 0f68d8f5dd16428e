"""Every error this package raises on purpose. Each message says what happened and what to do about it."""

from __future__ import annotations


class InfluenceError(Exception):
    """Base class of all errors of ``l2l_influence``."""


class NotConvergedError(InfluenceError):
    """An iterative solve missed its tolerance."""


class NegativeCurvatureError(InfluenceError):
    """A solver for positive definite systems met a direction of zero or negative curvature."""


class LossStructureError(InfluenceError):
    """A loss does not have the form that the chosen estimator needs."""


class UncoveredParameterError(InfluenceError):
    """A parameter cannot be treated by the chosen estimator."""


class TaskShapeError(InfluenceError, ValueError):
    """Task data, weights or vectors have shapes that do not fit together."""
