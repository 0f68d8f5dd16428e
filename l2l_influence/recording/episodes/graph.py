"""Reading the autograd graph of a loss: which forwards it came from, and what these were compared with.

Nothing here keeps a graph alive: a mark is an object in the metadata of a node that is alive anyway, and holds no node
that can be reached from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import RecordingError
from ..tasksets.content import copied
from .losses import Comparison, saved

if TYPE_CHECKING:
    from .episode import Forward, LossHook, OutputHook

OUTPUT, LOSS = "l2l_influence.output", "l2l_influence.loss"
"""Marks of the nodes that are a forward's output, and of those that are the value of a loss of one."""

FEW_NODES, MAX_NODES = 50, 20_000

NewHook = Callable[["OutputHook", Comparison], "LossHook"]

# torch.autograd.graph asks this itself, for its hooks on several tensors.
_will_execute: Callable[[Any], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)


def mark_output(output: Tensor, hook: OutputHook) -> bool:
    """Mark ``output`` as a forward's, and have ``hook`` called when a backward passes it.

    Says whether there is a graph to mark.
    """
    node: Any = output.grad_fn
    if node is None:
        return False
    node.metadata.setdefault(OUTPUT, []).append(hook)
    node.register_hook(hook)
    return True


def mark_loss(node: Any, hook: LossHook) -> None:
    """Mark ``node`` as the value of a loss, and have ``hook`` called when a backward comes to it."""
    node.metadata[LOSS] = hook
    node.register_prehook(hook)
    hook.output.forward.comparisons.append(hook.comparison)


def output_below(node: Any) -> tuple[OutputHook | None, list[str]]:
    """The forward's output that a value was computed from, if from nothing else, and the operations between the two."""
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
    """What the graph of a loss tells.

    Attributes:
        forwards: those that it came from.
        whole: whether it is made of losses of torch's and of nothing else: no penalty on parameters, for example.
    """

    forwards: set[Forward] = field(default_factory=set)
    whole: bool = True


def read_loss(loss: Tensor, known: set[Forward], stop: Callable[[], Iterable[Any]], hook: NewHook) -> LossReading:
    """Search the graph of ``loss`` for outputs of the forwards in ``known``, not beyond the nodes that ``stop`` gives.

    Has to be called before anything frees the graph. Losses on the way that were not seen when they were called are
    marked, with what ``hook`` makes for them.

    Raises:
        RecordingError: the graph is too large to be searched.
    """
    # A plain loss of an output is a few nodes above a mark; only else is it worth the time to look for the parameters.
    root = getattr(loss, "grad_fn", None)  # what is no tensor is for learn2learn to refuse
    search = _Search(known, hook)
    reading = search.below(root, set(), FEW_NODES) or search.below(root, set(stop()), MAX_NODES)
    if reading is None:
        raise RecordingError(f"found no forward of the learner among the first {MAX_NODES} nodes of a loss's graph")
    return reading


@dataclass
class _Search:
    known: set[Forward]
    hook: NewHook

    def below(self, root: Any, stop: set[Any], limit: int) -> LossReading | None:
        """What lies below ``root``, down to outputs and ``stop``; None if there are more nodes than ``limit``."""
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
                reading.whole = False  # an output that went another way, or something that is none
            stack.extend(parents)
        return reading

    def _outputs(self, node: Any) -> tuple[set[Forward], bool]:
        """The forwards that a node is an output of, or a loss of one; and whether it is a loss."""
        hook = node.metadata.get(LOSS) or self._marked(node)
        if hook is not None and hook.output.forward in self.known:
            return {hook.output.forward}, True
        return self.known.intersection(mark.forward for mark in node.metadata.get(OUTPUT, ())), False

    def _marked(self, node: Any) -> LossHook | None:
        """The mark of a node that is a loss which was not seen when it was called."""
        target = _target(node)
        output, between = output_below(None if target is None else _only_parent(node))
        if output is None or output.forward not in self.known:
            return None
        hook = self.hook(output, Comparison.after(between, saved(node), copied(target)))
        mark_loss(node, hook)
        return hook


def _target(node: Any) -> Any:
    """The labels that a loss node saved, if it is one and still has them."""
    try:
        return getattr(node, "_saved_target", None)
    except RuntimeError:  # freed by an earlier backward
        return None
