"""Diagnosis of a hook: checks that show how far its numbers can be trusted, and a spot check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...analysis.estimators import FittedEstimator, Implicit, ImplicitFit
from ...analysis.items import Items
from ...analysis.passes import Targets
from ...bilevel.stationarity import Stationarity
from ..ground_truth.retraining import Retrain
from . import checks
from .answers import Answers, sampling, solver
from .spot_check import ContinuedOptimisation, spot_check
from .verdicts import SPOT_CHECK, Check, Diagnosis, Verdict, unknown

__all__ = ["Check", "ContinuedOptimisation", "Diagnosis", "Verdict", "diagnose"]

NO_TEST_TASKS = "there are no test tasks to score on"


def diagnose(
    fit: FittedEstimator[Any],
    items: Items,
    targets: Targets | None,
    *,
    stationarity: Stationarity,
    retrain: Retrain | None = None,
    spot_checks: int = 8,
    seed: int = 0,
) -> Diagnosis:
    """See :meth:`~l2l_influence.TaskInfluence.diagnose`, which calls this.

    Args:
        fit: the estimator at λ*.
        items: that are scored.
        targets: the mean of the test tasks; None without test tasks.
        stationarity: of λ*.
        retrain, spot_checks, seed: as there.
    """
    if targets is None and retrain is not None:
        raise ValueError("a spot-check needs the test tasks whose losses retrain returns: pass test_tasks=")
    of_scores = (
        _without_test_tasks(fit)
        if targets is None
        else _of_scores(Answers(fit, items, targets), stationarity, retrain, spot_checks, seed)
    )
    return Diagnosis((*_of_the_run(fit, items, stationarity), *of_scores))


def _of_the_run(fit: FittedEstimator[Any], items: Items, stationarity: Stationarity) -> Iterator[Check]:
    run = fit.run
    yield checks.coverage(run)
    yield checks.stationarity(stationarity, len(run.recorded))
    how = fit.estimator if isinstance(fit.estimator, Implicit) else Implicit()
    yield checks.inner(run, how.tolerance)
    if isinstance(fit, ImplicitFit):
        yield checks.curvature(fit.system)
        yield checks.damping(fit.system, len(items.names(run)))


def _of_scores(
    answers: Answers, stationarity: Stationarity, retrain: Retrain | None, count: int, seed: int
) -> Iterator[Check]:
    if isinstance(answers.fit, ImplicitFit):
        yield solver(answers, answers.fit)
        drawn = sampling(answers, answers.fit)
        if drawn is not None:
            yield drawn
    yield spot_check(answers, stationarity, retrain, count, seed)


def _without_test_tasks(fit: FittedEstimator[Any]) -> Iterator[Check]:
    solved = ("solver", "sampling") if isinstance(fit, ImplicitFit) else ()
    for name in (*solved, SPOT_CHECK):
        yield unknown(name, NO_TEST_TASKS, "pass test_tasks=")
