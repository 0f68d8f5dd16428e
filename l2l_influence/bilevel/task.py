""":class:`Task`, and batches of tasks of equal shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import TaskShapeError

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One few-shot task: a support set, to which θ is fitted, and a query set, on which the outer loss is measured.

    Attributes:
        support: ``(x, y)``, ``n_s`` rows each.
        query: ``(x, y)``, ``n_q`` rows each.
        support_weights: shape ``(n_s,)``, the weights w_j in L_I; 1 if None. A mean over the samples is w = 1/n_s.
        query_weights: shape ``(n_q,)``, the weights w_j in L_O; 1 if None.
        start: named tensors where the inner solver starts; θ_0(λ) if None. It does not change the solution that is
            sought.
        together: whether support and query rows pass through the model in one batch, as in loops that compute all
            features at once. It matters only to batch statistics.

    Raises:
        TaskShapeError: x and y have no rows, or different numbers of rows; or the weights have another length.

    >>> import torch
    >>> task = Task(support=(torch.zeros(5, 2), torch.arange(5)), query=(torch.zeros(3, 2), torch.arange(3)))
    >>> Task(support=(torch.zeros(5, 2), torch.arange(4)), query=task.query)
    Traceback (most recent call last):
    l2l_influence.errors.TaskShapeError: support: x has 5 rows and y has 4; they need the same number, at least 1
    """

    support: Pair
    query: Pair
    support_weights: Tensor | None = None
    query_weights: Tensor | None = None
    start: Mapping[str, Tensor] | None = None
    together: bool = False

    def __post_init__(self) -> None:
        _check_rows("support", self.support, self.support_weights)
        _check_rows("query", self.query, self.query_weights)


class Samples(NamedTuple):
    """Samples of ``B`` tasks: x ``[B, n, ...]``, y ``[B, n, ...]``, weights ``[B, n]``.

    x may have more rows than y: these pass through the model with the others (in batch statistics) and have no loss.
    """

    x: Tensor
    y: Tensor
    w: Tensor

    def select(self, span: slice) -> Samples:
        """The samples of a part of the batch: of the tasks at the batch positions ``span``."""
        return Samples(self.x[span], self.y[span], self.w[span])


@dataclass(frozen=True)
class TaskBatch:
    """``B`` tasks of equal shape.

    Attributes:
        index: positions of the tasks in the sequence that they come from.
        support, query: their samples.
        weight: task weights c_i, ``[B]``.
    """

    index: list[int]
    support: Samples
    query: Samples
    weight: Tensor

    def select(self, span: slice) -> TaskBatch:
        """A part of the batch: the tasks at the batch positions ``span``."""
        return TaskBatch(self.index[span], self.support.select(span), self.query.select(span), self.weight[span])


def _check_rows(name: str, pair: Pair, weights: Tensor | None) -> None:
    rows, labels = (len(part) if part.dim() else 0 for part in pair)
    if rows != labels or rows == 0:
        raise TaskShapeError(f"{name}: x has {rows} rows and y has {labels}; they need the same number, at least 1")
    if weights is not None and weights.shape != (rows,):
        raise TaskShapeError(
            f"{name}_weights must have shape ({rows},), one weight per sample, got {tuple(weights.shape)}"
        )


def check_weights(weights: Tensor | Sequence[float] | None, count: int) -> list[float]:
    """The task weights c_i as a list of floats; 1 each if ``weights`` is None.

    Raises:
        TaskShapeError: there are not as many weights as tasks.
    """
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count:
        raise TaskShapeError(f"weights must have one entry per task: got {len(values)} weights for {count} tasks")
    return values


def _signature(task: Task) -> tuple[Any, ...]:
    return task.together, *(part.shape for pair in (task.support, task.query) for part in pair)


def _stack(xs: list[Tensor], ys: list[Tensor], weights: list[Tensor | None], like: Tensor) -> Samples:
    x, y = (torch.stack(parts).to(like.device).detach() for parts in (xs, ys))
    w = [torch.ones(y.shape[1]) if weight is None else weight.detach() for weight in weights]
    return Samples(x, y, torch.stack(w).to(like))


def stack(tasks: list[Task], index: list[int], weights: list[float], like: Tensor) -> TaskBatch:
    """Stack tasks of equal shape into a batch.

    Args:
        tasks: the tasks.
        index: their positions in the sequence that they come from.
        weights: the weights c_i of all tasks of that sequence.
        like: a tensor whose device the batch takes; weights take its dtype as well.
    """
    return TaskBatch(
        index=index,
        support=_stack(
            [_inputs(t, t.support, t.query) for t in tasks],
            [t.support[1] for t in tasks],
            [t.support_weights for t in tasks],
            like,
        ),
        query=_stack(
            [_inputs(t, t.query, t.support) for t in tasks],
            [t.query[1] for t in tasks],
            [t.query_weights for t in tasks],
            like,
        ),
        weight=torch.tensor([weights[i] for i in index], dtype=like.dtype, device=like.device),
    )


def _inputs(task: Task, own: Pair, other: Pair) -> Tensor:
    """The rows that pass through the model when losses of the first pair are computed; its own rows come first."""
    return torch.cat([own[0], other[0]]) if task.together else own[0]


def equal_shape_batches(
    tasks: Sequence[Task], positions: Iterable[int], size: int
) -> Iterator[tuple[list[int], list[Task]]]:
    """Group the tasks at ``positions`` into batches of at most ``size`` tasks of equal shape, with their positions.

    Each task is read once. A batch is yielded as soon as it is full, the incomplete ones at the end.
    """
    waiting: dict[tuple[Any, ...], tuple[list[int], list[Task]]] = {}
    for position in positions:
        task = tasks[position]
        index, together = waiting.setdefault(_signature(task), ([], []))
        index.append(position)
        together.append(task)
        if len(index) == size:
            yield waiting.pop(_signature(task))
    yield from waiting.values()
