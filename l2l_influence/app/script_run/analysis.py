"""Score the training tasks of a script from its recording alone, in blocks of test tasks."""

from __future__ import annotations

import math
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tqdm import tqdm

from ...analysis.estimators import Implicit, ImplicitFit
from ...analysis.results.result import TaskScores
from ...bilevel.hessians import Curvature
from ...bilevel.hessians.sketch import MOST_ROWS
from ...bilevel.memory import DEFAULT
from ...bilevel.task import Pair
from ...errors import InfluenceError, LossStructureError, NothingRecordedError, RecordingError
from ...hooks import TaskInfluence
from ...recording import RecordedTask, Study
from .losses import ChosenLoss, NamedLoss, UnknownLossError, named_loss
from .work import StudySize, WorkPlan, plan_work

Result = TypeVar("Result")


@dataclass(frozen=True)
class ScoringSettings:
    """Settings for scoring the tasks of a script.

    Attributes:
        loss: see :func:`~l2l_influence.app.script_run.losses.named_loss`; None = the loss that the script called.
        reduction: reduction of ``loss``; None if it says that itself, or is a mean.
        hessian: kind of total Hessian; None = the default of the hook.
        test_tasks: maximum number of tasks to score on.
        seed: for drawing them, if there are more.
        progress: show progress bars; None = only on a terminal.
        work: largest work of scoring, relative to that of the training; 0 = no bound.

    Raises:
        ValueError: unknown loss, reduction or Hessian, fewer than one test task, or a negative bound.
    """

    loss: str | None = None
    reduction: str | None = None
    hessian: str | None = None
    test_tasks: int = 100
    seed: int = 0
    progress: bool | None = None
    work: float = 1.0
    named_loss: NamedLoss | None = field(init=False)

    def __post_init__(self) -> None:
        if self.loss is None and self.reduction is not None:
            raise ValueError("--reduction is the reduction of the loss that --loss names, and there is no --loss")
        loss = None if self.loss is None else named_loss(self.loss, self.reduction)
        object.__setattr__(self, "named_loss", loss)
        _ = self.estimator(self.kind)  # raises if the Hessian is unknown
        if self.test_tasks < 1:
            raise ValueError(f"the number of test tasks must be at least 1; got {self.test_tasks}")
        if not (math.isfinite(self.work) and self.work >= 0):
            raise ValueError(f"the work must be a number of at least 0, or 'all'; got {self.work}")

    @property
    def kind(self) -> str:
        """Kind of total Hessian by name."""
        return self.hessian or str(Implicit().hessian)

    @staticmethod
    def estimator(hessian: str | Curvature) -> Implicit:
        """The implicit estimator with this Hessian."""
        return Implicit(hessian=hessian)

    def check(self, script: str) -> str:
        """Check ``loss`` before the script runs; returns a warning or an empty string.

        Raises:
            ValueError: the script, or a module that it can import, has no such loss.
        """
        return "" if self.named_loss is None else self.named_loss.check(script)


