"""Reading the autograd graph of a loss: which forwards it came from, and which labels it saw.

Nothing here keeps a graph alive: a mark is an integer in the metadata of a node that is alive anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import RecordingError

MARK = "l2l_influence.forward"
FEW_NODES, MAX_NODES = 50, 20_000

# Between a model's output and the labels: operations that leave row i in row i.
_ROWWISE = ("LogSoftmax", "Div", "Mul", "Add", "Sub", "Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias",
            "Alias", "ToCopy", "Clone", "Neg")  # fmt: skip


def mark(output: Tensor, serial: int, when_used: Callable[..., None]) -> None:
    """Mark ``output`` as the result of forward ``serial``, and have ``when_used`` called when a backward passes it."""
    node: Any = output.grad_fn
    if node is not None:
        node.metadata.setdefault(MARK, []).append(serial)
        node.register_hook(when_used)


@dataclass
class LossReading:
    """What the graph of a loss tells: serials of the forwards it came from, and the labels it saw, by serial."""

    forwards: set[int] = field(default_factory=set)
    labels: dict[int, Tensor] = field(default_factory=dict)


def read_loss(loss: Tensor, known: set[int], stop: Callable[[], Iterable[Any]]) -> LossReading:
    """Search the graph of ``loss`` for the marks in ``known``, not going beyond the nodes that ``stop`` gives.

    Has to be called before anything frees the graph. The labels are copies.

    Raises:
        RecordingError: the graph is too large to be searched.
    """
    reading = LossReading()
    losses = []
    for node, serials in _below(loss.grad_fn, known, stop):
        reading.forwards |= serials
        if not serials and _target(node) is not None:
            losses.append(node)
    for node in losses:
        serial = _row_by_row(node, known)
        if serial is not None:
            reading.labels[serial] = _target(node).detach().cpu().clone()
    return reading


def _below(root: Any, known: set[int], stop: Callable[[], Iterable[Any]]) -> Iterator[tuple[Any, set[int]]]:
    """The nodes that ``root`` depends on, each with the known serials on it; not what is below these or ``stop``."""
    stack, seen = [root], set[Any]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if len(seen) == FEW_NODES:  # no plain loss of an output, so worth the time to look for the parameters
            seen.update(stop())
        if len(seen) > MAX_NODES:
            raise RecordingError(f"found no forward of the learner among the first {MAX_NODES} nodes of a loss's graph")
        seen.add(node)
        serials = _marks(node) & known
        yield node, serials
        if not serials:
            stack.extend(parent for parent, _ in node.next_functions)


def _marks(node: Any) -> set[int]:
    return set(node.metadata.get(MARK, ()))


def _target(node: Any) -> Any:
    """The labels that a loss node saved, if it is one and still has them."""
    try:
        return getattr(node, "_saved_target", None)
    except RuntimeError:  # freed by an earlier backward
        return None


def _row_by_row(node: Any, known: set[int]) -> int | None:
    """The forward whose output a loss node compares with its labels row by row, or None if that cannot be told."""
    while True:
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if len(parents) != 1:
            return None
        node = parents[0]
        serials = _marks(node) & known
        if serials:
            return max(serials)
        if not node.name().startswith(_ROWWISE):
            return None
