"""The three events of a learner's life that are recorded: it is cloned, it is fed, it adapts.

Nothing here may disturb the user's loop: what the recorder itself does wrong is kept in ``Recording.failures``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ...storage.fingerprints import first_tensor, is_transformed, tensors_in
from ..episodes.episode import Adapted, Forward, LossHook, OutputHook, Track, Watch
from ..episodes.graph import LossReading, mark_loss, mark_output, output_below, read_loss
from ..episodes.losses import Comparison, called
from ..episodes.normalisation import normalising, statistics
from ..episodes.task import Rule
from ..learners.base import known_step, model_of, require_learner, same_settings
from ..options import RecordingOptions
from ..recorder import Recording
from ..tasksets.board import board
from ..tasksets.content import copied
from ..tasksets.tasks import tasksets_alive
from .journal import journal

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
    recording = _recordings.get(learner)
    if recording is None:
        recording = _recordings[learner] = Recording()
    return recording


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
    try:
        watch = _watches[clone] = recording.begin(_watches.get(parent))
        modules, parameters = recording.places.located(model_of(clone))
        watch.nodes, watch.normalising = _gradient_nodes(parameters), normalising(modules)
    except Exception:
        recording.failures.keep()


def fed(learner: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """``learner`` was called. Only clones are watched: the learner itself is no task's."""
    watch = _watches.get(learner)
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
        watch.recording.failures.keep()


def _note(watch: Watch, rows: Tensor | None) -> Forward:
    """Write down what a clone was fed."""
    if rows is None or is_transformed(rows):
        return watch.track.fed(None)
    track, copy = watch.track, copied(rows)
    track.tasksets = track.tasksets or tasksets_alive()
    forward = track.fed(rows.shape, data=not rows.requires_grad)
    journal.note(copy.nbytes, watch.recording.failures, _identify, weakref.ref(track), forward, copy)
    return forward


def _identify(track: weakref.ref[Track], forward: Forward, rows: Tensor) -> None:
    known = track()
    if known is not None:  # else nobody can ask for what comes of it
        known.identify(forward, rows, board)


def compared(function: str, original: Callable[..., Any], args: Sequence[Any], kwargs: Any, value: Any) -> None:
    """A loss of torch's was called: the function of that name."""
    outputs = args[0] if args else kwargs["input"]
    if value.grad_fn is None or is_transformed(outputs):
        return
    hook, between = output_below(outputs.grad_fn)
    if hook is not None:
        labels, loss = called(function, original, args, kwargs)
        mark_loss(value.grad_fn, LossHook(hook, Comparison.after(between, loss, copied(labels))))


@contextmanager
def adapting(learner: nn.Module, loss: Any, lr: Any, first_order: bool, rule: Rule = "sgd") -> Iterator[None]:
    """``learner`` adapts to ``loss``. What is learnt counts if that succeeds, and not by a call of its own to this."""
    watch = _watches.get(learner)
    if watch is None:
        yield
        return
    reading, steps = _read(watch, loss, learner), watch.track.steps
    watch.recording.adapting += 1  # meanwhile gradients are no sign of meta-training
    try:
        yield
    finally:
        watch.recording.adapting -= 1
    try:
        if reading is not None and watch.track.steps == steps:
            if not (watch.track.forwards or reading.forwards):
                _fed_unseen(watch)
            if rule == "gbml" and not same_settings(learner, _cloned_from(watch.recording)):
                rule = "other"
            watch.track.adapted_to(reading, *known_step(lr, rule), first_order)
        if watch.recording.keeps_adapted:
            values = [parameter.detach() for parameter in _parameters(learner, watch.recording)]
            adapted = watch.track.adapted = Adapted(watch.recording.places.names, values)
            journal.hold(adapted.nbytes)
    except Exception:
        watch.recording.failures.keep()


def _fed_unseen(watch: Watch) -> None:
    """A clone adapts that was not seen to be fed: if that trains the learner, it is not to be passed over."""
    watch.track.fed(None).consumed = True
    watch.listen()  # no output will say when to


def _cloned_from(recording: Recording) -> nn.Module | None:
    """The learner whose recording it is."""
    return next((learner for learner, known in list(_recordings.items()) if known is recording), None)


def _read(watch: Watch, loss: Any, learner: nn.Module) -> LossReading | None:
    try:
        # A clone that was fed nothing may adapt to what its own clones were fed.
        known = set(watch.track.forwards or watch.recording.open_forwards())
        return read_loss(loss, known, lambda: _gradient_nodes(_parameters(learner, watch.recording)), LossHook)
    except Exception:
        watch.recording.failures.keep()
        return None


def updated(model: object) -> bool:
    """``model`` was updated by other means than adapt; says whether it belongs to a clone that is watched."""
    found = [watch for clone, watch in list(_watches.items()) if model in (clone, clone.module, model_of(clone))]
    for watch in found:
        watch.track.updated()
    return bool(found)


def _gradient_nodes(parameters: Sequence[Tensor]) -> list[Any]:
    """Where the gradients of the parameters of a clone go on to."""
    return [node for parameter in parameters if (node := parameter.grad_fn) is not None]


def _parameters(learner: nn.Module, recording: Recording) -> list[Tensor]:
    """The parameters of the model inside a learner, one that is shared as often as it occurs."""
    return recording.places.of(model_of(learner))
