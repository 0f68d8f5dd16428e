"""The three events of a learner's life that are recorded: it is cloned, it is fed, it adapts.

Nothing here may disturb the user's loop: what the recorder itself does wrong is kept in ``Recording.failures``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from .board import board
from .digests import row_digests, tensors_in
from .episode import Watch
from .features import features
from .graph import mark, read_loss
from .learners import known_step, require_learner
from .options import RecordingOptions
from .recording import Recording
from .task import Rule

# Side tables, keyed weakly: nothing is stored on the modules, so state_dict, pickle and deepcopy know nothing of this.
_recordings: weakref.WeakKeyDictionary[nn.Module, Recording] = weakref.WeakKeyDictionary()
_watches: weakref.WeakKeyDictionary[nn.Module, Watch] = weakref.WeakKeyDictionary()


def recording_of(learner: nn.Module) -> Recording:
    """The recording of a learner, or of the learner that a clone was made from. Made when first asked for.

    Raises:
        RecordingError: it is no learner that can be recorded; says which can.
    """
    require_learner(learner)
    watch = _watches.get(learner)
    if watch is not None:
        return watch.recording
    if learner not in _recordings:
        _recordings[learner] = Recording()
    return _recordings[learner]


def prepare(learner: nn.Module, options: RecordingOptions) -> None:
    """Have the recording of a learner that has none yet made with ``options``."""
    if learner not in _watches and learner not in _recordings:
        _recordings[learner] = Recording(replace(options))


def enter(learner: nn.Module, recording: Recording) -> None:
    """Let ``recording`` be that of a learner that has none yet."""
    _recordings[learner] = recording


def recorded_learners() -> list[nn.Module]:
    """The learners that have a recording, as far as they are alive; without their clones."""
    return list(_recordings)


def watched(learner: nn.Module) -> bool:
    """Whether it is a clone of which all is recorded."""
    watch = _watches.get(learner)
    return watch is not None and not watch.episode.closed


def cloned(parent: nn.Module, clone: nn.Module) -> None:
    """``clone`` was made from ``parent``."""
    recording = recording_of(parent)
    with recording.failures.kept():
        watch = _watches[clone] = recording.begin(_watches.get(parent))
        for node in _gradient_nodes(clone):
            node.register_hook(watch.reached_meta_parameters)


def fed(learner: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """``learner`` was called. Only clones are watched: the learner itself is no task's."""
    watch = _watches.get(learner)
    if watch is None:
        return
    with watch.recording.failures.kept():
        rows = next(tensors_in((args, kwargs)), None)
        digests, shape = ((), "none") if rows is None else (row_digests(rows), str(tuple(rows.shape)))
        call = features.source(digests)
        forward = watch.track.fed(digests if call is None else call.origin(digests), shape, board)
        forward.features = call
        for tensor in tensors_in(output):
            mark(tensor, forward.serial, watch.watch_output(forward))


@contextmanager
def adapting(learner: nn.Module, loss: Any, lr: Any, first_order: bool, rule: Rule = "sgd") -> Iterator[None]:
    """``learner`` adapts to ``loss``. What is learnt counts if that succeeds, and not by a call of its own to this."""
    watch = _watches.get(learner)
    if watch is None:
        yield
        return
    reading = None
    with watch.recording.failures.kept():
        known = {forward.serial for forward in watch.track.forwards}
        reading = read_loss(loss, known, lambda: _gradient_nodes(learner))
    steps = watch.track.steps
    with watch.recording.adaptation():
        yield
    with watch.recording.failures.kept():
        if reading is not None and watch.track.steps == steps:
            lr, rule = known_step(lr, rule)
            watch.track.adapted_to(reading, lr, first_order, rule)
        if watch.recording.options.keep_adapted:
            watch.track.adapted = {name: value.detach() for name, value in _model(learner).named_parameters()}


def updated(model: object) -> bool:
    """``model`` was updated by other means than adapt; says whether it belongs to a clone that is watched."""
    found = [watch for clone, watch in list(_watches.items()) if model is clone or model is _model(clone)]
    for watch in found:
        watch.track.updated()
    return bool(found)


def _gradient_nodes(learner: nn.Module) -> list[Any]:
    """Where the gradients of the parameters of a clone go on to."""
    return [parameter.grad_fn for parameter in _model(learner).parameters() if parameter.grad_fn is not None]


def _model(learner: nn.Module) -> nn.Module:
    """The model inside a learner."""
    return learner.get_submodule("module")
