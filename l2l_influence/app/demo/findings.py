"""The experiments of the demo, each a function of the run and of earlier results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ... import TaskInfluence, TaskScores
from ...evaluation import (
    GroundTruth,
    Outcome,
    auc,
    found_curve,
    lds,
    measure,
    pearson,
    precision_at_k,
    slope,
    spearman,
    stratified_subsets,
)
from ...evaluation.metrics import Floats
from .run import Advance, DemoRun, train_again

INFLUENCE, GRADIENTS, LOSS = "influence", "gradient similarity", "training loss"
TEST_TASKS_SCORED = 30


@dataclass(frozen=True)
class Ranking:
    """A ranking of the training tasks by scores, most harmful highest.

    Attributes:
        name: name of the ranking.
        values: ``(N,)`` scores for the mean test loss, in the order of the taskset.
        each: ``(N, T)`` scores for each of the first T test tasks.
        in_loss_units: True if scores are predicted changes of the loss.
    """

    name: str
    values: Floats
    each: Floats
    in_loss_units: bool


@dataclass(frozen=True)
class Detection:
    """How well a ranking finds the k wrong tasks.

    Attributes:
        name: of the ranking.
        found: number of wrong tasks among the first k.
        auc: area under the ROC curve.
        curve: share of the wrong tasks among the first 1 … N.
    """

    name: str
    found: int
    auc: float
    curve: Floats


@dataclass(frozen=True)
class Variant:
    """A variant of the meta-parameters: as trained, edited or retrained.

    Attributes:
        name: how they were obtained.
        loss, accuracy: means over the test tasks.
        seconds: time to obtain them.
        edited: True for the edit that removes the most harmful tasks.
    """

    name: str
    loss: float
    accuracy: float
    seconds: float
    edited: bool = False


@dataclass(frozen=True)
class Prediction:
    """Predicted and measured effects of removing subsets of tasks.

    Attributes:
        name: of the ranking that predicts.
        predicted, true: ``(G,)`` changes of the mean test loss.
        each: rank correlation over subsets, averaged over single test tasks (LDS).
        mean: rank correlation for the mean test loss.
        linear: Pearson correlation for the mean test loss.
        slope: true change per unit of predicted change.
        in_loss_units: True if predictions have the unit of the loss, so that the slope has a meaning.
    """

    name: str
    predicted: Floats
    true: Floats
    each: float
    mean: float
    linear: float
    slope: float
    in_loss_units: bool


@dataclass(frozen=True)
class RankedTasks:
    """The training tasks, ranked by influence and by two simpler scores.

    Attributes:
        influence: the hook that scored and edits.
        scores: its scores for the mean test loss.
        rankings: by influence, gradient similarity and training loss.
        seconds: time for the influence scores.
    """

    influence: TaskInfluence
    scores: TaskScores
    rankings: list[Ranking]
    seconds: float


def rank(run: DemoRun) -> RankedTasks:
    """Rank all training tasks by influence, gradient similarity and training loss."""
    begin = time.perf_counter()
    influence = TaskInfluence(run.maml, run.tasks, nn.CrossEntropyLoss(), l2=run.l2, progress=False)
    scores = influence.scores(run.digits.test, len(run.digits.test))
    seconds = time.perf_counter() - begin
    baseline = TaskInfluence(run.maml, run.tasks, nn.CrossEntropyLoss(), hessian="gamma", l2=run.l2, progress=False)
    gradients = baseline.scores(run.digits.test, len(run.digits.test))
    losses, _ = run.full_batch.evaluate(run.full_batch.parameters, run.train)
    rankings = [
        Ranking(INFLUENCE, _in_order(run, scores), _for_each_test_task(run, influence, scores), True),
        Ranking(GRADIENTS, _in_order(run, gradients), _for_each_test_task(run, baseline, gradients), True),
        Ranking(LOSS, losses, np.tile(losses[:, None], _tests_scored(run)), False),
    ]
    return RankedTasks(influence, scores, rankings, seconds)


def detect(run: DemoRun, ranked: RankedTasks) -> list[Detection]:
    """Count the wrong tasks at the top of each ranking."""
    wrong = int(run.wrong.sum())
    return [
        Detection(
            ranking.name,
            round(wrong * precision_at_k(ranking.values, run.wrong, wrong)),
            auc(ranking.values, run.wrong),
            found_curve(ranking.values, run.wrong),
        )
        for ranking in ranked.rankings
    ]


def compare(run: DemoRun, ranked: RankedTasks, advance: Advance) -> list[Variant]:
    """Remove the most harmful fifth of the tasks by editing and by retraining, and compare with keeping all."""
    worst = ranked.scores.top(int(run.wrong.sum()))
    removed = [row.key for row in worst]
    everyone = np.ones(len(run.weights))
    kept = everyone.copy()
    kept[removed] = 0
    at_random = np.random.default_rng(run.seed).choice([row.task for row in ranked.scores], len(worst), replace=False)

    def edited(tasks: Sequence[int]) -> dict[str, Tensor]:
        return _unprefixed(ranked.influence.remove(tasks))

    return [
        _variant(run, "as trained, on all tasks", lambda: run.full_batch.parameters, run.seconds),
        _variant(run, "trained further, on all tasks", lambda: _retrained(run, everyone)),
        _variant(run, "edited: as many tasks at random", lambda: edited(at_random.tolist())),
        _variant(run, "edited: the most harmful tasks", lambda: edited([row.task for row in worst]), edited=True),
        _variant(run, "retrained without them, warm start", lambda: _retrained(run, kept)),
        _variant(run, "retrained without them, from scratch", lambda: train_again(run, removed, advance)),
    ]


def predict(run: DemoRun, ranked: RankedTasks, advance: Advance) -> dict[str, list[Prediction]]:
    """Compare predicted and measured changes of the test loss for random subsets, for two designs of removals."""
    wrong, correct = np.flatnonzero(run.wrong).tolist(), np.flatnonzero(~run.wrong).tolist()
    designs: Mapping[str, list[list[int]]] = {
        "Half of the tasks, at random": [list(range(len(run.weights)))],
        "Half of the correct and half of the wrong tasks": [correct, wrong],
    }
    results = {}
    for name, strata in designs.items():
        removals = stratified_subsets(strata, run.scale.subsets, seed=run.seed + 1)
        truth = measure(lambda weights, _: _outcome(run, weights, advance), removals, progress=False)
        results[name] = [_prediction(ranking, truth) for ranking in ranked.rankings]
    return results


def retrainings(run: DemoRun) -> int:
    """Number of calls of ``advance`` by `predict`."""
    return 2 * (run.scale.subsets + 1)


def _in_order(run: DemoRun, scores: TaskScores) -> Floats:
    """Scores in the order of the taskset; 0 for a task that was never drawn, because its removal changes nothing."""
    values = np.zeros(len(run.weights))
    for row in scores:
        values[row.key] = row.score
    return values


def _tests_scored(run: DemoRun) -> int:
    return min(TEST_TASKS_SCORED, len(run.digits.test))


def _for_each_test_task(run: DemoRun, influence: TaskInfluence, named: TaskScores) -> Floats:
    """``(N, T)`` scores for each of the first T test tasks, in the order of the taskset."""
    keys = {row.task: row.key for row in named}
    tasks, matrix = influence.score_matrix(run.digits.test, _tests_scored(run))
    scores = np.zeros((len(run.weights), matrix.shape[1]))
    scores[[keys[task] for task in tasks]] = matrix.numpy()
    return scores


def _prediction(ranking: Ranking, truth: GroundTruth) -> Prediction:
    predicted, true = truth.predicted(ranking.values), truth.mean_change.mean(1)
    tests = ranking.each.shape[1]
    return Prediction(
        ranking.name,
        predicted,
        true,
        lds(truth.predicted(ranking.each), truth.mean_change[:, :tests]),
        spearman(predicted, true),
        pearson(predicted, true),
        slope(predicted, true),
        ranking.in_loss_units,
    )


def _outcome(run: DemoRun, weights: Floats, advance: Advance) -> Outcome:
    losses, _ = run.test_result(_retrained(run, weights))
    advance()
    return Outcome(losses)


def _retrained(run: DemoRun, weights: Floats) -> dict[str, Tensor]:
    """Warm-started retraining; the weight of a task is how often it was drawn times ``weights``."""
    return run.full_batch.train(
        run.train, run.weights * torch.as_tensor(weights).to(run.weights), run.full_batch.parameters
    )


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The learner's state_dict with the names of its module's parameters."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def _variant(
    run: DemoRun, name: str, get: Callable[[], dict[str, Tensor]], seconds: float | None = None, edited: bool = False
) -> Variant:
    begin = time.perf_counter()
    parameters = get()
    took = time.perf_counter() - begin if seconds is None else seconds
    loss, accuracy = run.test_result(parameters)
    return Variant(name, float(loss.mean()), float(accuracy.mean()), took, edited)
