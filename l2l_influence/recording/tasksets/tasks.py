"""A drop-in for learn2learn's tasksets that remembers what it served."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from learn2learn.data import Taskset

from ..interception.journal import journal
from .board import Served, board, without_transforms
from .content import Tensors, batch_tensors, read_batch


@dataclass
class Card:
    """What is known of a taskset besides itself: its number, and keys for the draws that it gives no index to."""

    number: int
    fresh_keys: itertools.count[int]
    infinite: bool = False
    keys_by_content: dict[bytes, int] = field(default_factory=dict)

    def key_of(self, fingerprint: bytes) -> int:
        """The key of a finite task that came without its index: the same for the same data."""
        if fingerprint not in self.keys_by_content:
            self.keys_by_content[fingerprint] = next(self.fresh_keys)
        return self.keys_by_content[fingerprint]


def new_card(fresh_keys: itertools.count[int], infinite: bool = False) -> Card:
    """A card with a number of its own."""
    return Card(next(_numbers), fresh_keys, infinite)


_alive: dict[int, weakref.ref[Taskset]] = {}
_cards: weakref.WeakKeyDictionary[Taskset, Card] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def card_of(taskset: Taskset) -> Card:
    """The card of a taskset, wrapped or not: all wrappers of one taskset share its card. A copy gets a new one."""
    taskset = plain(taskset)
    if taskset not in _cards:
        fresh_keys = itertools.count(max(taskset.num_tasks, 0))
        card = _cards[taskset] = new_card(fresh_keys, infinite=taskset.num_tasks == -1)
        _alive[card.number] = weakref.ref(taskset)
        weakref.finalize(taskset, _gone, card).atexit = False
    return _cards[taskset]


def tasksets_alive() -> list[Taskset]:
    """Those that have a card, for who wants to keep them."""
    return [taskset for alive in list(_alive.values()) if (taskset := alive()) is not None]


def plain(taskset: Taskset) -> Taskset:
    """The taskset inside a wrapper."""
    return taskset._plain if isinstance(taskset, TaskDataset) else taskset


def key_of(taskset: Taskset, description: Any) -> int | None:
    """The index of a description that came without it."""
    return next((key for key, known in taskset.sampled_descriptions.items() if known is description), None)


class TaskDataset(Taskset):
    """Behaves as the taskset it wraps, and records every task drawn from it for `recording_of`.

    Args:
        dataset: a ``learn2learn.data.Taskset`` (or ``TaskDataset``) to wrap: its data set, transforms and the
            descriptions of the tasks sampled so far are shared, not copied, and overridden methods of subclasses are
            used. Or a data set, and then the other arguments are those of ``learn2learn.data.Taskset``.
        task_transforms, num_tasks, task_collate: as learn2learn's; only without a taskset to wrap.

    Example:
        ``tasks = TaskDataset(tasksets.train)``, then ``tasks.sample()``, ``tasks[i]`` or ``for task in tasks``.
    """

    _plain: Taskset
    _key: int | None

    def __init__(
        self,
        dataset: Any,
        task_transforms: Sequence[Callable[..., Any]] | Callable[..., Any] | None = None,
        num_tasks: int = -1,
        task_collate: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(dataset, Taskset):
            inner = Taskset(dataset, task_transforms, num_tasks, task_collate)
        elif task_transforms is not None or num_tasks != -1 or task_collate is not None:
            raise TypeError("TaskDataset wraps a taskset as it is: pass transforms, num_tasks and collate to that one")
        else:
            inner = dataset._plain if type(dataset) is TaskDataset else dataset
        super().__init__(inner.dataset, inner.task_transforms, inner.num_tasks, inner.task_collate)
        self.sampled_descriptions = inner.sampled_descriptions
        self._plain = inner
        self._key = None

    def __getattr__(self, name: str) -> Any:
        # What a user's subclass of Taskset adds. "_plain" is missing while a copy is being built.
        if name == "_plain":
            raise AttributeError(name)
        return getattr(self._plain, name)

    def __len__(self) -> int:
        return len(self._plain)

    def __getitem__(self, i: int) -> Any:
        if self._overridden("__getitem__"):
            return self._served(self._plain[i], self.sampled_descriptions.get(i), i, by_index=self.num_tasks != -1)
        self._key = i
        try:
            return super().__getitem__(i)
        finally:
            self._key = None

    def __iter__(self) -> Iterator[Any]:
        if self._overridden("__iter__"):
            return (self._served(batch, None, None) for batch in iter(self._plain))
        iterator: Iterator[Any] = super().__iter__()
        return iterator

    def __next__(self) -> Any:
        if self._overridden("__next__"):
            return self._served(next(self._plain), None, None)
        return super().__next__()

    def sample(self) -> Any:
        """Draw a task at random, exactly as the wrapped taskset does."""
        if self._overridden("sample"):
            return self._served(self._plain.sample(), None, None)
        return super().sample()

    def sample_task_description(self) -> Any:
        """A new task description from the wrapped taskset."""
        return self._plain.sample_task_description()

    def get_task(self, task_description: Any) -> Any:
        """The batch that a task description stands for."""
        key = key_of(self, task_description) if self._key is None else self._key
        return self._served(self._plain.get_task(task_description), task_description, key)

    def _overridden(self, method: str) -> bool:
        return getattr(type(self._plain), method) is not getattr(Taskset, method)

    def _served(self, batch: Any, description: Any, key: int | None, by_index: bool = False) -> Any:
        try:
            record_served(batch, self._plain, None if self.num_tasks == -1 else key, description, by_index)
        except Exception:
            board.failures.keep()
        return batch


def record_served(batch: Any, taskset: Taskset, key: int | None, description: Any, by_index: bool) -> None:
    """Have a batch posted on the board, as task ``key`` of ``taskset`` or under a key of its own."""
    tensors = batch_tensors(batch)
    posting = Posting(tensors, weakref.ref(taskset), card_of(taskset), key, description, by_index)
    journal.note(sum([tensor.nbytes for tensor in tensors]), board.failures, posting)


@dataclass(eq=False, slots=True)
class Posting:
    """A batch to be posted on the board."""

    tensors: Tensors
    taskset: weakref.ref[Taskset]
    card: Card
    key: int | None
    description: Any
    by_index: bool

    def __call__(self) -> None:
        content = read_batch(self.tensors)
        if content is None:
            return
        key, card = self.key, self.card
        if key is None:
            key = next(card.fresh_keys) if card.infinite else card.key_of(content.fingerprint)
        board.post(Served(self.taskset, card.number, key, self.description, content, self.by_index))


def _gone(card: Card) -> None:
    """A taskset is gone: its data set may not be kept by what was served. This may run anywhere."""
    del _alive[card.number]
    for posting in journal.waiting(Posting):
        if posting.card is card:
            posting.description = without_transforms(posting.description)
    board.drop_transforms(card.number)
    journal.append(board.failures, board.forget, card.number)
