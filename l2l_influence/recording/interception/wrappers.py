"""The table of learn2learn's and torch's methods that are wrapped while a loop is recorded, and their wrappers.

A wrapper calls the original and reports the call to the listening recorders. Where the wrappers of several recorders
are nested, or a method calls another of the table, only one wrapper reports: the outermost or the innermost, as the
code of the wrapper says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import learn2learn
from learn2learn import algorithms, utils
from learn2learn.algorithms import maml, meta_sgd
from learn2learn.data import Taskset
from learn2learn.optim import DifferentiableSGD
from torch import nn
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ..episodes.losses import CLASSES
from ..learners.base import OTHER
from ..learners.registry import ROOTS, adapter_defining
from ..recording import watched
from ..tasksets import serving
from ..tasksets.served import ServedBatches
from ..tasksets.tasks import TaskDataset, info_of, plain
from . import observe
from .drop_ins import Recorded
from .listener import Listener, listening
from .patches import Function, Wrapper

_running: ContextVar[frozenset[Any]] = ContextVar("running", default=frozenset())
_UPDATING = _ADAPT, _UPDATE = "adapt", "update"


@contextmanager
def _outermost(call: Any) -> Iterator[bool]:
    """True if no such call is under way in this context already."""
    before = _running.get()
    if call in before:
        yield False
        return
    token = _running.set(before | {call})
    try:
        yield True
    finally:
        _running.reset(token)


def _cloning(_owner: type, original: Function) -> Function:
    def clone(self: Any, *args: Any, **kwargs: Any) -> Any:
        for listener in listening():
            listener.meet(self)
        made = original(self, *args, **kwargs)
        # The innermost one tells.
        if not isinstance(self, Recorded) and isinstance(made, nn.Module) and not watched(made):
            observe.cloned(self, made)
        return made

    return clone


def _feeding(_owner: type, original: Function) -> Function:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _outermost((id(self), "forward")) as first:
            listeners = listening() if first else []
            with _paused(listeners):
                output = original(self, *args, **kwargs)
        if first and not isinstance(self, Recorded):
            if not watched(self) and any(parameter.grad_fn is not None for parameter in self.parameters()):
                _remark("forwards of clones that were made before the recording began")
            observe.fed(self, args, kwargs, output)
        return output

    return forward


@contextmanager
def _paused(listeners: list[Listener]) -> Iterator[None]:
    for listener in listeners:
        listener.module_calls.pause()
    try:
        yield
    finally:
        for listener in listeners:
            listener.module_calls.resume()


def _adapting(owner: type, original: Function) -> Function:
    known = adapter_defining(owner)  # a user's own method may do anything; if it calls learn2learn's, that one tells

    def adapt(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _outermost(_ADAPT):
            if isinstance(self, Recorded):
                return original(self, *args, **kwargs)
            loss = args[0] if args else kwargs.get("loss")
            chosen = kwargs.get("first_order", args[1] if known is not None and len(args) > 1 else None)
            first_order = getattr(self, "first_order", False) if chosen is None else chosen
            rule = OTHER if known is None else known.rule
            # The innermost one tells: the others see that a step was counted.
            with observe.adapting(self, loss, getattr(self, "lr", None), first_order, rule):
                return original(self, *args, **kwargs)

    return adapt


def _updating(position: int, name: str) -> Wrapper:
    """For a function that updates the model that is its argument number ``position``, or called ``name``."""

    def updating(_owner: Any, original: Function) -> Function:
        def update(*args: Any, **kwargs: Any) -> Any:
            if not _running.get().isdisjoint(_UPDATING):  # an adapt, or an update of a module that holds this one
                return original(*args, **kwargs)
            with _outermost(_UPDATE):
                updated = original(*args, **kwargs)
            _note_update(args[position] if len(args) > position else kwargs[name])
            return updated

        return update

    return updating


def _note_update(model: object) -> None:
    known = False
    with _kept(listening()):
        known = observe.updated(model)
    if not known:
        _remark("updates (by maml_update or the like) of modules that no learner made: use add_episode()")


def _serving(_owner: type, original: Function) -> Function:
    method = original.__name__

    def serve(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer = serving.under_way()
        with serving.drawing() if outer is None else nullcontext(outer) as draw:
            batch = original(self, *args, **kwargs)
        draw.calls.append((self, method, next(iter((*args, *kwargs.values())), None), batch))
        if outer is None and not isinstance(self, TaskDataset) and get_worker_info() is None:
            with _kept(listening()), info_of(self).failures.kept():
                serving.record_drawn(_served(), self, batch, draw)
        return batch

    return serve


def _delivering(_owner: type, original: Function) -> Function:
    def deliver(self: Any) -> Any:
        with _outermost("delivery") as first:
            batch = original(self)
        if first:
            with _kept(listening()):
                for taskset, task in serving.delivered(self, batch):
                    serving.record_served(_served(), task, plain(taskset), None, None, by_index=False)
        return batch

    return deliver


def _comparing(_owner: Any, original: Function) -> Function:
    function = original.__name__

    def compare(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        try:
            observe.compared(function, original, args, kwargs, value)  # the innermost one tells, and leaves a mark
        except Exception:
            _keep(listening())
        return value

    return compare


def _served() -> list[ServedBatches]:
    return [listener.served for listener in listening()]


def _remark(text: str) -> None:
    for listener in listening():
        listener.remark(text)


@contextmanager
def _kept(listeners: list[Listener]) -> Iterator[None]:
    """A failure inside concerns all that listen."""
    try:
        yield
    except Exception:
        _keep(listeners)


def _keep(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.failures.keep()


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

TABLE: tuple[tuple[Any, str, Wrapper], ...] = (
    *((root, name, wrapper) for root in ROOTS for name, wrapper in _LEARNERS),
    *((Taskset, name, _serving) for name in ("sample", "__getitem__", "__next__", "get_task")),
    (_BaseDataLoaderIter, "__next__", _delivering),
    *((owner, name, _updating(position, argument)) for owner, name, position, argument in _UPDATES),
    *((nn.functional, name, _comparing) for name in CLASSES),
)
"""The functions that each recorder wraps while its block is open: owner, name of the attribute, wrapper."""
