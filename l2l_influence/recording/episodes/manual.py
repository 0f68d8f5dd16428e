"""Episodes that nobody watched, entered as they are told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...errors import TaskShapeError
from ...storage.fingerprints import row_digests
from ..interception.journal import journal
from ..recorder import Recording
from ..tasksets.content import copied
from .episode import Episode, Forward, Track
from .losses import Comparison
from .unserved import Pair, as_served


@dataclass(frozen=True)
class ToldEpisode:
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


def tell(recording: Recording, told: ToldEpisode) -> None:
    """Enter an episode into the recording of its learner."""
    journal.catch_up()  # in order with what was seen
    forwards = [_support(*told.support), _query(told.query[0], told.steps)]
    candidates = [as_served(told.support, told.query, recording.own_card, told.key)]
    track = Track(forwards, candidates, told.steps, float(told.lr), told.first_order, trained=True)
    recording.add(Episode([track]))


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
        raise ValueError(f"steps must be a whole number, 1 or more, got {steps}")
    if key is not None and (not isinstance(key, int) or key < 0):
        raise ValueError(f"key must be a whole number, 0 or more, got {key}; the keys of content are negative")


def _require_rows(name: str, pair: Pair) -> None:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise TaskShapeError(f"{name} must be a pair (x, y) of tensors")
    x, y = pair
    if x.dim() == 0 or x.numel() == 0 or x.shape[:1] != y.shape[:1]:
        raise TaskShapeError(
            f"{name}: x and y need the same, non-zero number of rows, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _require_alike(support: Pair, query: Pair) -> None:
    for name, one, other in zip("xy", support, query, strict=True):
        if (one.shape[1:], one.dtype, one.device) != (other.shape[1:], other.dtype, other.device):
            raise TaskShapeError(
                f"the rows of support and query must be alike, but {name} has {one.dtype} rows of shape "
                f"{tuple(one.shape[1:])} on {one.device} and {other.dtype} rows of shape {tuple(other.shape[1:])} on "
                f"{other.device}"
            )
