"""What removals really do: items taken away in halves, in tenths and one by one, and the learner trained again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import torch

from l2l_influence.evaluation import GroundTruth, Outcome, leave_one_out, measure, random_subsets
from l2l_influence.evaluation.metrics import Flags, Floats

from ..estimators.retraining import Weights
from ..estimators.worlds import Stacked
from .worlds import Size, Trainer, World

HALVES, TENTHS, SINGLES = "halves", "tenths", "singles"
SHARES = {HALVES: 0.5, TENTHS: 0.1}
"""Of the items of a level, removed as a whole."""


@dataclass(frozen=True)
class Retrain:
    """A trainer as ``measure`` calls it: with weights of the items of one level, ``(n,)``."""

    trainer: Trainer
    tasks: Stacked
    level: str

    def __call__(self, weights: Floats, seed: int) -> Outcome:
        lam = self.trainer(weighted(self.tasks, self.level, weights), seed)
        return Outcome(self.trainer.losses(lam), lam.double().numpy())


def weighted(tasks: Stacked, level: str, weights: Floats) -> Weights:
    """All ones, and ``weights`` times those of one level."""
    whole = Weights.of(tasks)
    part: torch.Tensor = getattr(whole, level)
    return whole._replace(**{level: part * torch.as_tensor(weights).view(part.shape)})


def count(tasks: Stacked, level: str) -> int:
    """How many items there are."""
    return int(getattr(Weights.of(tasks), level).numel())


def designs(world: World, size: Size, level: str) -> dict[str, Flags]:
    """What is removed, ``(G, n)``."""
    items = count(world.train, level)
    singles = leave_one_out(items, None if level == "task" and not world.large else min(size.singles, items), seed=1)
    groups = {design: random_subsets(items, size.halves, share, seed=2) for design, share in SHARES.items()}
    return groups | {SINGLES: singles}


def asked(world: World, level: str) -> Iterator[tuple[str, str]]:
    """(design, ground truth) that are measured: retraining from scratch only for halves of the tasks, and tenths only
    where networks are small."""
    for truth in world.trainers:
        if truth == next(iter(world.trainers)):
            yield HALVES, truth
            if not world.large:
                yield TENTHS, truth
            yield SINGLES, truth
        elif level == "task":
            yield HALVES, truth


def truths(world: World, size: Size, level: str, cache: Path) -> dict[tuple[str, str], GroundTruth]:
    """By design and ground truth; retrainings are kept in ``cache`` as they come."""
    removals, found = designs(world, size, level), {}
    for design, truth in asked(world, level):
        retrain = Retrain(world.trainers[truth], world.train, level)
        seeds = range(1 if design == SINGLES else world.seeds[truth])
        found[design, truth] = measure(retrain, removals[design], seeds, cache=cache / world.name, name=digest(retrain))
    return found


def digest(value: object) -> str:
    """Of everything that a retraining depends on: fields of dataclasses, numbers in tensors, names of functions."""
    if isinstance(value, torch.Tensor):
        content = f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    elif is_dataclass(value):
        content = "".join(digest(getattr(value, field.name)) for field in fields(value)).encode()
    elif isinstance(value, Mapping):
        content = "".join(f"{key} {digest(part)}" for key, part in value.items()).encode()
    else:
        content = str(getattr(value, "__qualname__", value)).encode()
    return hashlib.sha256(type(value).__name__.encode() + content).hexdigest()


def true_ranking(truth: GroundTruth) -> Floats:
    """How harmful each removed item turned out to be: the fall of the mean test loss."""
    return np.asarray(-truth.mean_change.mean(1))
