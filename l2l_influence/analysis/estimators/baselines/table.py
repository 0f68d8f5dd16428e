"""All baselines by name, to be made in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ....bilevel.inner import ApproximateJacobian, IdentityJacobian
from ....hooks import DirectInfluence
from ....recording import Study
from ...items.items import ItemInfluence
from .ascent import AscentSteps
from .base import Baseline, LevelName, hook_class
from .chance import Random
from .ekfac import SingleLevelEKFAC
from .own import GradientNorm, QueryLoss
from .similarity import CosineSimilarity, GradientSimilarity
from .tracin import TracIn
from .trak import ProjectedGradients

Scorer = Baseline | ItemInfluence[Any, Any]
"""What has ``scores(test_tasks, …)`` and ``score_matrix(test_tasks, …)``."""


def with_hessian(
    hessian: str,
    maml: BaseLearner | Study,
    tasks: Taskset | None = None,
    loss: Callable[..., Tensor] | None = None,
    *,
    level: LevelName = "task",
    **options: Any,
) -> Scorer:
    """The level's own hook, with a Hessian that makes a baseline of it."""
    direct = level == "task" and hessian.startswith("direct")
    kind: type[ItemInfluence[Any, Any]] = DirectInfluence if direct else hook_class(level)
    return kind(maml, tasks, loss, hessian=hessian, **options)


def first_order(
    maml: BaseLearner | Study,
    tasks: Taskset | None = None,
    loss: Callable[..., Tensor] | None = None,
    *,
    level: LevelName = "task",
    **options: Any,
) -> Scorer:
    """The level's own hook with dθ/dλ = I throughout, as first-order MAML has it, whatever the loop did.

    In ``"direct-first-order"`` the test tasks' gradients stay total; here they do not. The inner kind is read off the
    recording, so the loop must have run.
    """
    hook = hook_class(level)
    usual = hook(maml, tasks, loss, **options)
    return hook(
        maml, tasks, loss, **options | {"inner": ApproximateJacobian(usual._study().problem.kind, IdentityJacobian)}
    )


BASELINES: Mapping[str, Callable[..., Scorer]] = {
    "random": Random,
    "query-loss": QueryLoss,
    "gradient-norm": GradientNorm,
    "gradient-similarity": GradientSimilarity,
    "cosine-similarity": CosineSimilarity,
    "tracin": TracIn,
    "ascent-steps": AscentSteps,
    "direct": partial(with_hessian, "direct"),
    "direct-first-order": partial(with_hessian, "direct-first-order"),
    "first-order": first_order,
    "single-level-ekfac": SingleLevelEKFAC,
    "gamma": partial(with_hessian, "gamma"),
    "projected-gradients": ProjectedGradients,
}
"""``make(maml_or_study, tasks=None, loss=…, level="task", **options)`` by name. ``"tracin"`` also takes
``checkpoints=``; the others need nothing more."""
