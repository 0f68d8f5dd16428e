"""What is watched in learn2learn: one table of its classes' methods, and of what tells the recorder of their calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import learn2learn
from learn2learn import algorithms, utils
from learn2learn.algorithms import maml, meta_sgd
from learn2learn.data import Taskset
from learn2learn.optim import DifferentiableSGD
from torch import nn
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ..episodes.losses import CLASSES
from ..learners.base import ROOTS, RULES
from ..tasksets.board import board
from ..tasksets.serving import drawing, post, post_delivered, under_way
from ..tasksets.tasks import TaskDataset
from . import observe
from .drop_ins import Recorded
from .features import watcher
from .patching import Function, Patches, Wrapper

if TYPE_CHECKING:
    from ..study.study import Study

studies: list[Study] = []
"""Those that are being recorded; each is told of every learner."""


class _Running(threading.local):
    def __init__(self) -> None:
        self.calls: set[Any] = set()


_running = _Running()
_UPDATING = _ADAPT, _UPDATE = "adapt", "update"


@contextmanager
def _outermost(call: Any) -> Iterator[bool]:
    """Whether no such call is under way in this thread already."""
    first = call not in _running.calls
    _running.calls.add(call)
    try:
        yield first
    finally:
        if first:
            _running.calls.remove(call)


def _cloning(_owner: type, original: Function) -> Function:
    def clone(self: Any, *args: Any, **kwargs: Any) -> Any:
        for study in studies:
            study.meet(self)
        made = original(self, *args, **kwargs)
        if not isinstance(self, Recorded) and isinstance(made, nn.Module) and not observe.watched(made):
            observe.cloned(self, made)
        return made

    return clone


def _feeding(_owner: type, original: Function) -> Function:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _outermost((id(self), "forward")) as first, watcher.resting():
            output = original(self, *args, **kwargs)
        if first and not isinstance(self, Recorded):
            if not observe.watched(self) and any(parameter.grad_fn is not None for parameter in self.parameters()):
                _remark("forwards of clones that were made before the recording began")
            observe.fed(self, args, kwargs, output)
        return output

    return forward


def _adapting(owner: type, original: Function) -> Function:
    rule = RULES.get(owner, "other")  # a user's own method may do anything; if it calls learn2learn's, that is told

    def adapt(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _outermost(_ADAPT):
            if isinstance(self, Recorded):
                return original(self, *args, **kwargs)
            loss = args[0] if args else kwargs.get("loss")
            chosen = kwargs.get("first_order", args[1] if rule != "other" and len(args) > 1 else None)
            first_order = getattr(self, "first_order", False) if chosen is None else chosen
            with observe.adapting(self, loss, getattr(self, "lr", None), first_order, rule):
                return original(self, *args, **kwargs)

    return adapt


def _updating(position: int, name: str) -> Wrapper:
    """For a function that updates the model that is its argument number ``position``, or called ``name``."""

    def updating(_owner: Any, original: Function) -> Function:
        def update(*args: Any, **kwargs: Any) -> Any:
            if not _running.calls.isdisjoint(_UPDATING):  # an adapt, or an update of a module that holds this one
                return original(*args, **kwargs)
            with _outermost(_UPDATE):
                updated = original(*args, **kwargs)
            _note_update(args[position] if len(args) > position else kwargs[name])
            return updated

        return update

    return updating


def _note_update(model: object) -> None:
    known = False
    with board.failures.kept():
        known = observe.updated(model)
    if not known:
        _remark("updates (by maml_update or the like) of modules that no learner made: use add_episode()")


def _serving(_owner: type, original: Function) -> Function:
    method = original.__name__

    def serve(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer = under_way()
        with drawing() if outer is None else nullcontext(outer) as draw:
            batch = original(self, *args, **kwargs)
        draw.calls.append((self, method, next(iter((*args, *kwargs.values())), None), batch))
        if outer is None and not isinstance(self, TaskDataset) and get_worker_info() is None:
            with board.failures.kept():
                post(self, batch, draw)
        return batch

    return serve


def _delivering(_owner: type, original: Function) -> Function:
    def deliver(self: Any) -> Any:
        batch = original(self)
        with board.failures.kept():
            post_delivered(self, batch)
        return batch

    return deliver


def _comparing(_owner: Any, original: Function) -> Function:
    function = original.__name__

    def compare(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        with board.failures.kept():
            observe.compared(function, original, args, kwargs, value)
        return value

    return compare


def _remark(text: str) -> None:
    for study in studies:
        study.remarks[text] += 1


_LEARNERS = (("clone", _cloning), ("forward", _feeding), ("adapt", _adapting))
_UPDATES = (
    (maml, "maml_update", 0, "model"),
    (algorithms, "maml_update", 0, "model"),
    (meta_sgd, "meta_sgd_update", 0, "model"),
    (algorithms, "meta_sgd_update", 0, "model"),
    (utils, "update_module", 0, "module"),
    (learn2learn, "update_module", 0, "module"),
    (DifferentiableSGD, "forward", 1, "module"),
)

patches = Patches(
    (
        *((root, name, wrapper) for root in ROOTS for name, wrapper in _LEARNERS),
        *((Taskset, name, _serving) for name in ("sample", "__getitem__", "__next__", "get_task")),
        (_BaseDataLoaderIter, "__next__", _delivering),
        *((owner, name, _updating(position, argument)) for owner, name, position, argument in _UPDATES),
        *((nn.functional, name, _comparing) for name in CLASSES),
    )
)
"""The one table. Applied while any study is recorded."""
