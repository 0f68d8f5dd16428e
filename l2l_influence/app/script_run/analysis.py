"""Score the training tasks of a script from its recording alone."""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from ...analysis.estimators import Implicit
from ...analysis.results.result import TaskScores
from ...bilevel.task import Pair
from ...errors import InfluenceError, LossStructureError, NothingRecordedError, RecordingError
from ...hooks import TaskInfluence
from ...recording import RecordedTask, Study

LOSSES: dict[str, type[nn.CrossEntropyLoss] | type[nn.MSELoss]] = {
    "cross-entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
}
"""By the name on the command line."""

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class ScoringSettings:
    """Settings for scoring the tasks of a script.

    Attributes:
        loss: one of :data:`LOSSES`; None = the loss that the script called.
        reduction: reduction of ``loss``, if that is given.
        hessian: kind of total Hessian; None = the default of the hook.
        test_tasks: maximum number of tasks to score on.
        seed: for drawing them, if there are more.
        progress: show progress bars; None = only on a terminal.

    Raises:
        ValueError: unknown loss, reduction or Hessian, or fewer than one test task.
    """

    loss: str | None = None
    reduction: str = "mean"
    hessian: str | None = None
    test_tasks: int = 100
    seed: int = 0
    progress: bool | None = None

    @property
    def chosen_loss(self) -> nn.CrossEntropyLoss | nn.MSELoss | None:
        """The loss that the user named, or None."""
        return None if self.loss is None else LOSSES[self.loss](reduction=self.reduction)

    @property
    def estimator(self) -> Implicit:
        """The implicit estimator with the Hessian that the user named, or with its default."""
        return Implicit() if self.hessian is None else Implicit(hessian=self.hessian)

    def __post_init__(self) -> None:
        if self.loss is not None:
            _require_known("loss", self.loss, LOSSES)
        _require_known("reduction", self.reduction, REDUCTIONS)
        _ = self.estimator  # raises if the Hessian is unknown
        if self.test_tasks < 1:
            raise ValueError(f"the number of test tasks must be at least 1; got {self.test_tasks}")


@dataclass(frozen=True)
class ScoringTasks:
    """The tasks to score on: a score is about their mean loss.

    Attributes:
        pairs: support and query set of each.
        held_out: True if the learner never trained on them.
        note: describes them in one line.
    """

    pairs: list[tuple[Pair, Pair]]
    held_out: bool
    note: str


@dataclass(frozen=True)
class ScoredRun:
    """The ranking of a learner's training tasks.

    Attributes:
        scores: scores of all training tasks.
        tests: the tasks they were scored on.
        loss: the loss as code, for the argument of a hook; empty if hooks detect it.
    """

    scores: TaskScores
    tests: ScoringTasks
    loss: str

    @property
    def notes(self) -> list[str]:
        """The test tasks, and how the scores were computed."""
        return [self.tests.note, *self.scores.notes]


def analyse(study: Study, settings: ScoringSettings, early: bool) -> ScoredRun | str:
    """Score the training tasks of the study's one learner; returns the reason if that is not possible.

    Args:
        study: the recording.
        settings: how to score.
        early: True if the script was stopped; its last tasks may then lack their backward pass.
    """
    try:
        with warnings.catch_warnings():
            # Deprecations inside torch concern its developers, not users of the script.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            return _scored(study, settings, early)
    except LossStructureError as error:
        return f"{error}. Name the loss on the command line with --loss and --reduction"
    except InfluenceError as error:
        return str(error)
    except Exception as error:  # a script's model can be anything; failing to score it must not fail the script
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def _scored(study: Study, settings: ScoringSettings, early: bool) -> ScoredRun:
    study.training_tasks()  # raises an error with the reason if some are missing
    loss = settings.chosen_loss
    tests = choose_tests(study.tasks, settings, early)
    influence = TaskInfluence(study, loss=loss, estimator=settings.estimator, progress=settings.progress)
    code = "" if loss is None else f'loss=nn.{type(loss).__name__}(reduction="{loss.reduction}")'
    return ScoredRun(influence.scores(tests.pairs), tests, code)


def choose_tests(tasks: Sequence[RecordedTask], settings: ScoringSettings, early: bool) -> ScoringTasks:
    """Choose the tasks to score on: tasks that never trained (validation, testing), else the training tasks.

    Raises:
        NothingRecordedError: no task has both its support and its query set recorded.
    """
    fed = [task for task in tasks if task.support_rows and task.query_rows]
    held_out = _held_out(fed, early)
    candidates = held_out or [task for task in fed if task.times_trained]
    drawn = random.Random(settings.seed).sample(candidates, min(settings.test_tasks, len(candidates)))
    pairs = [pair for task in sorted(drawn, key=lambda task: task.id) if (pair := _pair(task)) is not None]
    if not pairs:
        raise NothingRecordedError("there is no task to score on: no task has both support and query set recorded")
    kind = "that the learner was fed but never trained on" if held_out else "that the learner was trained on"
    unread = f"; {len(drawn) - len(pairs)} more were drawn, but their data are missing" * (len(pairs) < len(drawn))
    return ScoringTasks(pairs, bool(held_out), f"test tasks: {len(pairs)} of {len(candidates)} {kind}{unread}")


def _held_out(fed: Sequence[RecordedTask], early: bool) -> list[RecordedTask]:
    """Tasks of tasksets without any training task; if there are none, tasks that did not train."""
    training = {task.taskset for task in fed if task.times_trained}
    apart = [task for task in fed if task.taskset not in training]
    return apart or [task for task in fed if not task.times_trained and not early]


def _pair(task: RecordedTask) -> tuple[Pair, Pair] | None:
    try:
        return task.support, task.query
    except RecordingError:
        return None


def _require_known(setting: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{setting} must be one of {', '.join(known)}; got {value!r}")
