"""Reading the autograd graph of a loss: which forwards it came from, and which labels it saw.

Nothing here keeps a graph alive: a mark is an integer in the metadata of a node that is alive anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import RecordingError

MARK = "l2l_influence.forward"
FEW_NODES, MAX_NODES = 50, 20_000

# torch.autograd.graph asks this itself, for its hooks on several tensors.
_will_execute: Callable[[Any], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)

# Between a model's output and the labels: operations that leave row i in row i.
_ROWWISE = ("LogSoftmax", "Div", "Mul", "Add", "Sub", "Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias",
            "Alias", "ToCopy", "Clone", "Neg")  # fmt: skip


def mark(output: Tensor, serial: int, when_used: Callable[..., None]) -> bool:
    """Mark ``output`` as the result of forward ``serial``, and have ``when_used`` called when a backward passes it.

    Says whether there is a graph to mark.
    """
    node: Any = output.grad_fn
    if node is None:
        return False
    node.metadata.setdefault(MARK, []).append(serial)
    node.register_hook(when_used)
    return True


def running_backward_passes(nodes: Iterable[Any]) -> bool | None:
    """Whether the backward that calls this goes through one of ``nodes`` and beyond; None if torch does not tell.

    To ask costs next to nothing. A hook on each parameter's node, which tells the same, costs as much as all the rest
    of the recorder.
    """
    return None if _will_execute is None else any(_passes(node) for node in nodes)


def _passes(node: Any) -> bool:
    # A node that only hands its gradient to autograd.grad counts as executed; but then nothing beyond it does.
    return _runs(node) and any(_runs(beyond) for beyond, _ in node.next_functions if beyond is not None)


def _runs(node: Any) -> bool:
    try:
        return bool(_will_execute(node))  # type: ignore[misc]
    except RuntimeError:  # torch's answer for a parameter whose gradient autograd.grad was asked for
        return True


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
            reading.labels[serial] = target.detach().clone()
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
        serials = _marks(node, known)
        nodes.append((node, serials))
        if not serials:
            stack.extend(parent for parent, _ in node.next_functions)
    return nodes


def _marks(node: Any, known: set[int]) -> set[int]:
    return known.intersection(node.metadata.get(MARK, ()))


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
        serials = _marks(node, known)
        if serials:
            return max(serials)
        if not node.name().startswith(_ROWWISE):
            return None