@dataclass(frozen=True)
class ScoringTasks:
    """The tasks to score on: a score is about their mean loss.

    Attributes:
        tasks: in the order in which they were drawn, which is random.
        candidates: number of tasks from which they were drawn.
        held_out: True if the learner never trained on them.
        missing: number of tasks that were drawn, too, but whose data are missing.
    """

    tasks: list[RecordedTask]
    candidates: int
    held_out: bool
    missing: int = 0

    @property
    def note(self) -> str:
        """Describes them in one line."""
        kind = "that the learner was fed but never trained on" if self.held_out else "that the learner was trained on"
        missing = f"; {self.missing} more were drawn, but their data are missing" if self.missing else ""
        return f"test tasks: {len(self.tasks)} of {self.candidates} {kind}{missing}"

    def first(self, count: int) -> ScoringTasks:
        """The first of the tasks."""
        return replace(self, tasks=self.tasks[:count])

    def blocks(self, count: int) -> list[list[RecordedTask]]:
        """The tasks in parts of about equal size."""
        ends = [len(self.tasks) * number // count for number in range(count + 1)]
        return [self.tasks[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@dataclass(frozen=True)
class ScoredRun:
    """The ranking of a learner's training tasks, on all test tasks or on the first of them.

    Attributes:
        scores: scores of all training tasks.
        tests: the test tasks.
        covered: number of test tasks that the scores cover.
        plan: the plan of the work.
    """

    scores: TaskScores
    tests: ScoringTasks
    covered: int
    plan: WorkPlan

    @property
    def complete(self) -> bool:
        """True if the scores cover all test tasks."""
        return self.covered == len(self.tests.tasks)

    @property
    def notes(self) -> list[str]:
        """The test tasks, the work, and how the scores were computed."""
        own = [note for note in self.scores.notes if not note.startswith("test tasks:")]
        return [self.tests.note, str(self.plan), *own]


@dataclass(frozen=True)
class Scoring:
    """Everything that is needed to score the tasks of a study.

    Attributes:
        influence: the hook.
        loss: the loss that the user named, if any.
        hessian_code: the Hessian as the argument of a hook; empty for the hook's default.
        tests: the tasks to score on.
        plan: the plan of the work.
        progress: show progress bars; None = only on a terminal.
    """

    influence: TaskInfluence
    loss: ChosenLoss
    hessian_code: str
    tests: ScoringTasks
    plan: WorkPlan
    progress: bool | None = None

    def results(self) -> Iterator[ScoredRun | str]:
        """The scores after each block of test tasks, or the reason why there are none."""
        found: list[tuple[int, TaskScores]] = []
        hidden = None if self.progress is None else not self.progress
        with tqdm(total=self.plan.passes, desc="scoring", unit="pass", leave=False, disable=hidden) as bar:
            for block in self.tests.blocks(self.plan.blocks):
                result = attempt(lambda: self._scores(block, None if found else bar))  # noqa: B023
                if isinstance(result, str):
                    yield result
                    return
                found.append((len(block), result))
                covered = sum(count for count, _ in found)
                bar.update(len(block) + self.plan.size.tasks)
                yield ScoredRun(mean_of(found), self.tests, covered, self.plan)

    def _scores(self, block: Sequence[RecordedTask], bar: tqdm | None) -> TaskScores:
        fit = self.influence.fitted()
        if bar is not None and isinstance(fit, ImplicitFit):
            _ = fit.system.hessian  # computed first, so that the bar can say when it is there
            bar.update(self.plan.hessian_passes)
        return self.influence.scores(as_test_tasks(block))


def prepare(study: Study, settings: ScoringSettings, script: str, early: bool) -> Scoring | str:
    """Prepare to score the training tasks of the study's one learner; returns the reason if that is not possible.

    Args:
        study: the recording.
        settings: how to score.
        script: path of the script.
        early: True if the script was stopped; its last tasks may then lack their backward pass.
    """
    return attempt(lambda: _prepared(study, settings, script, early))


def attempt(function: Callable[[], Result]) -> Result | str:
    """The result of ``function``, or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            # Deprecations inside torch concern its developers, not users of the script.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
            return function()
    except LossStructureError as error:
        return f"{error}. Name the loss on the command line with --loss and --reduction"
    except (InfluenceError, UnknownLossError) as error:
        return str(error)
    except Exception as error:  # a script's model can be anything; failing to score it must not fail the script
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def _prepared(study: Study, settings: ScoringSettings, script: str, early: bool) -> Scoring:
    trained = study.training_tasks()  # raises an error with the reason if some are missing
    like = next(study.learner.parameters())
    loss = ChosenLoss() if settings.named_loss is None else settings.named_loss.load(script, like)
    tests = choose_tests(study.tasks, settings, early)
    episodes = sum(task.times_trained for task in trained) * study.recording.stands_for
    size = StudySize(episodes, len(trained), len(tests.tasks), _most_rows(study))
    plan = plan_work(size, settings.kind, settings.work or None)
    influence = TaskInfluence(
        study,
        loss=loss.loss,
        reduction=loss.reduction,
        estimator=settings.estimator(plan.curvature),
        progress=settings.progress,
    )
    code = "" if plan.curvature == Implicit().hessian else f"hessian={plan.curvature!r}"
    return Scoring(influence, loss, code, tests.first(plan.test_tasks), plan, settings.progress)


def _most_rows(study: Study) -> int:
    """Most rows that a sketch of the learner's Hessian keeps, as in :class:`~l2l_influence.bilevel.Sketch`."""
    row = sum(parameter.nbytes for parameter in study.learner.parameters())
    return max(1, min(MOST_ROWS, DEFAULT // 2 // max(1, row)))


def choose_tests(tasks: Sequence[RecordedTask], settings: ScoringSettings, early: bool) -> ScoringTasks:
    """Choose the tasks to score on: tasks that never trained (validation, testing), else the training tasks.

    Fewer tasks are always the first of more, for the same seed.

    Raises:
        NothingRecordedError: no task has both its support and its query set recorded.
    """
    fed = [task for task in tasks if task.support_rows and task.query_rows]
    held_out = _held_out(fed, early)
    candidates = held_out or [task for task in fed if task.times_trained]
    order = random.Random(settings.seed).sample(candidates, len(candidates))
    drawn = order[: settings.test_tasks]
    readable = [task for task in drawn if _is_readable(task)]
    if not readable:
        raise NothingRecordedError("there is no task to score on: no task has both support and query set recorded")
    return ScoringTasks(readable, len(candidates), bool(held_out), len(drawn) - len(readable))


def as_test_tasks(tasks: Sequence[RecordedTask]) -> list[tuple[Pair, Pair]]:
    """The tasks as hooks take them as test tasks: pairs of support and query set."""
    return [(task.support, task.query) for task in tasks]


def mean_of(parts: Sequence[tuple[int, TaskScores]]) -> TaskScores:
    """Scores on all test tasks, from scores on parts of them.

    Args:
        parts: number of test tasks and scores of each part. Notes are those of the last part.
    """
    *_, (_, last) = parts
    if len(parts) == 1:
        return last
    total = sum(count for count, _ in parts)
    values = [(count / total, scores.values) for count, scores in parts]
    score = {task: sum(share * value[task] for share, value in values) for task in last.values}
    loss = sum(count * scores.test_loss for count, scores in parts) / total
    ordered = sorted(last, key=lambda row: -score[row.task])
    rows = [replace(row, rank=rank, score=score[row.task]) for rank, row in enumerate(ordered, start=1)]
    return TaskScores(rows, loss, last.notes, Implicit().reading("tasks", loss))


def _held_out(fed: Sequence[RecordedTask], early: bool) -> list[RecordedTask]:
    """Tasks of tasksets without any training task; if there are none, tasks that did not train."""
    training = {task.taskset for task in fed if task.times_trained}
    apart = [task for task in fed if task.taskset not in training]
    return apart or [task for task in fed if not task.times_trained and not early]


def _is_readable(task: RecordedTask) -> bool:
    try:
        as_test_tasks([task])
    except RecordingError:
        return False
    return True
