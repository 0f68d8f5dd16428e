"""Tasks that no taskset served: what a learner was fed, or what was entered by hand, as a served batch."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..tasksets.content import read_batch
from ..tasksets.info import TasksetInfo
from ..tasksets.served import Served
from .clone_log import CloneLog, Forward

Pair = tuple[Tensor, Tensor]


class _Taskset:
    """Stands for the taskset of a batch that none served."""


_GONE: weakref.ref[Any] = weakref.ref(_Taskset())


def as_served(support: Pair, query: Pair, info: TasksetInfo, key: int | None = None) -> Served:
    """Both sets as one batch, under ``key`` or under a key for its content."""
    content = read_batch(tuple(torch.cat(parts).detach() for parts in zip(support, query, strict=True)))
    assert content is not None  # it has rows
    known = info.fresh_key(content.fingerprint) if key is None else key
    return Served(_GONE, info.number, known, None, content)


def is_unserved(log: CloneLog) -> bool:
    """True if a clone was fed data of which no row is known from a taskset."""
    return bool(log.forwards) and not log.candidates


def as_fed(log: CloneLog, info: TasksetInfo) -> CloneLog | None:
    """The log as if a taskset had served what the clone was fed; None if its labels or its two sets are unknown."""
    support = _pair([forward for forward in log.forwards if forward.consumed])
    query = _pair([forward for forward in log.forwards if _queried(forward, log.trained)])
    if support is None or query is None or not _alike(support, query):
        return None
    forwards = [replace(forward, matched=forward.rows is not None) for forward in log.forwards]
    return replace(log, forwards=forwards, candidates=[as_served(support, query, info)])


def _queried(forward: Forward, trained: bool) -> bool:
    return not forward.consumed and (forward.used or not trained)


def _pair(forwards: Sequence[Forward]) -> Pair | None:
    """The rows that were fed, with their labels; a later forward adds its new rows."""
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    known: set[bytes] = set()
    for forward in forwards:
        seen = forward.labels
        if forward.rows is None or seen is None or len(seen) != len(forward.rows):
            return None
        new = [position for position, digest in enumerate(forward.digests) if digest not in known]
        known.update(forward.digests)
        rows.append(forward.rows[new])
        labels.append(seen[new])
    return (torch.cat(rows), torch.cat(labels)) if rows else None


def _alike(support: Pair, query: Pair) -> bool:
    return all(
        (one.shape[1:], one.dtype, one.device) == (other.shape[1:], other.dtype, other.device)
        for one, other in zip(support, query, strict=True)
    )
