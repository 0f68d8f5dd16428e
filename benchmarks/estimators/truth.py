"""What removals really do: re-optimisation, from λ* on, without what was taken away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .retraining import Retraining, Weights, whitening
from .worlds import Size, World


@dataclass(frozen=True)
class Removal:
    """Items taken away together: tasks, or samples (task, j) of a query or support set."""

    level: str
    items: tuple[tuple[int, int], ...]

    def applied(self, weights: Weights) -> Weights:
        reduced = Weights(*(part.clone() for part in weights))
        for task, j in self.items:
            if self.level == "task":
                reduced.task[task] = 0
            else:
                getattr(reduced, self.level)[task, j] = 0
        return reduced


@dataclass(frozen=True)
class Truth:
    """What the removals of one level did.

    Attributes:
        removals: R of them.
        moved: Δλ, ``[R, P]``.
        change: of each test task's loss, ``[R, T]``.
        left: the largest ‖D_λ L_Total‖ left by re-optimisation, in units of what its removal put there.
    """

    removals: list[Removal]
    moved: Tensor
    change: Tensor
    left: float


def measure(retraining: Retraining, lam: Tensor, hessian: Tensor, removals: list[Removal]) -> Truth:
    """Re-optimise from λ* (``lam``, where the exact Hessian is ``hessian``) without each of ``removals``."""
    world, metric = retraining.world, whitening(hessian)
    before = retraining.losses(lam, world.test)
    moved, change, left = [], [], []
    for removal in removals:
        weights = removal.applied(Weights.of(world.train))
        found = retraining.optimum(lam, weights, metric)
        moved.append(found.lam - lam)
        change.append(retraining.losses(found.lam, world.test) - before)
        left.append(found.gradient / float(retraining.total(lam, weights)[1].norm()))
    return Truth(removals, torch.stack(moved), torch.stack(change), max(left))


def choose(world: World, size: Size, seed: int) -> dict[str, list[Removal]]:
    """What to remove, by level: single tasks and samples, and random halves of the tasks."""
    draw = torch.Generator().manual_seed(1000 + seed)
    count, samples = world.train.query_y.shape
    tasks = torch.randperm(count, generator=draw)[: size.removals].tolist()
    chosen = {"task": [Removal("task", ((task, 0),)) for task in tasks]}
    for level in ("query", "support"):
        places = torch.randperm(count * samples, generator=draw)[: size.removals].tolist()
        chosen[level] = [Removal(level, (divmod(place, samples),)) for place in places]
    halves = [torch.randperm(count, generator=draw)[: count // 2].tolist() for _ in range(size.halves)]
    return chosen | {"half": [Removal("task", tuple((task, 0) for task in half)) for half in halves]}
