"""Estimators: the ways to estimate an item's effect, siblings behind one interface (:mod:`.base`).

Importing this package makes all of them known by name in :data:`ESTIMATORS`.
"""

from .ascent import AscentSteps
from .base import ESTIMATORS, Estimator, FittedEstimator
from .cosine_similarity import CosineSimilarity
from .directions import DirectionalFit, Directions
from .first_order import FirstOrder
from .gradient_norm import GradientNorm
from .gradient_similarity import GradientSimilarity
from .implicit import Implicit, ImplicitFit
from .own_loss import OwnLoss
from .projected_gradients import ProjectedGradients
from .random_scores import RandomScores
from .single_level_ekfac import SingleLevelEKFAC
from .tracin import TracIn

__all__ = [
    "ESTIMATORS",
    "AscentSteps",
    "CosineSimilarity",
    "DirectionalFit",
    "Directions",
    "Estimator",
    "FirstOrder",
    "FittedEstimator",
    "GradientNorm",
    "GradientSimilarity",
    "Implicit",
    "ImplicitFit",
    "OwnLoss",
    "ProjectedGradients",
    "RandomScores",
    "SingleLevelEKFAC",
    "TracIn",
]
