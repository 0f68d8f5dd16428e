"""How well scores predict what retraining did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from l2l_influence.analysis.estimators import ImplicitFit
from l2l_influence.errors import InfluenceError, NegativeCurvatureError
from l2l_influence.evaluation import (
    GroundTruth,
    auc,
    ceiling,
    cosine,
    lds,
    lds_difference,
    lds_interval,
    pearson,
    precision_at_k,
    relative_error,
    spearman,
)
from l2l_influence.evaluation.metrics import Floats
from l2l_influence.hooks import Influence

from ..journal import Row
from ..metering import measured
from .estimators import ESTIMATORS, Estimator, by_position, positions
from .truths import HALVES, SHARES, SINGLES, true_ranking
from .worlds import World

Truths = Mapping[tuple[str, str], GroundTruth]
MOVES = 16
"""Single items whose Δλ is looked at, at most."""


def rows_of(world: World, level: str, estimator: Estimator, truths: Truths, own: Floats | None) -> Iterator[Row]:
    """One row a damping; baselines beside the default's ``own`` scores, where it has any."""
    where: Row = {"table": "fidelity", "world": world.name, "level": level, "estimator": estimator.name}
    scorer, beside = estimator.on(world, level), own if estimator.baseline else None
    for scale in estimator.dampings:
        yield where | {"damping": scale} | _row(world, level, lambda: estimator.at(scorer, scale), truths, beside)  # noqa: B023


def default_scores(world: World, level: str) -> Floats | None:
    """Of the hooks at their own settings, ``(n, T)``; None where they refuse."""
    scorer = ESTIMATORS[0].on(world, level)
    try:
        return by_position(*scorer.score_matrix(world.tests), world, level)
    except InfluenceError:
        return None


def _row(world: World, level: str, make: Callable[[], Any], truths: Truths, own: Floats | None) -> Row:
    try:
        scorer = make()
        (names, matrix), cost = measured(lambda: scorer.score_matrix(world.tests))
        scores = by_position(names, matrix, world, level)
        if np.ptp(scores) == 0:
            return {"verdict": "zero"}
        found = figures(world, level, scores, truths, own)
        if isinstance(scorer.fitted(), ImplicitFit):
            found["moved"] = moves(world, level, scorer, names, truths[SINGLES, _first(world)])
    except NegativeCurvatureError:
        return {"verdict": "indefinite"}
    except InfluenceError as error:
        return {"verdict": f"refused ({type(error).__name__})"}
    return {"verdict": "measured"} | cost | found


# ---- figures ------------------------------------------------------------------------------------------------------


def figures(world: World, level: str, scores: Floats, truths: Truths, own: Floats | None = None) -> Row:
    """Of scores ``(n, T)``: for each ground truth LDS over halves and tenths with its interval, how much higher that of
    the default's ``own`` scores is, and the rank correlation of the mean test loss; for single items Pearson's r over
    test tasks (mean over items), and the rank correlation of means; for tasks how many wrong ones stand at the top."""
    found: Row = {design: {} for design, _ in truths}
    for (design, name), truth in truths.items():
        told = truth.predicted(scores)
        found[design][name] = _over_groups(told, truth) if design in SHARES else _one_by_one(told, truth)
        if own is not None and design in SHARES:
            found[design][name]["behind"] = list(lds_difference(truth.predicted(own), told, truth.change))
    return found | (detection(scores.mean(1), world) if level == "task" else {})


def _over_groups(told: Floats, truth: GroundTruth) -> Row:
    return {"lds": list(lds_interval(told, truth.change)), "mean": _ranks(told.mean(1), truth.mean_change.mean(1))}


def _one_by_one(told: Floats, truth: GroundTruth) -> Row:
    each = [pearson(a, b) for a, b in zip(told, truth.mean_change, strict=True)]
    return {"pearson": _defined(each), "mean": _ranks(told.mean(1), truth.mean_change.mean(1))}


def detection(scores: Floats, world: World) -> Row:
    """Precision at k, k being the number of wrong tasks, and the area under the ROC curve."""
    return {"found": precision_at_k(scores, world.flags, len(world.wrong)), "auc": auc(scores, world.flags)}


def moves(world: World, level: str, hook: Influence[Any, Any], names: list[Any], truth: GroundTruth) -> Row:
    """Of Δλ by the removal of single items: the medians of cosine and relative error."""
    assert truth.parameter_change is not None
    items, order = truth.removals.argmax(1)[:MOVES], positions(names, world, level)
    predicted = np.stack([_moved(world, hook, names[order[item]]) for item in items if item in order])
    true = truth.parameter_change[0][[row for row, item in enumerate(items) if item in order]]
    return {
        "cosine": _median(cosine(predicted, true)),
        "error": _median(relative_error(predicted, true)),
    }


def _moved(world: World, hook: Influence[Any, Any], name: Any) -> Floats:
    """Δλ, in the order of the world's layout."""
    prefix = "" if world.options.get("body") is not None else "module."
    state = hook.remove(name)
    edited = world.layout.ravel({key: state[prefix + key] for key in world.layout.shapes})
    return (edited - world.lam).double().numpy()


def agreement(truths: Truths) -> Row:
    """Of ground truths with each other, and the ceilings that their noise sets to LDS."""
    halves = {name: truth for (design, name), truth in truths.items() if design == HALVES}
    found: Row = {"ceiling": {name: list(ceiling(t.change)) for name, t in halves.items() if len(t.seeds) > 1}}
    if len(halves) == 2:
        one, other = halves.values()
        found["agreement"] = lds(one.mean_change, other.mean_change)
    return found


def described(world: World, truths: Truths) -> Row:
    """λ*, what it was trained on, and what the ground truths of whole tasks are worth."""
    stationarity = ESTIMATORS[0].on(world, "task").stationarity()
    first = world.trainers[_first(world)]
    row: Row = {
        "table": "worlds",
        "world": world.name,
        "title": world.title,
        "parameters": len(world.lam),
        "tasks": len(world.train),
        "wrong": len(world.wrong),
        "seeds": dict(world.seeds),
        "stationarity": stationarity.tasks,
        "test": float(first.losses(world.lam).mean()),
    }
    row["noise"] = agreement(truths)
    ranking = true_ranking(truths[SINGLES, _first(world)])
    return row | ({"retraining": detection(ranking, world)} if len(ranking) == len(world.train) else {})


def _first(world: World) -> str:
    """The ground truth that everything is held against."""
    return next(iter(world.trainers))


def _ranks(a: Floats, b: Floats) -> float | None:
    found = spearman(a, b)
    return found if np.isfinite(found) else None


def _defined(values: list[float]) -> float | None:
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else None


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if np.isfinite(values).all() else None
