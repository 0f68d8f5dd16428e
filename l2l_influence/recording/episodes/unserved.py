"""Tasks that no taskset served: what a learner was fed, or what was told, made into a batch as a taskset serves it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..tasksets.board import Served, board
from ..tasksets.content import read_batch
from ..tasksets.tasks import Card
from .episode import Forward, Track

Pair = tuple[Tensor, Tensor]


class _Taskset:
    """What was never served comes from no taskset."""


_gone: weakref.ref[Any] = weakref.ref(_Taskset())


def as_served(support: Pair, query: Pair, card: Card, key: int | None = None) -> Served:
    """Both sets as one batch, under ``key`` or under one of their content."""
    content = read_batch(tuple(torch.cat(parts).detach() for parts in zip(support, query, strict=True)))
    assert content is not None  # it has rows
    known = card.key_of(content.fingerprint) if key is None else key
    served = Served(_gone, card.number, known, None, content)
    board.number(served)
    return served


def is_unserved(track: Track) -> bool:
    """Whether a clone was fed data of which no row is known from a taskset."""
    return bool(track.forwards) and not track.candidates


def as_fed(track: Track, card: Card) -> Track | None:
    """The track as if a taskset had served what the clone was fed; None if its labels or its two sets are not known."""
    support = _pair([forward for forward in track.forwards if forward.consumed])
    query = _pair([forward for forward in track.forwards if _queried(forward, track.trained)])
    if support is None or query is None or not _alike(support, query):
        return None
    forwards = [replace(forward, matched=forward.rows is not None) for forward in track.forwards]
    return replace(track, forwards=forwards, candidates=[as_served(support, query, card)])


def _queried(forward: Forward, trained: bool) -> bool:
    return not forward.consumed and (forward.used or not trained)


def _pair(forwards: Sequence[Forward]) -> Pair | None:
    """The rows that were fed, with their labels; a later forward adds what is new in it."""
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
