"""What keeps the figures of two learners down: one thing at a time is taken away, and halves are predicted anew.

Each line is a learner or a removal that differs from the first of its network in what it says, scored by the default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from l2l_influence.errors import InfluenceError
from l2l_influence.evaluation import ceiling, lds_interval, measure, random_subsets

from ..journal import Row
from .estimators import ESTIMATORS, by_position
from .networks import mlp, smooth_mlp
from .recipes import DIGITS, OMNIGLOT, Recipe
from .training import Schedule
from .truths import Retrain, count, digest
from .worlds import Size

DAMPINGS = (1.0, 0.1, 0.0)


@dataclass(frozen=True)
class Cause:
    """A learner, and what is removed of it.

    Attributes:
        what: is different, as the table calls it.
        recipe: of the learner.
        level, share: of what is removed.
        seeds: of retraining.
    """

    what: str
    recipe: Recipe
    level: str = "task"
    share: float = 0.5
    seeds: int = 1


SWITCHING = replace(
    DIGITS,
    network=mlp,
    lr=0.1,
    adapt_steps=3,
    fit=Schedule(0.01, 800, weight_decay=1e-3),
    again=Schedule(0.001, 150, weight_decay=1e-3),
    scratch=False,
)
"""The MLP as it comes: ReLU, stopped where the schedule ends, adapted by steps of 0.1."""
_DECAYED = replace(
    SWITCHING, fit=replace(SWITCHING.fit, weight_decay=1e-2), again=replace(SWITCHING.again, weight_decay=1e-2)
)
_BATCHES = replace(SWITCHING, fit=replace(SWITCHING.fit, batch=12), again=replace(SWITCHING.again, batch=12))

CAUSES = (
    Cause("ReLU, 800 steps, retrained for 150", SWITCHING),
    Cause("trained three times as long", replace(SWITCHING, fit=replace(SWITCHING.fit, steps=2400))),
    Cause("retrained three times as long", replace(SWITCHING, again=replace(SWITCHING.again, steps=450))),
    Cause("a tenth removed", SWITCHING, share=0.1),
    Cause("252 tasks", replace(SWITCHING, tasks=252)),
    Cause("tanh", replace(SWITCHING, network=smooth_mlp)),
    Cause("ten times the weight decay", _DECAYED),
    Cause("tanh and ten times the weight decay", replace(_DECAYED, network=smooth_mlp)),
    Cause("adapted by five steps of .05", replace(SWITCHING, lr=0.05, adapt_steps=5)),
    Cause("batches of 12, one seed", _BATCHES),
    Cause("batches of 12, six seeds", _BATCHES, seeds=6),
    Cause("tanh, ten times the decay, five steps of .05: trained and retrained towards rest", DIGITS),
    Cause("… retrained for 150 short steps", replace(DIGITS, again=replace(DIGITS.again, steps=150, settle=0))),
    Cause("… with 252 tasks", replace(DIGITS, tasks=252)),
    Cause("OmniglotFC, 400 steps, retrained for 100", OMNIGLOT),
    Cause("OmniglotFC, a tenth removed", OMNIGLOT, share=0.1),
    Cause("OmniglotFC, no wrong labels", replace(OMNIGLOT, wrong=0.0)),
    Cause(
        "OmniglotFC, retrained for 60 steps of a fifth",
        replace(OMNIGLOT, again=replace(OMNIGLOT.again, lr=1e-4, steps=60)),
    ),
)


def row_of(cause: Cause, size: Size, cache: Path) -> Row:
    """LDS by damping, each with its interval; half as many groups are removed as of the worlds."""
    world = cause.recipe("causes", size)
    retrain = Retrain(world.trainers["warm"], world.train, cause.level)
    removals = random_subsets(count(world.train, cause.level), size.halves // 2, cause.share, seed=2)
    truth = measure(retrain, removals, range(cause.seeds), cache=cache / "causes", name=digest(retrain))
    estimator, found = ESTIMATORS[0], {}
    scorer = estimator.on(world, cause.level)
    for scale in DAMPINGS:
        try:
            names, matrix = estimator.at(scorer, scale).score_matrix(world.tests)
        except InfluenceError:
            continue
        told = truth.predicted(by_position(names, matrix, world, cause.level))
        found[str(scale)] = list(lds_interval(told, truth.change))
    return {
        "table": "causes",
        "world": "causes",
        "level": cause.level,
        "estimator": cause.what,
        "lds": found,
        "ceiling": list(ceiling(truth.change)) if cause.seeds > 1 else None,
        "stationarity": scorer.stationarity().tasks,
        "test": float(world.trainers["warm"].losses(world.lam).mean()),
        "change": float(abs(truth.mean_change).mean()),
    }
