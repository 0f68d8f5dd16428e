""":class:`Task`, and batches of tasks of equal shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ..errors import TaskShapeError

Inputs = Any
"""Inputs of a loss: a tensor, or tensors in any nesting of tuples, lists and dicts."""

Pair = tuple[Inputs, Tensor]


@dataclass(frozen=True)
class Task:
    """One few-shot task: a support set, to which θ is fitted, and a query set, on which the outer loss is measured.

    Attributes:
        support: ``(x, y)``. y is a tensor with one row for each of the ``n_s`` samples. x is a tensor with as many
            rows, or tensors of any shapes in a nesting of tuples, lists and dicts, which the losses take as it is.
        query: ``(x, y)``, the same for ``n_q`` samples.
        support_weights: shape ``(n_s + r,)``, the weights w_j in L_I; 1 for each sample if None. A mean over the
            samples is w = 1/n_s. The loss returns as many values. The last r of them belong to no sample: they are
            terms of the whole set, such as a penalty, or a loss in which the samples are coupled.
        query_weights: shape ``(n_q + r,)``, the same for L_O; r may differ from that of the support set.
        start: named tensors where the inner solver starts; θ_0(λ) if None. It does not change the solution that is
            sought.
        together: whether support and query rows pass through the model in one batch, as in loops that compute all
            features at once. It matters only to batch statistics.

    Raises:
        TaskShapeError: y has no rows, or a tensor x has another number of rows; there are fewer weights than samples; x
            holds something other than tensors; or ``together`` is set and x is not one tensor.

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
        if self.together and not (isinstance(self.support[0], Tensor) and isinstance(self.query[0], Tensor)):
            raise TaskShapeError(
                "together=True needs x to be one tensor in both sets, whose rows can be joined: leave it False, and "
                "let the loss join its inputs"
            )


class Samples(NamedTuple):
    """Samples of ``B`` tasks: x ``[B, n, ...]``, y ``[B, n, ...]``, weights ``[B, n + r]``.

    x may have more rows than y: these pass through the model with the others (in batch statistics) and have no loss. If
    x is a nesting of tensors, each of them has a leading B, and no other dimension is common to all. The last r weights
    belong to terms of the loss that are not the term of one sample, see :class:`Task`.
    """

    x: Inputs
    y: Tensor
    w: Tensor

    @property
    def rows(self) -> int:
        """n, the number of samples of each task."""
        return self.y.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        leaves: list[Tensor] = tree_leaves(tuple(self))
        return sum(leaf.nbytes for leaf in leaves)

    def select(self, span: slice) -> Samples:
        """The samples of a part of the batch: of the tasks at the batch positions ``span``."""
        return self._at(span)

    def of_task(self, position: int) -> Samples:
        """The samples of one task, without the leading ``B``."""
        return self._at(position)

    def by_task(self) -> Iterator[Samples]:
        """The samples of each task, without the leading ``B``."""
        return map(self.of_task, range(len(self.w)))

    def _at(self, place: slice | int) -> Samples:
        return Samples(tree_map(lambda leaf: leaf[place], self.x), self.y[place], self.w[place])


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
    x, y = pair
    labels = len(y) if y.dim() else 0
    rows = (len(x) if x.dim() else 0) if isinstance(x, Tensor) else labels
    if rows != labels or labels == 0:
        raise TaskShapeError(f"{name}: x has {rows} rows and y has {labels}; they need the same number, at least 1")
    others = sorted({type(leaf).__name__ for leaf in tree_leaves(x) if not isinstance(leaf, Tensor)})
    if others:
        raise TaskShapeError(
            f"{name}: x must consist of tensors in tuples, lists and dicts, but holds {', '.join(others)}: make "
            "tensors of them, or let the loss hold what is the same for all tasks"
        )
    if weights is not None and (weights.dim() != 1 or len(weights) < labels):
        raise TaskShapeError(
            f"{name}_weights must have shape ({labels},), one weight per sample, or be longer by the number of terms "
            f"that belong to no sample; got {tuple(weights.shape)}"
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
    """Equal for tasks that can be stacked: shapes and dtypes of all tensors, and how they are nested."""
    sets = ((task.support, task.support_weights), (task.query, task.query_weights))
    return task.together, *(part for pair, weights in sets for part in _set_signature(pair, weights))


def _set_signature(pair: Pair, weights: Tensor | None) -> tuple[Any, ...]:
    leaves, nesting = tree_flatten(pair)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return str(nesting), kinds, len(pair[1]) if weights is None else len(weights)


def _stack(xs: list[Inputs], ys: list[Tensor], weights: list[Tensor | None], like: Tensor) -> Samples:
    def stacked(*parts: Tensor) -> Tensor:
        return torch.stack(parts).to(like.device).detach()

    y = stacked(*ys)
    w = [torch.ones(y.shape[1]) if weight is None else weight.detach() for weight in weights]
    return Samples(tree_map(stacked, *xs), y, torch.stack(w).to(like))


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


def _inputs(task: Task, own: Pair, other: Pair) -> Inputs:
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
