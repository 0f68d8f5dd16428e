"""The events in a learner's life that are recorded: it is cloned, it is fed, its loss is computed, it adapts.

Nothing here may disturb the user's loop: failures of the recorder are kept in ``Recording.failures``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...storage.fingerprints import first_tensor, is_transformed, tensors_in
from ..directory import alive, directory
from ..episodes.clone_log import Adapted, CloneLog, Forward, LossReading
from ..episodes.features import Lookup
from ..episodes.graph import LOSS, mark_loss, mark_output, output_below, read_loss
from ..episodes.losses import Comparison, called
from ..episodes.normalisation import normalising, statistics
from ..episodes.watch import CloneWatch, LossHook, OutputHook
from ..learners.base import OTHER, PLAIN, model_of
from ..learners.registry import adapter_named, known_step
from ..recording import Recording, recording_of, updated_clones, watch_of
from ..tasksets.content import copied
from .listener import listening, lookup


def cloned(parent: nn.Module, clone: nn.Module) -> None:
    """``clone`` was made from ``parent``."""
    recording = recording_of(parent)
    try:
        watch = recording.watches[clone] = recording.begin(watch_of(parent))
        directory.recordings[clone] = recording
        modules, parameters = recording.parameter_paths.located(model_of(clone))
        watch.nodes, watch.normalising = _gradient_nodes(parameters), normalising(modules)
    except Exception:
        recording.failures.keep()


def fed(learner: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """``learner`` was called. Only clones are watched: calls of the learner itself belong to no task."""
    watch = watch_of(learner)
    if watch is None:
        return
    try:
        forward = _note(watch, first_tensor((*args, kwargs)))
        forward.batch_norm = statistics(watch.normalising)
        hook = OutputHook(watch, forward)
        marked = [mark_output(tensor, hook) for tensor in tensors_in(output)]
        if not any(marked):
            watch.listen()  # no output will say when to
    except Exception:
        watch.activity.failures.keep()


def _note(watch: CloneWatch, rows: Tensor | None) -> Forward:
    """Write down what a clone was fed."""
    if rows is None or is_transformed(rows):
        return watch.log.fed(None)
    log, activity, copy = watch.log, watch.activity, copied(rows)
    log.tasksets = log.tasksets or alive(directory.tasksets)
    forward = log.fed(rows.shape, data=not rows.requires_grad)
    where = lookup(listening())
    activity.calls.note(copy.nbytes, activity.failures, _identify, weakref.ref(log), forward, copy, where)
    return forward


def _identify(log: weakref.ref[CloneLog], forward: Forward, rows: Tensor, where: Lookup) -> None:
    known = log()
    if known is not None:  # else nobody can ask for the result
        known.identify(forward, rows, where)


def compared(function: str, original: Callable[..., Any], args: Sequence[Any], kwargs: Any, value: Any) -> None:
    """The torch loss ``function`` was called and returned ``value``."""
    outputs = args[0] if args else kwargs["input"]
    if value.grad_fn is None or is_transformed(outputs) or LOSS in value.grad_fn.metadata:
        return
    hook, between = output_below(outputs.grad_fn)
    if hook is not None:
        labels, loss = called(function, original, args, kwargs)
        mark_loss(value.grad_fn, LossHook(hook, Comparison.after(between, loss, copied(labels))))


@contextmanager
def adapting(learner: nn.Module, loss: Any, lr: Any, first_order: bool, rule: str = PLAIN) -> Iterator[None]:
    """``learner`` adapts to ``loss``. It counts if it succeeds, and if no adapt call inside it has counted."""
    watch = watch_of(learner)
    if watch is None:
        yield
        return
    recording, log = recording_of(learner), watch.log
    reading, steps = _read(watch, recording, loss, learner), log.steps
    watch.activity.adapting += 1
    try:
        yield
    finally:
        watch.activity.adapting -= 1
    try:
        if reading is not None and log.steps == steps:
            if not (log.forwards or reading.forwards):
                _fed_unseen(watch)
            known = rule if adapter_named(rule)(learner).steps_like(recording.learner) else OTHER
            log.adapted_to(reading, *known_step(lr, known), first_order)
        if recording.keeps_adapted:
            values = [parameter.detach() for parameter in _parameters(learner, recording)]
            adapted = log.adapted = Adapted(recording.parameter_paths.names, values)
            watch.activity.calls.hold(adapted.nbytes)
    except Exception:
        watch.activity.failures.keep()


def _fed_unseen(watch: CloneWatch) -> None:
    """A clone adapts that was not seen to be fed: if that trains the learner, it must not be ignored."""
    watch.log.fed(None).consumed = True
    watch.listen()  # no output will say when to


def _read(watch: CloneWatch, recording: Recording, loss: Any, learner: nn.Module) -> LossReading | None:
    try:
        # A clone that was fed nothing may adapt to what its own clones were fed.
        known = set(watch.log.forwards or recording.open_forwards())
        return read_loss(loss, known, lambda: _gradient_nodes(_parameters(learner, recording)), LossHook)
    except Exception:
        watch.activity.failures.keep()
        return None


def updated(model: object) -> bool:
    """``model`` was updated by other means than adapt; returns whether it belongs to a clone that is watched."""
    found = updated_clones(model)
    for watch in found:
        watch.log.updated()
    return bool(found)


def _gradient_nodes(parameters: Sequence[Tensor]) -> list[Any]:
    """The graph nodes that the gradients of a clone's parameters go on to."""
    return [node for parameter in parameters if (node := parameter.grad_fn) is not None]


def _parameters(learner: nn.Module, recording: Recording) -> list[Tensor]:
    """The parameters of the model inside a learner; a shared one as often as it occurs."""
    return recording.parameter_paths.of(model_of(learner))
