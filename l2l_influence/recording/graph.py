"""Reading the autograd graph of a loss: which forwards it came from, and which labels it saw.

Nothing here keeps a graph alive: a mark is an integer in the metadata of a node that is alive anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    # A plain loss of an output is a few nodes above a mark; only else is it worth the time to look for the parameters.
    root = getattr(loss, "grad_fn", None)  # what is no tensor is for learn2learn to refuse
    nodes = _below(root, known, set(), FEW_NODES) or _below(root, known, set(stop()), MAX_NODES)
    if nodes is None:
        raise RecordingError(f"found no forward of the learner among the first {MAX_NODES} nodes of a loss's graph")
    reading = LossReading()
    for node, serials in nodes:
        reading.forwards |= serials
        target = None if serials else _target(node)
        if target is not None and (serial := _row_by_row(node, known)) is not None:
            reading.labels[serial] = target.detach().cpu().clone()
    return reading


def _below(root: Any, known: set[int], seen: set[Any], limit: int) -> list[tuple[Any, set[int]]] | None:
    """The nodes that ``root`` depends on, each with the known serials on it; not those ``seen`` or below marks.

    None if there are more than ``limit``.
    """
    nodes: list[tuple[Any, set[int]]] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if len(nodes) == limit:
            return None
        seen.add(node)
        serials = _marks(node) & known
        nodes.append((node, serials))
        if not serials:
            stack.extend(parent for parent, _ in node.next_functions)
    return nodes


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
