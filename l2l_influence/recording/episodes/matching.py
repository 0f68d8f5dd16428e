"""From evidence to a verdict: which task a clone worked on, with which rows as support and which as query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tasksets.board import Served
from .episode import Forward, Track
from .losses import Comparison, Loss, inner_loss, outer_loss
from .normalisation import BatchNorm, common
from .task import Labels


@dataclass(frozen=True, eq=False)
class Match:
    """A track bound to a task.

    ``labels``: whether the losses saw those served; if not, ``seen_labels`` and ``seen_query_labels`` are what they saw
    of each set, as far as that is known. ``loss``, ``query_loss``: of both sets, likewise. ``bodies``: what rows went
    through on their way to the learner. ``together``: in one call, support and query. ``batch_norm``: what the layers
    of these and of the clone worked with.
    """

    served: Served
    support_rows: tuple[int, ...]
    query_rows: tuple[int, ...]
    labels: Labels
    seen_labels: Tensor | None
    seen_query_labels: Tensor | None
    loss: Loss | None
    query_loss: Loss | None
    bodies: tuple[nn.Module, ...]
    together: bool
    batch_norm: BatchNorm | None


@dataclass(frozen=True, eq=False)
class Ambiguity:
    """A track that fits two tasks."""

    one: Served
    other: Served


def match(track: Track) -> Match | Ambiguity | None:
    """The task of a track; None if nothing that it was fed belongs to any."""
    if not track.candidates:
        return None
    splits = {served: _Split.of(track, served) for served in track.candidates}
    verdicts = {served: _compare_labels(split, served) for served, split in splits.items()}
    agreeing = [served for served, verdict in verdicts.items() if verdict == "confirmed"] or track.candidates
    newest = max(agreeing, key=lambda served: served.serial)
    other = next((served for served in agreeing if not served.same_task(newest)), None)
    if other is not None:
        return Ambiguity(newest, other)
    return _bind(track, newest, splits[newest], verdicts[newest])


def foreign(track: Track) -> list[Forward]:
    """The forwards on unknown input that had a part in training."""
    return [forward for forward in track.forwards if not forward.matched and (forward.consumed or forward.used)]


class _Set(NamedTuple):
    """The support or the query set of a track as rows of a batch served.

    ``feeds``: the forwards it was fed by, each with the rows fed; ``rows``: all of them, each once.
    """

    feeds: list[tuple[Forward, tuple[int, ...]]]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, forwards: Sequence[Forward], served: Served, avoid: Sequence[int] = ()) -> _Set:
        """``avoid``: rows that were fed before, where others are equal to them."""
        feeds = [(forward, served.content.assign(forward.digests, avoid)) for forward in forwards]
        return cls(feeds, _merged([rows for _, rows in feeds]))

    @property
    def forwards(self) -> list[Forward]:
        return [forward for forward, _ in self.feeds]


class _Split(NamedTuple):
    """Both sets of a track."""

    support: _Set
    query: _Set

    @classmethod
    def of(cls, track: Track, served: Served) -> _Split:
        support = _Set.of(_support(track), served)
        return cls(support, _Set.of(_query(track), served, avoid=support.rows))


def _bind(track: Track, served: Served, split: _Split, labels: Labels) -> Match:
    support, query = split
    inner, outer, changed = support.forwards, query.forwards, labels == "changed"
    calls = {forward.features for forward in (*inner, *outer)}
    bodies = {call.bodies if call else () for call in calls}
    return Match(
        served=served,
        support_rows=support.rows,
        query_rows=query.rows,
        labels=labels,
        seen_labels=_seen_labels(support) if changed else None,
        seen_query_labels=_seen_labels(query) if changed else None,
        loss=None if track.unread_losses else inner_loss(_calls(inner)),
        query_loss=outer_loss(_calls(outer)),
        bodies=bodies.pop() if len(bodies) == 1 else (),
        together=len(calls) == 1 and calls != {None},
        batch_norm=common(part.batch_norm for part in (*inner, *outer, *calls) if part),
    )


def _calls(forwards: Sequence[Forward]) -> list[Comparison]:
    """The losses that had a part in a gradient; none, if one of the forwards had a part by other means."""
    calls = [forward.counted for forward in forwards]
    return [call for counted in calls for call in counted] if all(calls) else []


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


def _compare_labels(split: _Split, served: Served) -> Labels:
    """Whether the losses saw the labels that were served."""
    known = served.content.labels
    if known is None:
        return "unseen"
    verdicts = {_agree(forward.labels, known, rows) for part in split for forward, rows in part.feeds}
    return "changed" if False in verdicts else "confirmed" if True in verdicts else "unseen"


def _agree(seen: Tensor | None, served: Tensor, rows: Sequence[int]) -> bool | None:
    """Whether the labels seen are those served; None if none were, or if they differ in form (one-hot against class
    numbers)."""
    if seen is None or len(seen) != len(rows) or seen.numel() * len(served) != served.numel() * len(seen):
        return None
    # As lists: for the few labels of a task faster than indexing tensors.
    expected = served.to(seen.dtype).reshape(len(served), -1).tolist()
    return bool(seen.reshape(len(seen), -1).tolist() == [expected[row] for row in rows])


def _seen_labels(part: _Set) -> Tensor | None:
    """The labels of a set's rows as the losses saw them, or None if these saw them not all or not always alike."""
    seen: dict[int, Tensor] = {}
    for forward, rows in part.feeds:
        labels = forward.labels
        if labels is None or len(labels) != len(rows):
            return None
        for row, label in zip(rows, labels, strict=True):
            if not torch.equal(seen.setdefault(row, label), label):
                return None
    return torch.stack([seen[row] for row in part.rows]).cpu() if seen else None
