"""What a study's numbers can be trusted for: everything that can be seen of it without knowing the truth, and a
spot-check of the truth itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from learn2learn.data import Taskset

from ...analysis.estimators.outer import Outer
from ...analysis.problem.data import Split
from ...analysis.run import Run
from ...bilevel.item_gradients import ItemGradient
from ..ground_truth.retraining import Retrain
from . import checks
from .answers import Answers, sampling, solver
from .spot_check import ContinuedOptimisation, spot_check
from .verdicts import SPOT_CHECK, Check, Diagnosis, Verdict, unknown

__all__ = ["Check", "ContinuedOptimisation", "Diagnosis", "Verdict", "diagnose"]

NO_TEST_TASKS = "there are no test tasks to score on"


def diagnose(
    run: Run,
    outer: Outer,
    level: ItemGradient,
    test_tasks: Taskset | Sequence[Any] | None = None,
    num_tasks: int | None = None,
    *,
    split: Split | None = None,
    retrain: Retrain | None = None,
    spot_checks: int = 8,
    seed: int = 0,
) -> Diagnosis:
    """See :meth:`~l2l_influence.TaskInfluence.diagnose`, which this is.

    Args:
        run: what was recorded.
        outer: its outer system at λ*.
        level: of the items that are scored.
        test_tasks, num_tasks, split, retrain, spot_checks, seed: as there.
    """
    if test_tasks is None:
        if retrain is not None:
            raise ValueError("a spot-check needs the test tasks whose losses retrain returns: pass test_tasks=")
        answers = None
    else:
        answers = Answers(outer, level, outer.study.test_problem(test_tasks, num_tasks, split, seed))
    return Diagnosis(
        (
            *_of_the_run(run, outer, level),
            *(_of_scores(answers, retrain, spot_checks, seed) if answers else _without_test_tasks()),
        )
    )


def _of_the_run(run: Run, outer: Outer, level: ItemGradient) -> Iterator[Check]:
    study = outer.study
    own = sum(level.count(solved) * len(solved.batch.index) for solved in study.solved_tasks.microbatches("items"))
    items = int(study.problem.ranks.sum(torch.tensor(own)))
    yield checks.coverage(study, run)
    yield checks.stationarity(study)
    yield checks.inner(study, outer.tolerance)
    yield checks.curvature(outer)
    yield checks.damping(outer, items)


def _of_scores(answers: Answers, retrain: Retrain | None, count: int, seed: int) -> Iterator[Check]:
    yield solver(answers)
    drawn = sampling(answers)
    if drawn is not None:
        yield drawn
    yield spot_check(answers, retrain, count, seed)


def _without_test_tasks() -> Iterator[Check]:
    for name in ("solver", "sampling", SPOT_CHECK):
        yield unknown(name, NO_TEST_TASKS, "pass test_tasks=")
