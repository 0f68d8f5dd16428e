"""Which learners of learn2learn's can be recorded, and what is known of their inner steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from learn2learn.algorithms import GBML, MAML, MetaSGD
from learn2learn.algorithms.base_learner import BaseLearner
from torch import Tensor, nn

from ...errors import RecordingError
from ..episodes.task import Rule

ROOTS: tuple[type, ...] = (BaseLearner, GBML)
"""What every learner derives from that is cloned, fed and adapted."""

RULES: Mapping[type, Rule] = {MAML: "sgd", MetaSGD: "meta-sgd", GBML: "gbml"}
"""How learn2learn's own ``adapt`` methods move the parameters."""


def require_learner(learner: object) -> None:
    """Raise a `RecordingError` that says what can be recorded, if ``learner`` is nothing of the kind."""
    if not isinstance(learner, ROOTS):
        raise RecordingError(
            f"{type(learner).__name__} is no learner that can be recorded. These can: learn2learn's MAML, MetaSGD and "
            "GBML and what is derived from them, which are cloned for a task and adapted to it by gradient steps (the "
            "learner of a LightningMAML is its .model, that of a LightningANIL its .classifier, that of a Study its "
            ".learner). Reptile has no outer loss, prototypical networks adapt no parameters, and MetaOptNet's head "
            "solves its own problem: influence functions of tasks, as they are defined here, do not cover them."
        )


def model_of(learner: nn.Module) -> nn.Module:
    """The model inside a learner; not what spreads it over devices or processes, if there is that around it."""
    model = learner._modules["module"]
    assert model is not None
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def rule_of(learner: object) -> Rule:
    """By which rule the ``adapt`` of learn2learn's class moves the parameters that this learner derives from."""
    return next((rule for kind, rule in RULES.items() if isinstance(learner, kind)), "other")


def known_step(lr: Any, rule: Rule) -> tuple[float, Rule]:
    """lr and rule of an inner step, as far as two words can say them.

    A learning rate that is itself learned, or not one number, makes another rule of plain gradient steps. The lr of
    what is no plain gradient step is NaN.
    """
    if isinstance(lr, Tensor) and (lr.requires_grad or lr.numel() != 1):
        rule = "other" if rule == "sgd" else rule
    return (float(lr), rule) if rule == "sgd" else (math.nan, rule)


def same_settings(clone: Any, learner: Any) -> bool:
    """Whether what a GBML's steps depend on besides its parameters is what its learner has, as far as that is known."""
    settings = clone.adapt_transform, clone.diff_sgd.lr
    return learner is None or settings == (learner.adapt_transform, learner.lr)
