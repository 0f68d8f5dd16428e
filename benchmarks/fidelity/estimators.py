"""What is held against retraining: the hooks with every kind of Hessian, inner problem and damping, and the baselines.

Estimators are made from a world's study as a user would make them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from l2l_influence import QueryInfluence, SupportInfluence, TaskInfluence
from l2l_influence.bilevel import Sketch, Subsample
from l2l_influence.evaluation.metrics import Floats
from l2l_influence.evaluation.sensitivity import damped, damping_of
from l2l_influence.hooks import Influence
from l2l_influence.recording import Study

from .truths import count
from .worlds import World

ALL = ("task", "query", "support")

HOOKS: Mapping[str, type[Influence[Any, Any]]] = {
    "task": TaskInfluence,
    "query": QueryInfluence,
    "support": SupportInfluence,
}


def plain(study: Study, tasks: None = None, loss: Any = None, *, level: str, **options: Any) -> Influence[Any, Any]:
    """The hook of that level."""
    return HOOKS[level](study, tasks, loss, **options)


def influence(study: Study, tasks: None = None, loss: Any = None, *, level: str, **options: Any) -> Influence[Any, Any]:
    """The hook of that level; support samples are resolved."""
    own = {"removal": "resolve"} if level == "support" else {}
    return plain(study, tasks, loss, level=level, **own, **options)


def with_other_inner_kind(
    study: Study, tasks: None = None, loss: Any = None, *, level: str, inner: str = "unrolled", **options: Any
) -> Influence[Any, Any]:
    """Proximal where the world unrolls its steps, and unrolled where it is proximal."""
    options.pop("proximal", None)
    other = "proximal" if inner == "unrolled" else "unrolled"
    return influence(study, tasks, loss, level=level, inner=other, **options)


def from_a_quarter(
    study: Study, tasks: None = None, loss: Any = None, *, level: str, **options: Any
) -> Influence[Any, Any]:
    """A sketch of a quarter of the tasks, drawn at random."""
    some = Subsample(Sketch(samples=16), tasks=max(1, len(study.training_tasks()) // 4))
    return influence(study, tasks, loss, level=level, hessian=some, **options)


@dataclass(frozen=True)
class Estimator:
    """One way to score.

    Attributes:
        name: as tables call it.
        make: ``make(study, None, loss, level=…, **options)``.
        options: beyond the world's.
        dampings: of the solve, in units of the hooks' own.
        levels: that it scores.
        dear: whether it is left out where the network is large, except for tasks in the worlds of ``also``.
        by_products: whether each test task takes products with all training tasks; not done in large networks.
        resolves: whether it solves inner problems that training did not; in large networks done for tasks only.
        only: names of the worlds that it is for; all of them unless given.
        also: see ``dear``.
        checkpoints: whether it asks for the way that training took.
        baseline: whether it is something simpler than influence.
    """

    name: str
    make: Callable[..., Any] = influence
    options: Mapping[str, Any] = field(default_factory=dict)
    dampings: tuple[float, ...] = (1.0,)
    levels: tuple[str, ...] = ALL
    dear: bool = False
    by_products: bool = False
    resolves: bool = False
    only: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    checkpoints: bool = False
    baseline: bool = False

    def on(self, world: World, level: str) -> Any:
        """What has ``score_matrix``."""
        options = {**world.options, **self.options}
        if self.checkpoints:
            options["checkpoints"] = world.checkpoints
        return self.make(world.study, None, options.pop("loss"), level=level, progress=False, **options)

    def at(self, scorer: Any, scale: float) -> Any:
        """The scorer with its damping times ``scale``."""
        return scorer if scale == 1 else damped(scorer, scale * damping_of(scorer))

    def asked(self, world: World, level: str) -> bool:
        """Whether it is measured there: what is dear scores tasks only, and in few of the large networks."""
        if self.only and world.name not in self.only or level not in self.levels or level not in world.levels:
            return False
        if self.checkpoints and not world.checkpoints:
            return False
        if world.large and (self.by_products or self.resolves and level != "task"):
            return False
        if not self.dear or len(world.lam) <= SMALL:
            return True
        return level == "task" and (not world.large or world.name in self.also)


SMALL = 500
"""Parameters of a network in which nothing is dear."""

DAMPINGS = (1.0, 0.0, 0.1, 10.0, 100.0)
DEFAULT = "sketch, 16 samples"

_HOOKS = (
    Estimator(DEFAULT, options={"hessian": Sketch(samples=16)}, dampings=DAMPINGS),
    Estimator("sketch, 4 samples", options={"hessian": Sketch(samples=4)}, dampings=(1.0, 10.0, 100.0)),
    Estimator("sketch, 1 sample", options={"hessian": Sketch(samples=1)}),
    Estimator("sketch, a quarter of the tasks", from_a_quarter),
    Estimator("sketch, 64 samples", options={"hessian": Sketch(samples=64)}, dampings=DAMPINGS, dear=True),
    Estimator(
        "gauss-newton",
        options={"hessian": "gauss-newton"},
        dampings=(1.0, 10.0),
        dear=True,
        also=("omniglot-fc",),
    ),
    Estimator("exact", options={"hessian": "exact"}, dampings=(1.0, 0.0, 10.0), dear=True),
    Estimator(
        "exact, left out",
        options={"hessian": "exact", "leave_one_out": True},
        levels=("task",),
        only=("convex",),
    ),
    Estimator(
        "the other inner kind",
        with_other_inner_kind,
        {"hessian": Sketch(samples=16)},
        levels=("task", "query"),
        resolves=True,
    ),
    Estimator("closed form", plain, {"hessian": Sketch(samples=16)}, levels=("support",)),
)
"""The first is the hooks' default, of which the last two differ in one thing."""

