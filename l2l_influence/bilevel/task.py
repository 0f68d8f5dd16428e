"""Tasks, and tasks of equal shape stacked into batches."""

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
    """One few-shot task.

    Attributes:
        support: ``(x, y)``, ``n_s`` rows each: what θ is fitted to.
        query: ``(x, y)``, ``n_q`` rows each: what the outer loss is measured on.
        support_weights: shape ``(n_s,)``, the w_j of L_I (1 unless said; a mean-reduced loss is w = 1/n_s).
        query_weights: shape ``(n_q,)``, the w_j of L_O.
        start: where the inner solver starts, by parameter name; λ unless said.
        together: whether support and query rows go through the model in one batch, as where features are computed once
            for both; it matters to batch statistics.
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

    x may have further rows, which go through the model with the others and have no loss.
    """

    x: Tensor
    y: Tensor
    w: Tensor

    def select(self, span: slice) -> Samples:
        """Those of some of the tasks."""
        return Samples(self.x[span], self.y[span], self.w[span])


@dataclass(frozen=True)
class TaskBatch:
    """``B`` tasks of equal shape. ``index`` are their positions in the sequence they came from."""

    index: list[int]
    support: Samples
    query: Samples
    weight: Tensor

    def select(self, span: slice) -> TaskBatch:
        """Some of the tasks."""
        return TaskBatch(self.index[span], self.support.select(span), self.query.select(span), self.weight[span])


def _check_rows(name: str, pair: Pair, weights: Tensor | None) -> None:
    x, y = pair
    if x.shape[:1] != y.shape[:1] or x.dim() == 0 or len(x) == 0:
        raise TaskShapeError(f"{name}: x and y need the same, non-zero number of rows, got {x.shape} and {y.shape}")
    if weights is not None and weights.shape != (len(x),):
        raise TaskShapeError(f"{name}: weights need shape ({len(x)},), got {tuple(weights.shape)}")


def check_weights(weights: Tensor | Sequence[float] | None, count: int) -> list[float]:
    """The task weights c_i as a list, 1 each unless given."""
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count:
        raise TaskShapeError(f"there are {count} tasks but {len(values)} task weights")
    return values


def _signature(task: Task) -> tuple[Any, ...]:
    return task.together, *(part.shape for pair in (task.support, task.query) for part in pair)


def _stack(xs: list[Tensor], ys: list[Tensor], weights: list[Tensor | None], like: Tensor) -> Samples:
    x, y = (torch.stack(parts).to(like.device).detach() for parts in (xs, ys))
    w = [torch.ones(y.shape[1]) if weight is None else weight.detach() for weight in weights]
    return Samples(x, y, torch.stack(w).to(like))


def stack(tasks: list[Task], index: list[int], weights: list[float], like: Tensor) -> TaskBatch:
    """Stack tasks of equal shape; floating-point weights take the dtype and device of ``like``."""
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
    """The rows that go through the model when the losses of ``own`` are wanted, these first."""
    return torch.cat([own[0], other[0]]) if task.together else own[0]


def equal_shape_batches(
    tasks: Sequence[Task], positions: Iterable[int], size: int
) -> Iterator[tuple[list[int], list[Task]]]:
    """Batches of at most ``size`` of the tasks at ``positions``, of equal shape, as they fill up; reads each task once.

    A batch comes with its positions.
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
