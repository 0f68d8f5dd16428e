"""What scores are worth: measured against training again."""

from .full_batch import FullBatchMAML
from .metrics import auc, found_curve, lds, pearson, precision_at_k, slope, spearman
from .retrain import Removals, measure_removals, random_groups

__all__ = [
    "FullBatchMAML",
    "Removals",
    "auc",
    "found_curve",
    "lds",
    "measure_removals",
    "pearson",
    "precision_at_k",
    "random_groups",
    "slope",
    "spearman",
]
