"""What all hooks are: questions to a recorded run, answered at the learner's present meta-parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..analysis.estimators.outer import Outer
from ..analysis.problem.choice import Inner, Options
from ..analysis.problem.criterion import Reduction
from ..analysis.problem.snapshot import Snapshot
from ..analysis.problem.state import State, same, state_of
from ..analysis.run import Run
from ..bilevel.functional import BatchNormMode
from ..bilevel.inner import Inverse
from ..bilevel.memory import DEFAULT, Memory
from ..bilevel.solvers import OnIndefinite, OnUnconverged
from ..bilevel.stationarity import Stationarity
from ..recording import Study


@dataclass
class Kept:
    """What has been computed so far, and the state of the learner and its recording that it holds for."""

    state: State | None = None
    study: Snapshot | None = None
    outer: Outer | None = None


class Hook:
    """A hook on a recorded run: make it before or after the training loop, ask it after.

    It reads the learner's parameters λ* when asked, on a private copy; the learner is never changed.

    Args:
        maml: the recorded learner, or the study that :func:`~l2l_influence.record` yielded.
        tasks: the training :class:`~l2l_influence.TaskDataset`; None for all tasks that were trained on.
        loss: the loss of the loop: a torch loss module or function, or ``loss(outputs, y)`` with one value a sample.
            None for what the loop called, where it ran inside :func:`~l2l_influence.record` and called losses of
            torch's.
        body: for ANIL: the module that made the features which the learner, a head, was fed; what
            :func:`~l2l_influence.record` saw unless given. Its parameters are meta-parameters that no task adapts.
        reduction: ``"mean"`` or ``"sum"``, where it cannot be read off the loss.
        inner: ``"unrolled"``, the loop's own gradient steps, differentiated as the loop did (to first order if it did),
            with MetaSGD's rates and GBML's transforms as meta-parameters beside the model's;
            ``"proximal"``, the paper's inner problem; or a kind with its settings from ``l2l_influence.bilevel``, such
            as ``UnrolledWith`` a stateful optimiser. The first agrees better with retraining a learner that takes
            gradient steps, and is faster.
        proximal: δ of the proximal inner problem; ``"auto"`` is 1/(lr·K) for a mean loss, n/(lr·K) for a sum of n
            samples.
        inner_solver: for the proximal kind, see :class:`~l2l_influence.bilevel.Proximal`.
        inner_tolerance: for the proximal kind: largest relative gradient at which an inner problem counts as solved.
            With ReLU or max-pooling the minimum tends to lie on a kink, where a few per cent are left. What was reached
            stands in the result's notes.
        l2: δ_o, the outer regulariser, for an objective in which the average task has weight 1.
        batch_norm: the ``"batch"``'s own statistics, as MAML trains, or ``"running"`` ones. None for what the loop's
            model worked with (in evaluation mode: running ones); batch statistics where that is not known.
        on_indefinite: where a system is not positive definite: ``"raise"`` an error, ``"damp"`` it (with a warning), or
            solve it as it is by ``"minres"``.
        on_unconverged: ``"raise"`` or ``"warn"`` when a solve misses its tolerance.
        memory: that may be used: bytes, or text such as ``"4GiB"``. A half is for what a Hessian keeps, the rest for
            batches of tasks and their kept solutions; test vectors and scores come on top.
        progress: show a progress bar; None for only on a terminal.
        group: processes that share the work, as ``torch.distributed.group.WORLD`` under ``torchrun``: each of them asks
            the hook the same questions about the same study, and gets the same answers. None for this process alone,
            whatever else it is a part of.
    """

    _auto_inverse: ClassVar[str] = "auto"
    """What ``inner_solver="auto"`` means to this hook."""

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        body: nn.Module | None = None,
        reduction: Reduction | None = None,
        inner: Inner = "unrolled",
        proximal: float | Literal["auto"] = "auto",
        inner_solver: str | Inverse = "auto",
        inner_tolerance: float = 0.1,
        l2: float = 1e-3,
        batch_norm: BatchNormMode | None = None,
        on_indefinite: OnIndefinite = "raise",
        on_unconverged: OnUnconverged = "raise",
        memory: Memory = DEFAULT,
        progress: bool | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self._run, self._tasks = Run(maml, body), tasks
        self._options = Options(
            loss=loss,
            reduction=reduction,
            inner=inner,
            proximal=proximal,
            inner_solver=self._auto_inverse if inner_solver == "auto" else inner_solver,
            inner_tolerance=inner_tolerance,
            l2=l2,
            batch_norm=batch_norm,
            on_indefinite=on_indefinite,
            on_unconverged=on_unconverged,
            memory=memory,
            progress=progress,
            group=group,
        )
        self._kept = Kept()

    def stationarity(self) -> Stationarity:
        """How close λ* is to a minimum of L_Total, which is where influence functions hold; printed, it says so."""
        return self._study().stationarity

    def _study(self) -> Snapshot:
        """The run at the learner's present parameters; kept until these, or the recording, change."""
        recorded = self._run.recording.training_tasks(self._tasks)
        state = state_of(self._run.owner, recorded)
        kept = self._kept
        if kept.study is None or kept.state is None or not same(kept.state, state):
            kept.state, kept.study, kept.outer = state, Snapshot(self._run, recorded, self._options), None
        return kept.study