BASELINES: Mapping[str, Mapping[str, Any]] = {
    "random": {"estimator": "random"},
    "query-loss": {"estimator": "loss"},
    "gradient-norm": {"estimator": "gradient-norm"},
    "gradient-similarity": {"estimator": "gradient-similarity"},
    "cosine-similarity": {"estimator": "cosine-similarity"},
    "tracin": {"estimator": "tracin"},
    "ascent-steps": {"estimator": "ascent"},
    "direct": {"hessian": "direct"},
    "direct-first-order": {"hessian": "direct-first-order"},
    "first-order": {"estimator": "first-order"},
    "single-level-ekfac": {"estimator": "single-level-ekfac"},
    "gamma": {"hessian": "gamma"},
    "projected-gradients": {"estimator": "projected-gradients"},
}
"""Settings of a hook, by the name that tables use."""

BY_PRODUCTS = {"direct-first-order"}
ONLY_TASKS, DEAR = {"ascent-steps", "single-level-ekfac", "cosine-similarity", "direct"}, {"ascent-steps"}

ESTIMATORS: tuple[Estimator, ...] = _HOOKS + tuple(
    Estimator(
        name,
        plain,
        settings,
        levels=("task",) if name in ONLY_TASKS else ALL,
        dear=name in DEAR,
        by_products=name in BY_PRODUCTS,
        checkpoints=name == "tracin",
        baseline=True,
    )
    for name, settings in BASELINES.items()
)


def positions(names: list[Any], world: World, level: str) -> dict[int, int]:
    """Where in ``names`` each of the world's items stands. Items are tasks, or (task, j) in order."""
    key = {task.id: task.key for task in world.study.training_tasks()}
    samples = 1 if level == "task" else getattr(world.train, f"{level}_y").shape[1]
    pairs = [(name, 0) if level == "task" else name for name in names]
    return {key[task] * samples + j: row for row, (task, j) in enumerate(pairs)}


def by_position(names: list[Any], matrix: Tensor, world: World, level: str) -> Floats:
    """Rows of a score matrix ``(n, T)`` in the order of the world's items; 0 for what was never trained on."""
    scores = np.zeros((count(world.train, level), matrix.shape[1]))
    for item, row in positions(names, world, level).items():
        scores[item] = matrix[row].numpy()
    return scores
