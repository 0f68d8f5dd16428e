"""Recorded and test tasks as bilevel tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learn2learn.data import Taskset
from torch import Tensor

from ...bilevel import Task
from ...bilevel.task import Pair
from ...errors import RecordingError, TaskShapeError
from ...recording import RecordedTask
from ...recording.tasksets.sampling import read_tasks
from .losses import Losses

Split = Callable[[Tensor, Tensor], tuple[Pair, Pair]]
"""``split(x, y) -> ((x, y) of the support set, (x, y) of the query set)``."""


class RecordedTasks(Sequence[Task]):
    """Recorded tasks as bilevel tasks, converted when they are read: only one batch of them is in memory at a time."""

    def __init__(
        self, recorded: Sequence[RecordedTask], losses: Losses, like: Tensor, start: Mapping[str, str] | None
    ) -> None:
        """``start``: names of θ's entries, and of the adapted parameters to start from; None to start from λ."""
        self._recorded, self._losses, self._like, self._start_names = recorded, losses, like, start

    def __len__(self) -> int:
        return len(self._recorded)

    def __getitem__(self, position: Any) -> Any:
        recorded = self._recorded[position]
        return make_task(
            recorded.support,
            recorded.query,
            self._losses,
            self._like,
            start=self._start(recorded.adapted),
            together=recorded.together,
        )

    def _start(self, adapted: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if adapted is None or self._start_names is None:
            return None
        return {name: adapted[own] for name, own in self._start_names.items()}


def make_task(
    support: Pair,
    query: Pair,
    losses: Losses,
    like: Tensor,
    *,
    start: dict[str, Tensor] | None = None,
    together: bool = False,
) -> Task:
    """A bilevel task whose sample weights carry the reduction of the losses; floats take the dtype of ``like``."""
    return Task(
        support=_cast(support, like),
        query=_cast(query, like),
        support_weights=losses.inner.weights(support[1]),
        query_weights=losses.outer.weights(query[1]),
        start=start,
        together=together,
    )


def read_test_tasks(
    source: Taskset | Sequence[Any],
    num_tasks: int | None,
    split: Split | None,
    recorded: Sequence[RecordedTask],
    losses: Losses,
    like: Tensor,
    seed: int,
) -> Sequence[Task]:
    """Test tasks as bilevel tasks: those of a taskset are drawn at once; those of a sequence of ``(x, y)`` batches,
    ``((x, y), (x, y))`` pairs or bilevel tasks are read when needed.

    Raises:
        RecordingError: batches have to be split into support and query, and the recorded tasks do not say how.
        TaskShapeError: an item of the sequence has another form.
    """
    if num_tasks is not None and num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
    cut = split or split_as_recorded(recorded)
    items = read_tasks(source, num_tasks, seed) if isinstance(source, Taskset) else source
    together = any(task.together for task in recorded)

    def make(item: Any) -> Task:
        return item if isinstance(item, Task) else make_task(*_halves(item, cut), losses, like, together=together)

    return _Made(items if isinstance(items, Sequence) else list(items), num_tasks, make)


class _Made(Sequence[Task]):
    """The first of some items, made into tasks when they are read."""

    def __init__(self, items: Sequence[Any], count: int | None, make: Callable[[Any], Task]) -> None:
        self._items, self._make = items, make
        self._count = len(items) if count is None else min(count, len(items))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        return self._make(self._items[range(self._count)[position]])


def _halves(item: Any, cut: Split) -> tuple[Pair, Pair]:
    """Support and query of a batch that is still to be cut, or of a pair that is cut already."""
    if _is_pair(item):
        return cut(*item)
    if isinstance(item, (tuple, list)) and len(item) == 2 and all(_is_pair(half) for half in item):
        return tuple(item[0]), tuple(item[1])
    raise TaskShapeError(
        "a test task must be a batch (x, y), a pair ((x, y), (x, y)) of support and query, or a bilevel Task; "
        f"got {type(item).__name__}"
    )


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, Tensor) for part in item)


def split_as_recorded(recorded: Sequence[RecordedTask]) -> Split:
    """Support and query rows at the positions they had in training, if these were always the same."""
    patterns = Counter((tuple(sorted(t.support_rows)), tuple(sorted(t.query_rows))) for t in recorded)
    (support, query), count = patterns.most_common(1)[0]

    def split(x: Tensor, y: Tensor) -> tuple[Pair, Pair]:
        if count < len(recorded) or len(x) != len(support) + len(query):
            raise RecordingError(
                "test batches have to be split into support and query rows, and training's split cannot be repeated: "
                f"it used {len(patterns)} different patterns, of which the most frequent takes "
                f"{len(support) + len(query)} rows where a test batch has {len(x)}. Pass "
                "split=lambda x, y: ((x[a], y[a]), (x[b], y[b])), or the tasks as ((x, y), (x, y)) pairs"
            )
        return (x[list(support)], y[list(support)]), (x[list(query)], y[list(query)])

    return split


def _cast(pair: Pair, like: Tensor) -> Pair:
    return _to(pair[0], like), _to(pair[1], like)


def _to(part: Tensor, like: Tensor) -> Tensor:
    return part.to(like) if part.is_floating_point() else part.to(like.device)
