"""What learn2learn's own tasksets serve: a batch passes through several methods on its way out, and is posted once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from learn2learn.data import Taskset
from learn2learn.data.samplers import TasksetSampler
from torch.utils.data import default_collate

from ...storage.fingerprints import tensors_in
from .tasks import key_of, plain, record_served


@dataclass
class Draw:
    """What the methods of tasksets were asked for, and returned, while one of them draws a batch."""

    calls: list[tuple[Taskset, str, Any, Any]] = field(default_factory=list)

    def asked(self, taskset: Taskset, method: str, batch: Any) -> Any:
        """What ``method`` was asked for when it returned this very ``batch``; None if it did not."""
        calls = (call[2] for call in self.calls if call[0] is taskset and call[1] == method and call[3] is batch)
        return next(calls, None)


class _Thread(threading.local):
    draw: Draw | None = None


_thread = _Thread()


def under_way() -> Draw | None:
    """The draw that this thread is in the middle of."""
    return _thread.draw


@contextmanager
def drawing() -> Iterator[Draw]:
    """What tasksets return inside is collected, not posted."""
    outer, _thread.draw = _thread.draw, Draw()
    try:
        yield _thread.draw
    finally:
        _thread.draw = outer


def post(taskset: Taskset, batch: Any, draw: Draw) -> None:
    """Post what the outermost method of a taskset returned, under what is known of it from all methods."""
    key, description = draw.asked(taskset, "__getitem__", batch), draw.asked(taskset, "get_task", batch)
    if taskset.num_tasks == -1:
        record_served(batch, taskset, None, description, by_index=False)
    elif description is None and key is not None:  # made by an overridden method
        record_served(batch, taskset, key, taskset.sampled_descriptions.get(key), by_index=True)
    else:
        known = key_of(taskset, description) if key is None else key
        record_served(batch, taskset, known, description, by_index=False)


def post_delivered(iterator: Any, batch: Any) -> None:
    """Post what a DataLoader hands out, if no method of a taskset returned it in this process.

    That is so if worker processes drew it, or a `TasksetSampler` only named its samples.
    """
    sampler, dataset = iterator._index_sampler, iterator._dataset
    if isinstance(sampler, TasksetSampler):
        record_served(batch, plain(sampler.taskset), None, None, by_index=False)
    elif iterator._num_workers and isinstance(dataset, Taskset):
        for task in _unstacked(batch) if iterator._collate_fn is default_collate else [batch]:
            record_served(task, plain(dataset), None, None, by_index=False)


def _unstacked(batch: Any) -> list[Any]:
    """The tasks that a DataLoader stacked, as it does unless told otherwise."""
    return list(zip(*itertools.islice(tensors_in(batch), 2), strict=True))
