"""What scores are worth: measured against training again."""

from ..storage.outcomes import Outcome
from .diagnosis import Check, ContinuedOptimisation, Diagnosis
from .ground_truth.full_batch import FullBatchMAML
from .ground_truth.removals import leave_groups_out, leave_one_out, most_harmful, random_groups, random_subsets
from .ground_truth.retraining import Retrain
from .ground_truth.truth import Truth, along_path, measure
from .intervals import Interval, ceiling, lds_difference, lds_interval, reliability
from .metrics import (
    auc,
    cosine,
    found_curve,
    lds,
    pearson,
    precision_at_k,
    relative_error,
    self_ranks,
    slope,
    spearman,
)
from .sensitivity import Sensitivity, plot_sensitivity, sensitivity_of

__all__ = [
    "Check",
    "ContinuedOptimisation",
    "Diagnosis",
    "FullBatchMAML",
    "Interval",
    "Outcome",
    "Retrain",
    "Sensitivity",
    "Truth",
    "along_path",
    "auc",
    "ceiling",
    "cosine",
    "found_curve",
    "lds",
    "lds_difference",
    "lds_interval",
    "leave_groups_out",
    "leave_one_out",
    "measure",
    "most_harmful",
    "pearson",
    "plot_sensitivity",
    "precision_at_k",
    "random_groups",
    "random_subsets",
    "relative_error",
    "reliability",
    "self_ranks",
    "sensitivity_of",
    "slope",
    "spearman",
]
