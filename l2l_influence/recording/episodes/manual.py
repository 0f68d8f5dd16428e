"""Manual recording: episodes that the user enters by hand, because no recorder can see their loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...errors import TaskShapeError
from ...storage.fingerprints import row_digests
from ..tasksets.content import copied
from ..tasksets.info import TasksetInfo
from .clone_log import CloneLog, Forward
from .losses import Comparison
from .unserved import Pair, as_served


@dataclass(frozen=True)
class ManualEpisode:
    """One draw of a task that was trained on; see `Study.add_episode`."""

    support: Pair
    query: Pair
    lr: float
    steps: int
    first_order: bool = False
    key: int | None = None

    def __post_init__(self) -> None:
        _require_settings(self.lr, self.steps, self.key)
        _require_rows("support", self.support)
        _require_rows("query", self.query)
        _require_alike(self.support, self.query)

    def log(self, info: TasksetInfo) -> CloneLog:
        """The log that a clone would have left."""
        forwards = [_support(*self.support), _query(self.query[0], self.steps)]
        candidates = [as_served(self.support, self.query, info, self.key)]
        return CloneLog(forwards, candidates, self.steps, float(self.lr), self.first_order, trained=True)


def _support(x: Tensor, y: Tensor) -> Forward:
    return Forward(
        0, x.shape, digests=row_digests(x), matched=True, consumed=True, comparisons=[Comparison(None, copied(y), True)]
    )


def _query(x: Tensor, steps: int) -> Forward:
    return Forward(steps, x.shape, digests=row_digests(x), matched=True, used=True)


def _require_settings(lr: float, steps: int, key: int | None) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a positive number, got {lr}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps}")
    if key is not None and (not isinstance(key, int) or key < 0):
        raise ValueError(f"key must be None or an integer of at least 0 (negative ones name content), got {key}")


def _require_rows(name: str, pair: Pair) -> None:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise TaskShapeError(f"{name} must be a pair (x, y) of tensors, got {type(pair).__name__}")
    x, y = pair
    if x.dim() == 0 or x.numel() == 0 or x.shape[:1] != y.shape[:1]:
        raise TaskShapeError(
            f"{name}: x and y must have the same, non-zero number of rows, got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )


def _require_alike(support: Pair, query: Pair) -> None:
    for name, one, other in zip("xy", support, query, strict=True):
        if (one.shape[1:], one.dtype, one.device) != (other.shape[1:], other.dtype, other.device):
            raise TaskShapeError(
                f"rows of support and query must have the same shape, dtype and device, but {name} of the support set "
                f"has {one.dtype} rows of shape {tuple(one.shape[1:])} on {one.device}, and {name} of the query set "
                f"{other.dtype} rows of shape {tuple(other.shape[1:])} on {other.device}"
            )
