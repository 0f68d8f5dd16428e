"""Matching: finds the task that a clone worked on, and the rows of its support set and of its query set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tasksets.served import Served
from .clone_log import CloneLog, Forward
from .losses import Comparison, inner_loss, outer_loss
from .normalisation import common
from .task import EpisodeFacts, Labels


@dataclass(frozen=True, eq=False)
class Match:
    """A clone's log, matched with a task.

    Attributes:
        served: the batch that the clone was fed.
        facts: facts about the episode, read from the log.
        bodies: the modules that the rows went through on their way to the learner.
    """

    served: Served
    facts: EpisodeFacts
    bodies: tuple[nn.Module, ...]


@dataclass(frozen=True, eq=False)
class Ambiguity:
    """A log that fits two tasks."""

    one: Served
    other: Served


def match(log: CloneLog) -> Match | Ambiguity | None:
    """The task of a log; None if nothing that the clone was fed belongs to any task."""
    if not log.candidates:
        return None
    splits = {served: _Split.of(log, served) for served in log.candidates}
    verdicts = {served: _compare_labels(split, served) for served, split in splits.items()}
    agreeing = [served for served, verdict in verdicts.items() if verdict == "confirmed"] or log.candidates
    newest = max(agreeing, key=lambda served: served.latest)
    other = next((served for served in agreeing if not served.same_task(newest)), None)
    if other is not None:
        return Ambiguity(newest, other)
    return _matched(log, newest, splits[newest], verdicts[newest])


def foreign(log: CloneLog) -> list[Forward]:
    """The forwards on unknown input that contributed to training."""
    return [forward for forward in log.forwards if not forward.matched and (forward.consumed or forward.used)]


class _Set(NamedTuple):
    """The support or the query set of a log as rows of a served batch.

    ``feeds``: the forwards that it was fed by, each with its rows; ``rows``: all of them, each once.
    """

    feeds: list[tuple[Forward, tuple[int, ...]]]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, forwards: Sequence[Forward], served: Served, avoid: Sequence[int] = ()) -> _Set:
        """``avoid``: rows that were fed before, to be used only if no others are equal to them."""
        feeds = [(forward, served.content.assign(forward.digests, avoid)) for forward in forwards]
        return cls(feeds, _merged([rows for _, rows in feeds]))

    @property
    def forwards(self) -> list[Forward]:
        return [forward for forward, _ in self.feeds]


class _Split(NamedTuple):
    """Both sets of a log."""

    support: _Set
    query: _Set

    @classmethod
    def of(cls, log: CloneLog, served: Served) -> _Split:
        support = _Set.of(_support(log), served)
        return cls(support, _Set.of(_query(log), served, avoid=support.rows))


def _matched(log: CloneLog, served: Served, split: _Split, labels: Labels) -> Match:
    forwards = [*split.support.forwards, *split.query.forwards]
    body_calls = {forward.features for forward in forwards}
    bodies = {call.bodies if call else () for call in body_calls}
    changed = labels == "changed"
    facts = EpisodeFacts(
        support_rows=split.support.rows,
        query_rows=split.query.rows,
        labels=labels,
        lr=log.lr,
        steps=log.steps,
        first_order=log.first_order,
        rule=log.rule,
        seen_labels=_seen_labels(split.support) if changed else None,
        seen_query_labels=_seen_labels(split.query) if changed else None,
        loss=None if log.unread_losses else inner_loss(_comparisons(split.support.forwards)),
        query_loss=outer_loss(_comparisons(split.query.forwards)),
        together=len(body_calls) == 1 and body_calls != {None},
        batch_norm=common(part.batch_norm for part in (*forwards, *body_calls) if part),
    )
    return Match(served, facts, bodies.pop() if len(bodies) == 1 else ())


def _comparisons(forwards: Sequence[Forward]) -> list[Comparison]:
    """The losses that contributed to a gradient; empty if one of the forwards contributed by other means."""
    calls = [forward.counted for forward in forwards]
    return [call for counted in calls for call in counted] if all(calls) else []


def _support(log: CloneLog) -> list[Forward]:
    return [forward for forward in log.forwards if forward.matched and forward.consumed]


def _query(log: CloneLog) -> list[Forward]:
    """Forwards that no inner loss consumed; if the clone trained, only those that contributed to that."""
    others = [forward for forward in log.forwards if forward.matched and not forward.consumed]
    return [forward for forward in others if forward.used] if log.trained else others


def _merged(feeds: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The rows of several forwards in the order in which they were first fed, each once."""
    merged: tuple[int, ...] = ()
    for rows in feeds:
        merged += tuple([row for row in rows if row not in merged])
    return merged


def _compare_labels(split: _Split, served: Served) -> Labels:
    """True if the losses were called with the labels that were served."""
    known = served.content.labels
    if known is None:
        return "unseen"
    verdicts = {_agree(forward.labels, known, rows) for part in split for forward, rows in part.feeds}
    return "changed" if False in verdicts else "confirmed" if True in verdicts else "unseen"


def _agree(seen: Tensor | None, served: Tensor, rows: Sequence[int]) -> bool | None:
    """True if the labels seen are those served; None if none were seen, or in another form (one-hot, for example)."""
    if seen is None or len(seen) != len(rows) or seen.numel() * len(served) != served.numel() * len(seen):
        return None
    # As lists: for the few labels of a task faster than indexing tensors.
    expected = served.to(seen.dtype).reshape(len(served), -1).tolist()
    return bool(seen.reshape(len(seen), -1).tolist() == [expected[row] for row in rows])


def _seen_labels(part: _Set) -> Tensor | None:
    """The labels that the losses were called with, for a set's rows; None if incomplete or not constant."""
    seen: dict[int, Tensor] = {}
    for forward, rows in part.feeds:
        labels = forward.labels
        if labels is None or len(labels) != len(rows):
            return None
        for row, label in zip(rows, labels, strict=True):
            if not torch.equal(seen.setdefault(row, label), label):
                return None
    return torch.stack([seen[row] for row in part.rows]).cpu() if seen else None
