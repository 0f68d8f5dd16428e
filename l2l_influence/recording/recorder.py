"""`Recorder`: one open ``record()`` block. It owns all that is needed to record, and restores everything at its end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..storage.fingerprints import first_tensor
from .deferred import catch_up
from .directory import directory
from .episodes.features import Features
from .episodes.normalisation import normalising, statistics
from .failures import Failures
from .interception.drop_ins import Recorded
from .interception.listener import Listener, close_here, listening, lookup, open_here
from .interception.module_calls import ModuleCalls
from .interception.patches import Patches
from .interception.wrappers import TABLE
from .recording import recording_of
from .study.study import Study
from .tasksets.content import copied
from .tasksets.served import ServedBatches


class Recorder(Listener):
    """Records what happens in the context (thread) of its block, for a study.

    It owns the patches of learn2learn's classes, the batches that were served, the features that were computed from
    them, and its failures; the recordings of learners own what was found out about each. Nothing of it is shared with
    other recorders.

    Args:
        study: gets to know all learners that are cloned.
    """

    def __init__(self, study: Study) -> None:
        self.active = False
        self.study = study
        self.failures = Failures()
        self.served = ServedBatches()
        self.features = Features()
        self.module_calls = ModuleCalls(self._called)
        self._patches = Patches(TABLE, self._hears)

    def begin(self) -> None:
        """Start to listen."""
        with directory.lock:
            self.active = True
            open_here(self)
            self._patches.apply()
            self.module_calls.on()

    def end(self) -> None:
        """Stop, and end the open episodes of the learners that no other recorder listens to."""
        with directory.lock:
            self._patches.undo()
            self.module_calls.off()
            catch_up()
            self.active = False
            close_here(self)
            for learner in self.study.learners:
                if not isinstance(learner, Recorded) and not _listened_to(learner):
                    recording_of(learner).close()
            self.served.clear()
            self.features.clear()

    def meet(self, learner: nn.Module) -> None:
        """Add a learner to the study, before a clone of it is made."""
        self.study.meet(learner).concerned_by(self.failures)

    def remark(self, text: str) -> None:
        """Add a remark to the study, about something that belongs to no single learner."""
        self.study.remarks[text] += 1

    def _hears(self) -> bool:
        return self in listening()

    def _called(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """The loop has called a module, which may have computed features."""
        if not self._hears():
            return
        with self.failures.kept():
            rows = first_tensor((args,))
            if rows is not None and min(rows.dim(), output.dim()) > 0 and len(rows) == len(output):
                self._note_features(module, copied(rows), copied(output))

    def _note_features(self, module: nn.Module, fed: Tensor, made: Tensor) -> None:
        mode = statistics(normalising(module.modules()))
        size = fed.nbytes + made.nbytes
        self.served.calls.note(size, self.failures, self.features.note, module, fed, made, mode, lookup([self]))


def _listened_to(learner: nn.Module) -> bool:
    return any(learner in other.study.learners for other in directory.listeners if other.active)
