"""Measure how well scores and edits agree with retraining, and with known labels."""

from ..storage.outcomes import Outcome
from .diagnosis import Check, ContinuedOptimisation, Diagnosis
from .ground_truth.full_batch import FullBatchMAML
from .ground_truth.removals import leave_one_out, leave_subsets_out, most_harmful, random_subsets, stratified_subsets
from .ground_truth.retraining import Retrain
from .ground_truth.truth import GroundTruth, along_path, measure
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
    "GroundTruth",
    "Interval",
    "Outcome",
    "Retrain",
    "Sensitivity",
    "along_path",
    "auc",
    "ceiling",
    "cosine",
    "found_curve",
    "lds",
    "lds_difference",
    "lds_interval",
    "leave_one_out",
    "leave_subsets_out",
    "measure",
    "most_harmful",
    "pearson",
    "plot_sensitivity",
    "precision_at_k",
    "random_subsets",
    "relative_error",
    "reliability",
    "self_ranks",
    "sensitivity_of",
    "slope",
    "spearman",
    "stratified_subsets",
]
