"""The hooks: fronts that join a recorded run, a kind of items and an estimator.

:class:`~l2l_influence.hooks.hook.EstimatorHook` says what all of them take,
:class:`~l2l_influence.hooks.influence.Influence` what can be asked about items.
"""

from .group import GroupInfluence
from .hook import EstimatorHook, Hook
from .influence import Influence
from .samples import QueryInfluence, SupportInfluence
from .task import DirectInfluence, TaskInfluence
from .total import TotalGradient, TotalHessian

__all__ = [
    "DirectInfluence",
    "EstimatorHook",
    "GroupInfluence",
    "Hook",
    "Influence",
    "QueryInfluence",
    "SupportInfluence",
    "TaskInfluence",
    "TotalGradient",
    "TotalHessian",
]
