"""The work of scoring, counted in passes over episodes, and a plan that keeps it near the work of the training.

A pass is a forward and backward through one episode, as training makes it. Scoring takes one pass for each training
task (its gradient), one for each test task, and those of the Hessian: one for each sample of a sketch, measured as 0.4
to 1.0 of an episode on learn2learn's Omniglot models. Counts depend on the study alone, never on the speed of the
machine, so the same study always gets the same plan and the same scores.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

from ...bilevel.hessians import Curvature, Sketch, Subsample

SAMPLES = Sketch.samples
"""Samples of the sketch per task if nothing is reduced."""

PRODUCTS = 20
"""Products of the Hessian with a vector that a solve by conjugate gradients is assumed to take, one pass each."""

FEWEST_TESTS, TEST_SHARE = 20, 0.1
"""Test tasks are not reduced below this many, nor below this share of the number of training tasks."""

FEWEST_TASKS, HESSIAN_SHARE = 32, 0.5
"""The Hessian is not reduced below this many tasks, nor its passes below this share of the number of training tasks."""

MOST_BLOCKS, BLOCK_SHARE = 4, 0.25
"""Scores come in at most this many blocks of test tasks, if the further passes are at most this share of all."""


@dataclass(frozen=True)
class StudySize:
    """The counts of a study that the work depends on.

    Attributes:
        trained: episodes that trained.
        tasks: distinct tasks among them.
        tests: tasks to score on.
        rows: most rows that a sketch keeps.
    """

    trained: float
    tasks: int
    tests: int
    rows: int


@dataclass(frozen=True)
class WorkPlan:
    """How much of a study is used to score it.

    Attributes:
        size: the counts of the study.
        hessian: kind of the total Hessian.
        samples: of the sketch, per task.
        test_tasks: tasks to score on.
        hessian_tasks: tasks that the Hessian is computed from.
        blocks: number of parts in which the test tasks are scored, each with one pass over the training tasks.
    """

    size: StudySize
    hessian: str
    samples: int
    test_tasks: int
    hessian_tasks: int
    blocks: int = 1

    @property
    def hessian_passes(self) -> int:
        """Passes that the Hessian takes."""
        if self.hessian == "identity":
            return 0
        if self.hessian != "sketch":
            return PRODUCTS * self.hessian_tasks
        # Beyond the largest number of rows the sketch itself takes fewer samples, and then fewer tasks.
        tasks = min(self.hessian_tasks, self.size.rows)
        return tasks * max(1, min(self.samples, self.size.rows // tasks))

    @property
    def passes(self) -> int:
        """Passes that scoring takes."""
        return self.hessian_passes + self.test_tasks + self.blocks * self.size.tasks

    @property
    def work(self) -> float:
        """Passes that scoring takes for each episode that trained."""
        return self.passes / self.size.trained

    @property
    def reductions(self) -> list[str]:
        """The parts that were reduced."""
        sketch, size = self.hessian == "sketch", self.size
        reduced = {
            f"{self.samples} of {SAMPLES} samples of the sketch": sketch and self.samples < SAMPLES,
            f"{self.test_tasks} of {size.tests} test tasks": self.test_tasks < size.tests,
            f"a Hessian of {self.hessian_tasks} of {size.tasks} training tasks": self.hessian_tasks < size.tasks,
        }
        return [what for what, is_reduced in reduced.items() if is_reduced]

    @property
    def curvature(self) -> str | Curvature:
        """The total Hessian, as hooks take it."""
        kind = Sketch(self.samples) if self.hessian == "sketch" and self.samples < SAMPLES else self.hessian
        return Subsample(kind, self.hessian_tasks) if self.hessian_tasks < self.size.tasks else kind

    def __str__(self) -> str:
        """One line for the user: what was reduced, what the work is, and how to ask for more."""
        *most, last = self.reductions or ["nothing left out"]
        parts = f"{', '.join(most)} and {last}" if most else last
        more = "; --work all for everything" if self.reductions else ""
        return f"scored with {parts}, {_times(self.work)} the work of the training{more}"


def plan_work(size: StudySize, hessian: str, bound: float | None) -> WorkPlan:
    """Reduce the work of scoring until it is within the bound, or nothing more can be reduced.

    Fewer samples of the sketch come first, then fewer test tasks, then fewer tasks for the Hessian: more tasks say more
    about the sum over tasks than more samples of one task.

    Args:
        size: the counts of the study.
        hessian: kind of the total Hessian.
        bound: largest number of passes for each episode that trained; None for no bound.

    >>> str(plan_work(StudySize(trained=1000, tasks=100, tests=100, rows=4096), "sketch", 1.0))
    'scored with 8 of 16 samples of the sketch, about 1.0 times the work of the training; --work all for everything'
    """
    most = math.inf if bound is None else bound * size.trained
    plan = WorkPlan(size, hessian, SAMPLES, size.tests, size.tasks)
    if hessian == "sketch":
        plan = _largest(plan, "samples", 1, SAMPLES, most)
    fewest = max(FEWEST_TESTS, round(TEST_SHARE * size.tasks))
    plan = _largest(plan, "test_tasks", min(fewest, size.tests), size.tests, most)
    if plan.hessian_passes:
        plan = _largest(plan, "hessian_tasks", _fewest_tasks(plan), size.tasks, most)
    spare = max(0.0, min(most - plan.passes, BLOCK_SHARE * plan.passes))
    return replace(plan, blocks=1 + int(min(MOST_BLOCKS - 1, plan.test_tasks - 1, spare // size.tasks)))


def _largest(plan: WorkPlan, field: str, least: int, largest: int, most: float) -> WorkPlan:
    """The plan with the largest number in this field for which the passes are within the bound, else the least."""
    numbers = range(least, largest + 1)
    within = bisect_right(numbers, most, key=lambda number: _with(plan, field, number).passes)
    return _with(plan, field, numbers[max(0, within - 1)])


def _with(plan: WorkPlan, field: str, number: int) -> WorkPlan:
    changed: dict[str, Any] = {field: number}
    return replace(plan, **changed)


def _fewest_tasks(plan: WorkPlan) -> int:
    passes_each = max(1, _with(plan, "hessian_tasks", 1).hessian_passes)
    return max(min(FEWEST_TASKS, plan.size.tasks), math.ceil(HESSIAN_SHARE * plan.size.tasks / passes_each))


def _times(work: float) -> str:
    return f"about {work:.1f} times" if work >= 0.1 else "less than a tenth of"
