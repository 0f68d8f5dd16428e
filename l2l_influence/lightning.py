"""`RecordingCallback`: records what a Lightning ``Trainer`` fits.

Needs Lightning 2: ``pip install "l2l-influence[lightning]"``. It is imported as ``pytorch_lightning``, because
learn2learn's ``LightningMAML`` and ``LightningANIL`` derive from that package and not from ``lightning.pytorch``.
"""

from __future__ import annotations

from contextlib import ExitStack

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "l2l_influence.lightning needs Lightning as pytorch_lightning, the name that learn2learn imports. Install it: "
        'pip install "l2l-influence[lightning]"'
    ) from error

from .errors import RecordingError
from .recording import RecordingOptions, Study, record

__all__ = ["RecordingCallback"]

_RESUMED = (
    "fits that resumed from a checkpoint: tasks from before the checkpoint are included only if the same learner was "
    "recorded then"
)


class RecordingCallback(Callback):
    """Records each ``trainer.fit`` as `record` does; the fit stays bit-identical.

    Recording starts with the fit and stops when training ends or fails. The batches of the sanity check are not
    recorded. Validation and test batches are recorded as tasks that did not train. Each process of a distributed
    strategy has its own callback, which records what that process was fed.

    Args:
        options: what to keep, for learners that have no recording yet.

    Example:
        ``recorder = RecordingCallback()``, then ``Trainer(callbacks=[recorder]).fit(LightningMAML(model), data)`` and
        ``TaskInfluence(recorder.study, loss=loss)``.
    """

    def __init__(self, options: RecordingOptions | None = None) -> None:
        self.options = options
        self._study: Study | None = None
        self._block = ExitStack()

    @property
    def study(self) -> Study:
        """The study of the latest fit. It includes earlier recorded fits of the same learner.

        Raises:
            RecordingError: no fit has started in this process.
        """
        if self._study is None:
            raise RecordingError(
                "no fit has begun in this process: pass the callback to the Trainer and call fit(). A strategy that "
                "starts its own processes (ddp_spawn, ddp_notebook) fits there: save the study in these processes, in "
                "on_fit_end"
            )
        return self._study

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start recording."""
        self._begin()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause: the batches of the sanity check belong to no training."""
        self._end()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start again. ``on_train_start`` is too late: a loader without a length has served its first batch by then."""
        self._begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that an earlier part of the training may be missing."""
        if trainer.ckpt_path is not None:
            self.study.remarks[_RESUMED] += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop recording."""
        self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop recording, if there was nothing to train."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop recording. What was recorded until now can be read."""
        self._end()

    def _begin(self) -> None:
        self._end()
        self._study = self._block.enter_context(record(self.options))

    def _end(self) -> None:
        self._block.close()
