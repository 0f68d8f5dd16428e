"""Scoring what a script trained on, with no more than the recording to go by."""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from ...bilevel.hessians.kinds import curvature
from ...bilevel.task import Pair
from ...errors import InfluenceError, LossStructureError, NothingRecordedError, RecordingError
from ...hooks import TaskInfluence, TaskScores
from ...recording import RecordedTask, Study

LOSSES: dict[str, type[nn.CrossEntropyLoss] | type[nn.MSELoss]] = {
    "cross-entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
}
"""By the name that a user gives."""

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Settings:
    """How to score.

    Attributes:
        loss: one of :data:`LOSSES`; None for what the script called.
        reduction: how that reduces its samples, where ``loss`` says what it is.
        hessian: kind of total Hessian; None for the hook's own choice.
        test_tasks: at most how many tasks to score on.
        seed: of which, if there are more.
        progress: show bars; None for only on a terminal.

    Raises:
        ValueError: there is no such loss, reduction or Hessian, or no test task.
    """

    loss: str | None = None
    reduction: str = "mean"
    hessian: str | None = None
    test_tasks: int = 100
    seed: int = 0
    progress: bool | None = None

    @property
    def chosen_loss(self) -> nn.CrossEntropyLoss | nn.MSELoss | None:
        """What a user said the script's loss is."""
        return None if self.loss is None else LOSSES[self.loss](reduction=self.reduction)

    def __post_init__(self) -> None:
        if self.loss is not None:
            _require_known("loss", self.loss, LOSSES)
        _require_known("reduction", self.reduction, REDUCTIONS)
        if self.hessian is not None:
            curvature(self.hessian)
        if self.test_tasks < 1:
            raise ValueError(f"the number of test tasks must be at least 1, got {self.test_tasks}")


@dataclass(frozen=True)
class Tests:
    """Tasks to score on.

    Attributes:
        pairs: their support and query sets.
        held_out: whether the learner never trained on them.
        note: which they are.
    """

    pairs: list[tuple[Pair, Pair]]
    held_out: bool
    note: str


@dataclass(frozen=True)
class Found:
    """The ranking of a learner's training tasks.

    Attributes:
        scores: of all tasks that trained.
        tests: what they were scored on.
        loss: the loss as an argument of a hook, as code; empty if hooks find it themselves.
    """

    scores: TaskScores
    tests: Tests
    loss: str

    @property
    def notes(self) -> list[str]:
        """What the scores rest on, and how they were computed."""
        return [self.tests.note, *self.scores.notes]


def analyse(study: Study, settings: Settings, early: bool) -> Found | str:
    """Score the tasks that trained the study's one learner, or say why that cannot be done.

    Args:
        study: what was recorded.
        settings: how to score.
        early: whether the script was stopped; the last tasks may then not have come to their backward.
    """
    try:
        with warnings.catch_warnings():
            # What torch says to those who write code with it says nothing to those who run a script.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            return _scored(study, settings, early)
    except LossStructureError as error:
        return f"{error}. On the command line, --loss and --reduction say which loss it is"
    except InfluenceError as error:
        return str(error)
    except Exception as error:  # a script's model may do anything; that it cannot be scored is no failure of the script
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def _scored(study: Study, settings: Settings, early: bool) -> Found:
    study.training_tasks()  # raises, and says why, if they are not all there
    loss = settings.chosen_loss
    tests = choose_tests(study.tasks, settings, early)
    hook = TaskInfluence(study, loss=loss, hessian=settings.hessian, progress=settings.progress)
    code = "" if loss is None else f'loss=nn.{type(loss).__name__}(reduction="{loss.reduction}")'
    return Found(hook.scores(tests.pairs), tests, code)


def choose_tests(tasks: Sequence[RecordedTask], settings: Settings, early: bool) -> Tests:
    """Tasks that never trained, for validation or testing; those that trained where there are no others.

    Raises:
        NothingRecordedError: of none are the support and query sets known.
    """
    fed = [task for task in tasks if task.support_rows and task.query_rows]
    held_out = _held_out(fed, early)
    candidates = held_out or [task for task in fed if task.times_trained]
    drawn = random.Random(settings.seed).sample(candidates, min(settings.test_tasks, len(candidates)))
    pairs = [pair for task in sorted(drawn, key=lambda task: task.id) if (pair := _pair(task)) is not None]
    if not pairs:
        raise NothingRecordedError("There is no task to score on: of none are the support and the query set known.")
    what = "that the learner was fed but never trained on" if held_out else "that the learner was trained on"
    unread = f"; {len(drawn) - len(pairs)} more were drawn, but their data are not known" * (len(pairs) < len(drawn))
    return Tests(pairs, bool(held_out), f"test tasks: {len(pairs)} of {len(candidates)} {what}{unread}")


def _held_out(fed: Sequence[RecordedTask], early: bool) -> list[RecordedTask]:
    """Those of tasksets that trained nothing, or else those that did not train."""
    training = {task.taskset for task in fed if task.times_trained}
    apart = [task for task in fed if task.taskset not in training]
    return apart or [task for task in fed if not task.times_trained and not early]


def _pair(task: RecordedTask) -> tuple[Pair, Pair] | None:
    try:
        return task.support, task.query
    except RecordingError:
        return None


def _require_known(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, not {value!r}")
