"""`TaskDataset`: a drop-in for learn2learn's tasksets that records what it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from learn2learn.data import Taskset

from .info import TasksetInfo
from .served import own_batches, taskset_info
from .serving import key_of, record_served


def plain(taskset: Taskset) -> Taskset:
    """The taskset inside a wrapper."""
    return taskset._plain if isinstance(taskset, TaskDataset) else taskset


def info_of(taskset: Taskset) -> TasksetInfo:
    """The info of a taskset or of its wrappers, which share it."""
    return taskset_info(plain(taskset))


class TaskDataset(Taskset):
    """Behaves like the taskset that it wraps, and records every task drawn from it for `recording_of`.

    Args:
        dataset: a ``learn2learn.data.Taskset`` (or ``TaskDataset``) to wrap. Its data set, transforms and the
            descriptions of the tasks sampled so far are shared, and overridden methods of subclasses are used.
            Alternatively a data set; then the other arguments are those of ``learn2learn.data.Taskset``.
        task_transforms, num_tasks, task_collate: as learn2learn's; only for a data set.

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
            raise TypeError(
                "TaskDataset(taskset) takes task_transforms, num_tasks and task_collate from the taskset: pass them to "
                "that taskset instead"
            )
        else:
            inner = dataset._plain if type(dataset) is TaskDataset else dataset
        super().__init__(inner.dataset, inner.task_transforms, inner.num_tasks, inner.task_collate)
        self.sampled_descriptions = inner.sampled_descriptions
        self._plain = inner
        self._key = None

    def __getattr__(self, name: str) -> Any:
        # Attributes that a user's subclass of Taskset adds. "_plain" is missing while a copy is being built.
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
        """The batch that a task description describes."""
        key = key_of(self, task_description) if self._key is None else self._key
        return self._served(self._plain.get_task(task_description), task_description, key)

    def _overridden(self, method: str) -> bool:
        return getattr(type(self._plain), method) is not getattr(Taskset, method)

    def _served(self, batch: Any, description: Any, key: int | None, by_index: bool = False) -> Any:
        with info_of(self).failures.kept():
            to, known = [own_batches(self._plain)], None if self.num_tasks == -1 else key
            record_served(to, batch, self._plain, known, description, by_index)
        return batch
