"""The demo's questions, each a function of the run and of what was found before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ... import TaskInfluence, TaskScores
from ...evaluation import (
    Truth,
    auc,
    found_curve,
    lds,
    measure,
    pearson,
    precision_at_k,
    random_groups,
    slope,
    spearman,
)
from ...evaluation.metrics import Floats
from ...storage.outcomes import Outcome as Retrained
from .run import Advance, Run, train_again

INFLUENCE, GRADIENTS, LOSS = "influence", "gradient similarity", "training loss"
TEST_TASKS_SCORED = 30


@dataclass(frozen=True)
class Ranking:
    """One way to rank the training tasks, most harmful highest.

    Attributes:
        name: what it is called.
        values: ``(N,)`` for the mean test loss, in the order of the taskset.
        each: ``(N, T)`` for each of the first T test tasks.
        in_loss_units: whether the numbers are predicted changes of the loss.
    """

    name: str
    values: Floats
    each: Floats
    in_loss_units: bool


@dataclass(frozen=True)
class Detection:
    """How well a ranking finds the wrong tasks: among the first k, overall, and step by step."""

    name: str
    found: int
    auc: float
    curve: Floats


@dataclass(frozen=True)
class Outcome:
    """Meta-parameters one way or another: test loss and accuracy, and the seconds it took to get them."""

    name: str
    loss: float
    accuracy: float
    seconds: float
    edited: bool = False


@dataclass(frozen=True)
class Prediction:
    """What a ranking says will happen when groups of tasks are removed, beside what did.

    Attributes:
        name: of the ranking.
        predicted, true: ``(G,)`` changes of the mean test loss.
        each: rank correlation over groups, averaged over single test tasks (LDS).
        mean: rank correlation for the mean test loss.
        linear: Pearson's correlation for the mean test loss.
        slope: true change per unit of predicted change.
        in_loss_units: whether the slope means anything.
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
class Study:
    """The hook and what it ranked; ``seconds`` is what all influence scores took together."""

    hook: TaskInfluence
    scores: TaskScores
    rankings: list[Ranking]
    seconds: float


def rank(run: Run) -> Study:
    """Influence scores of all training tasks, beside two simpler rankings."""
    begin = time.perf_counter()
    hook = TaskInfluence(run.maml, run.tasks, nn.CrossEntropyLoss(), l2=run.l2, progress=False)
    scores = hook.scores(run.digits.test, len(run.digits.test))
    seconds = time.perf_counter() - begin
    baseline = TaskInfluence(run.maml, run.tasks, nn.CrossEntropyLoss(), hessian="gamma", l2=run.l2, progress=False)
    gradients = baseline.scores(run.digits.test, len(run.digits.test))
    losses, _ = run.full_batch.evaluate(run.full_batch.parameters, run.train)
    rankings = [
        Ranking(INFLUENCE, _by_index(run, scores), _for_each_test_task(run, hook, scores), True),
        Ranking(GRADIENTS, _by_index(run, gradients), _for_each_test_task(run, baseline, gradients), True),
        Ranking(LOSS, losses, np.tile(losses[:, None], _scored_tests(run)), False),
    ]
    return Study(hook, scores, rankings, seconds)


def detect(run: Run, study: Study) -> list[Detection]:
    """How many wrong tasks stand at the top of each ranking."""
    worst = int(run.wrong.sum())
    return [
        Detection(
            ranking.name,
            round(worst * precision_at_k(ranking.values, run.wrong, worst)),
            auc(ranking.values, run.wrong),
            found_curve(ranking.values, run.wrong),
        )
        for ranking in study.rankings
    ]


def compare(run: Run, study: Study, advance: Advance) -> list[Outcome]:
    """The most harmful fifth removed by editing, by true retraining, and not at all."""
    worst = study.scores.top(int(run.wrong.sum()))
    removed = [row.key for row in worst]
    everyone = np.ones(len(run.weights))
    kept = everyone.copy()
    kept[removed] = 0
    at_random = np.random.default_rng(run.seed).choice([row.task for row in study.scores], len(worst), replace=False)

    def edited(tasks: Sequence[int]) -> dict[str, Tensor]:
        return _unprefixed(study.hook.remove(tasks))

    return [
        _outcome(run, "as trained, on all tasks", lambda: run.full_batch.parameters, run.seconds),
        _outcome(run, "trained on, still on all tasks", lambda: _trained_on(run, everyone)),
        _outcome(run, "edited: as many tasks at random", lambda: edited(at_random.tolist())),
        _outcome(run, "edited: the most harmful tasks", lambda: edited([row.task for row in worst]), edited=True),
        _outcome(run, "retrained without them, from here", lambda: _trained_on(run, kept)),
        _outcome(run, "retrained without them, from scratch", lambda: train_again(run, removed, advance)),
    ]


def predict(run: Run, study: Study, advance: Advance) -> dict[str, list[Prediction]]:
    """Predicted and true change of the test loss for groups of tasks left out, by way of drawing the groups."""
    wrong, right = np.flatnonzero(run.wrong).tolist(), np.flatnonzero(~run.wrong).tolist()
    strata: Mapping[str, list[list[int]]] = {
        "Half of the tasks, at random": [list(range(len(run.weights)))],
        "Half of the correct and half of the wrong tasks": [right, wrong],
    }
    results = {}
    for name, parts in strata.items():
        groups = random_groups(parts, run.scale.groups, seed=run.seed + 1)
        truth = measure(lambda weights, _: _retrained(run, weights, advance), groups, progress=False)
        results[name] = [_prediction(ranking, truth) for ranking in study.rankings]
    return results


def retrainings(run: Run) -> int:
    """How often `predict` calls ``advance``."""
    return 2 * (run.scale.groups + 1)


def _by_index(run: Run, scores: TaskScores) -> Floats:
    """Scores in the order of the taskset; a task that was never drawn has none, for its removal changes nothing."""
    values = np.zeros(len(run.weights))
    for row in scores:
        values[row.key] = row.score
    return values


def _scored_tests(run: Run) -> int:
    return min(TEST_TASKS_SCORED, len(run.digits.test))


def _for_each_test_task(run: Run, hook: TaskInfluence, named: TaskScores) -> Floats:
    """``(N, T)`` scores on each of the first T test tasks, placed as ``named`` says."""
    keys = {row.task: row.key for row in named}
    tasks, matrix = hook.score_matrix(run.digits.test, _scored_tests(run))
    scores = np.zeros((len(run.weights), matrix.shape[1]))
    scores[[keys[task] for task in tasks]] = matrix.numpy()
    return scores


def _prediction(ranking: Ranking, truth: Truth) -> Prediction:
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


def _retrained(run: Run, weights: Floats, advance: Advance) -> Retrained:
    losses, _ = run.test_result(_trained_on(run, weights))
    advance()
    return Retrained(losses)


def _trained_on(run: Run, weights: Floats) -> dict[str, Tensor]:
    """From the trained parameters on, with tasks weighted as they were drawn times ``weights``."""
    return run.full_batch.train(
        run.train, run.weights * torch.as_tensor(weights).to(run.weights), run.full_batch.parameters
    )


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The learner's state_dict under the names of its module's parameters."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def _outcome(
    run: Run, name: str, get: Callable[[], dict[str, Tensor]], seconds: float | None = None, edited: bool = False
) -> Outcome:
    begin = time.perf_counter()
    parameters = get()
    took = time.perf_counter() - begin if seconds is None else seconds
    loss, accuracy = run.test_result(parameters)
    return Outcome(name, float(loss.mean()), float(accuracy.mean()), took, edited)
