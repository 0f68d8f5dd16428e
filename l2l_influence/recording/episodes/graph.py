"""Reads the autograd graph of a loss, to find the forwards it was computed from and the labels they were compared with.

Nothing here keeps a graph alive: a mark is an object in the metadata of a node, and holds no node of that graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import RecordingError
from ..tasksets.content import copied
from .clone_log import Forward, LossReading
from .losses import Comparison, saved

OUTPUT, LOSS = "l2l_influence.output", "l2l_influence.loss"
"""Keys of the marks on nodes that are a forward's output, and on nodes that are the value of a loss of one."""

FEW_NODES, MAX_NODES = 50, 20_000


class OutputMark(Protocol):
    """Marks a node as a forward's output; called when a backward passes it."""

    @property
    def forward(self) -> Forward: ...

    @property
    def adapting(self) -> bool: ...

    def __call__(self, *gradients: Any) -> None: ...


class LossMark(Protocol):
    """Marks a node as the value of a loss; called when a backward reaches it."""

    @property
    def output(self) -> OutputMark: ...

    @property
    def comparison(self) -> Comparison: ...

    def __call__(self, gradients: Any) -> None: ...


NewMark = Callable[[Any, Comparison], LossMark]
"""Makes the mark of a loss of a marked output."""

# torch.autograd.graph uses this for its own hooks on several tensors.
_will_execute: Callable[[Any], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)


def mark_output(output: Tensor, hook: OutputMark) -> bool:
    """Mark ``output`` as a forward's, and have ``hook`` called when a backward passes it.

    Returns whether there is a graph to mark.
    """
    node: Any = output.grad_fn
    if node is None:
        return False
    node.metadata.setdefault(OUTPUT, []).append(hook)
    node.register_hook(hook)
    return True


def mark_loss(node: Any, hook: LossMark) -> None:
    """Mark ``node`` as the value of a loss, and have ``hook`` called when a backward comes to it."""
    node.metadata[LOSS] = hook
    node.register_prehook(hook)
    hook.output.forward.comparisons.append(hook.comparison)


def output_below(node: Any) -> tuple[OutputMark | None, list[str]]:
    """The mark of the one output that a value was computed from, or None, and the operations between the two."""
    between: list[str] = []
    while node is not None and len(between) < FEW_NODES:
        if marks := node.metadata.get(OUTPUT):
            return marks[-1], between
        between.append(node.name())
        node = _only_parent(node)
    return None, between


def _only_parent(node: Any) -> Any:
    parents = [parent for parent, _ in node.next_functions if parent is not None]
    return parents[0] if len(parents) == 1 else None


def running_backward_passes(nodes: Iterable[Any]) -> bool | None:
    """True if the backward under way goes through one of ``nodes`` and beyond; None if torch cannot tell.

    Asking is nearly free. A hook on each parameter's node would give the same answer, and cost as much as the rest of
    the recorder.
    """
    return None if _will_execute is None else any(_passes(node) for node in nodes)


def _passes(node: Any) -> bool:
    # A node that only gives its gradient to autograd.grad counts as executed, but no node beyond it does.
    return _runs(node) and any(_runs(beyond) for beyond, _ in node.next_functions if beyond is not None)


def _runs(node: Any) -> bool:
    try:
        return bool(_will_execute(node))  # type: ignore[misc]
    except RuntimeError:  # torch's answer for a parameter whose gradient autograd.grad was asked for
        return True


def read_loss(loss: Tensor, known: set[Forward], stop: Callable[[], Iterable[Any]], hook: NewMark) -> LossReading:
    """Search the graph of ``loss`` for outputs of the forwards in ``known``, not beyond the nodes from ``stop``.

    Must be called before the graph is freed. Losses on the way that were not seen when they were called are marked,
    with marks made by ``hook``.

    Raises:
        RecordingError: the graph is too large to be searched.
    """
    # A plain loss of an output is a few nodes above a mark; looking for the parameters is only worth the time if not.
    root = getattr(loss, "grad_fn", None)  # learn2learn refuses what is no tensor
    search = _Search(known, hook)
    reading = search.below(root, set(), FEW_NODES) or search.below(root, set(stop()), MAX_NODES)
    if reading is None:
        raise RecordingError(
            f"the autograd graph of a loss given to adapt() is too large: none of its first {MAX_NODES} nodes is an "
            "output of the learner. Compute the loss from the learner's outputs with fewer operations, or enter the "
            "episodes by hand with Study.add_episode()"
        )
    return reading


@dataclass
class _Search:
    known: set[Forward]
    hook: NewMark

    def below(self, root: Any, stop: set[Any], limit: int) -> LossReading | None:
        """The reading below ``root``, down to outputs and ``stop``; None if there are more nodes than ``limit``."""
        reading, stack = LossReading(), [root]
        seen: set[Any] = set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            if len(seen) == limit:
                return None
            seen.add(node)
            found, compared = self._outputs(node)
            reading.forwards |= found
            parents = [] if found or node in stop else [parent for parent, _ in node.next_functions]
            if not compared and not any(parents):
                reading.whole = False  # an output that reached no torch loss, or no output at all
            stack.extend(parents)
        return reading

    def _outputs(self, node: Any) -> tuple[set[Forward], bool]:
        """The forwards whose output, or loss of an output, this node is; and whether it is a loss."""
        hook = node.metadata.get(LOSS) or self._marked(node)
        if hook is not None and hook.output.forward in self.known:
            return {hook.output.forward}, True
        return self.known.intersection(mark.forward for mark in node.metadata.get(OUTPUT, ())), False

    def _marked(self, node: Any) -> LossMark | None:
        """A mark for a node that is a loss, if it was not seen when it was called."""
        target = _target(node)
        output, between = output_below(None if target is None else _only_parent(node))
        if output is None or output.forward not in self.known:
            return None
        hook = self.hook(output, Comparison.after(between, saved(node), copied(target)))
        mark_loss(node, hook)
        return hook


def _target(node: Any) -> Any:
    """The labels that a loss node saved; None for another node, or if they were freed."""
    try:
        return getattr(node, "_saved_target", None)
    except RuntimeError:  # freed by an earlier backward
        return None
