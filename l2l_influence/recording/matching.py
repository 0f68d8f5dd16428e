"""From evidence to a verdict: which task a clone worked on, with which rows as support and which as query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .board import Served
from .episode import Forward, Track
from .task import Labels


@dataclass(frozen=True, eq=False)
class Match:
    """A track bound to a task.

    ``bodies``: what rows went through on their way to the learner. ``together``: in one call, support and query.
    """

    served: Served
    support_rows: tuple[int, ...]
    query_rows: tuple[int, ...]
    labels: Labels
    seen_labels: Tensor | None
    bodies: tuple[nn.Module, ...]
    together: bool


@dataclass(frozen=True, eq=False)
class Ambiguity:
    """A track that fits two tasks."""

    one: Served
    other: Served


def match(track: Track) -> Match | Ambiguity | None:
    """The task of a track; None if nothing that it was fed belongs to any."""
    if not track.candidates:
        return None
    verdicts = {served: _compare_labels(track, served) for served in track.candidates}
    agreeing = [served for served, verdict in verdicts.items() if verdict == "confirmed"] or track.candidates
    newest = max(agreeing, key=lambda served: served.serial)
    other = next((served for served in agreeing if not served.same_task(newest)), None)
    if other is not None:
        return Ambiguity(newest, other)
    return _bind(track, newest, verdicts[newest])


def foreign(track: Track) -> list[Forward]:
    """The forwards on unknown input that had a part in training."""
    return [forward for forward in track.forwards if not forward.matched and (forward.consumed or forward.used)]


def _bind(track: Track, served: Served, labels: Labels) -> Match:
    content = served.content
    support = _merged([content.assign(forward.digests) for forward in _support(track)])
    query = _merged([content.assign(forward.digests, avoid=support) for forward in _query(track)])
    seen = _seen_labels(track, served, support) if labels == "changed" else None
    calls = {forward.features for forward in (*_support(track), *_query(track))}
    bodies = {call.bodies if call else () for call in calls}
    together = len(calls) == 1 and calls != {None}
    return Match(served, support, query, labels, seen, bodies.pop() if len(bodies) == 1 else (), together)


def _support(track: Track) -> list[Forward]:
    return [forward for forward in track.forwards if forward.matched and forward.consumed]


def _query(track: Track) -> list[Forward]:
    """Outputs that no inner loss consumed; once a loss was trained on, only those that had a part in it."""
    others = [forward for forward in track.forwards if forward.matched and not forward.consumed]
    return [forward for forward in others if forward.used] if track.trained else others


def _merged(feeds: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The rows of several forwards in the order in which they were fed; a later forward adds what is new in it."""
    merged: tuple[int, ...] = ()
    for rows in feeds:
        merged += tuple([row for row in rows if row not in merged])
    return merged


def _compare_labels(track: Track, served: Served) -> Labels:
    """Whether the inner losses saw the labels that were served."""
    verdicts = [
        _agree(forward.labels, served.content.labels, served.content.assign(forward.digests))
        for forward in _support(track)
        if forward.labels is not None and served.content.labels is not None
    ]
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        return "unseen"
    return "confirmed" if all(known) else "changed"


def _agree(seen: Tensor, served: Tensor, rows: Sequence[int]) -> bool | None:
    """Whether the labels seen are those served; None if they differ in form (one-hot against class numbers)."""
    if len(seen) != len(rows) or seen.numel() * len(served) != served.numel() * len(seen):
        return None
    # As lists: for the few labels of a task faster than indexing tensors.
    expected = served.to(seen.dtype).reshape(len(served), -1).tolist()
    return bool(seen.reshape(len(seen), -1).tolist() == [expected[row] for row in rows])


def _seen_labels(track: Track, served: Served, support: tuple[int, ...]) -> Tensor | None:
    """The labels of the support rows as the loss saw them, or None if it saw them not all or not always alike."""
    seen: dict[int, Tensor] = {}
    for forward in _support(track):
        if forward.labels is None or len(forward.labels) != len(forward.digests):
            return None
        for row, label in zip(served.content.assign(forward.digests), forward.labels, strict=True):
            if not torch.equal(seen.setdefault(row, label), label):
                return None
    return torch.stack([seen[row] for row in support]).cpu()
