"""Batches on their way out of a taskset: they pass through several of its methods, and are recorded once."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from learn2learn.data import Taskset
from learn2learn.data.samplers import TasksetSampler
from torch.utils.data import default_collate

from ...storage.fingerprints import tensors_in
from .content import batch_tensors
from .served import Posting, ServedBatches, taskset_info


@dataclass
class Draw:
    """The calls of tasksets' methods, with argument and result, while one of them draws a batch."""

    calls: list[tuple[Taskset, str, Any, Any]] = field(default_factory=list)

    def asked(self, taskset: Taskset, method: str, batch: Any) -> Any:
        """The argument with which ``method`` returned this very ``batch``; None if it did not."""
        calls = (call[2] for call in self.calls if call[0] is taskset and call[1] == method and call[3] is batch)
        return next(calls, None)


_draw: ContextVar[Draw | None] = ContextVar("draw", default=None)


def under_way() -> Draw | None:
    """The draw that this context is in the middle of."""
    return _draw.get()


@contextmanager
def drawing() -> Iterator[Draw]:
    """Collect the batches that tasksets return inside, instead of recording them."""
    draw = Draw()
    token = _draw.set(draw)
    try:
        yield draw
    finally:
        _draw.reset(token)


def key_of(taskset: Taskset, description: Any) -> int | None:
    """The index of a description that came without it."""
    return next((key for key, known in taskset.sampled_descriptions.items() if known is description), None)


def record_served(
    to: Iterable[ServedBatches], batch: Any, taskset: Taskset, key: int | None, description: Any, by_index: bool
) -> None:
    """Enter a batch as task ``key`` of ``taskset`` (one without a wrapper), or under a new key if None."""
    posting = Posting(batch_tensors(batch), weakref.ref(taskset), taskset_info(taskset), key, description, by_index)
    for batches in to:
        batches.note(posting)


def record_drawn(to: Iterable[ServedBatches], taskset: Taskset, batch: Any, draw: Draw) -> None:
    """Enter the batch that the outermost method of a taskset returned, with what inner methods know of it."""
    key, description = draw.asked(taskset, "__getitem__", batch), draw.asked(taskset, "get_task", batch)
    if taskset.num_tasks == -1:
        record_served(to, batch, taskset, None, description, by_index=False)
    elif description is None and key is not None:  # made by an overridden method
        record_served(to, batch, taskset, key, taskset.sampled_descriptions.get(key), by_index=True)
    else:
        known = key_of(taskset, description) if key is None else key
        record_served(to, batch, taskset, known, description, by_index=False)


def delivered(iterator: Any, batch: Any) -> list[tuple[Taskset, Any]]:
    """The tasks in what a DataLoader hands out, if no method of a taskset returned them in this process.

    That is so if worker processes drew them, or if a `TasksetSampler` only named their samples.
    """
    sampler, dataset = iterator._index_sampler, iterator._dataset
    if isinstance(sampler, TasksetSampler):
        return [(sampler.taskset, batch)]
    if not (iterator._num_workers and isinstance(dataset, Taskset)):
        return []
    tasks = _unstacked(batch) if iterator._collate_fn is default_collate else [batch]
    return [(dataset, task) for task in tasks]


def _unstacked(batch: Any) -> list[Any]:
    """The tasks that a DataLoader has stacked, as it does by default."""
    return list(zip(*itertools.islice(tensors_in(batch), 2), strict=True))
