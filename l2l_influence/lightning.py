"""Recording under Lightning: a callback that records what a ``Trainer`` fits.

Needs Lightning 2: ``pip install "l2l-influence[lightning]"``. It is imported as ``pytorch_lightning``, because
learn2learn's ``LightningMAML`` and ``LightningANIL`` are modules of that package, not of ``lightning.pytorch``.
"""

from __future__ import annotations

from contextlib import ExitStack

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "l2l_influence.lightning needs Lightning under the name that learn2learn imports, pytorch_lightning: "
        'pip install "l2l-influence[lightning]"'
    ) from error

from .errors import RecordingError
from .recording import RecordingOptions, Study, record

__all__ = ["RecordingCallback"]

_RESUMED = (
    "fits that went on from a checkpoint: tasks from before it are part of this only if the same learner was "
    "recorded then"
)


class RecordingCallback(Callback):
    """Records each ``trainer.fit`` as `record` does, and changes no bit of it.

    Recording begins where fit begins and ends where training ends or breaks off. The batches of the sanity check are
    left out of account; those of validation, and of tests in between, are tasks that did not train. Each process of
    a distributed strategy has a callback of its own, which records what that process was fed.

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
        """What was recorded of the latest fit, and of earlier ones as far as they trained the same learner.

        Raises:
            RecordingError: no fit has begun in this process.
        """
        if self._study is None:
            raise RecordingError(
                "no fit has begun in this process: give the callback to the Trainer and call fit(). Under a strategy "
                "that fits in processes of its own (ddp_spawn, ddp_notebook), save the study there, in on_fit_end"
            )
        return self._study

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause: its batches belong to no training."""
        self._end()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew. Not only at ``on_train_start``: a loader without a length has served its first batch by then."""
        self._begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remark on what has been trained without it."""
        if trainer.ckpt_path is not None:
            self.study.remarks[_RESUMED] += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, if there was nothing to train."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End. What was recorded until now can be read."""
        self._end()

    def _begin(self) -> None:
        self._end()
        self._study = self._block.enter_context(record(self.options))

    def _end(self) -> None:
        self._block.close()
