"""The registry of learners: adapters by class of learner, and by the name of their rule in saved studies."""

from __future__ import annotations

from typing import Any

from learn2learn.algorithms import GBML
from learn2learn.algorithms.base_learner import BaseLearner
from torch import nn

from ...errors import RecordingError
from .base import LearnerAdapter, UnknownAdapter
from .gbml import GBMLAdapter
from .maml import MAMLAdapter
from .meta_sgd import MetaSGDAdapter

LEARNERS: tuple[type[LearnerAdapter], ...] = (MAMLAdapter, MetaSGDAdapter, GBMLAdapter)

ROOTS: tuple[type, ...] = (BaseLearner, GBML)
"""Classes that every learner derives from that can be cloned, fed and adapted."""


def adapter_of(learner: nn.Module) -> LearnerAdapter:
    """The adapter of a learner, as it stands."""
    return next((kind for kind in LEARNERS if isinstance(learner, kind.root)), UnknownAdapter)(learner)


def adapter_named(rule: str | None) -> type[LearnerAdapter]:
    """The adapter class with this rule; `UnknownAdapter` for a rule that no adapter has."""
    return next((kind for kind in LEARNERS if kind.rule == rule), UnknownAdapter)


def adapter_defining(owner: object) -> type[LearnerAdapter] | None:
    """The adapter class whose root is ``owner`` itself; None for a user's class, whose methods may do anything."""
    return next((kind for kind in LEARNERS if kind.root is owner), None)


def rule_of(learner: object) -> str:
    """The rule by which learn2learn's class that this learner derives from takes its steps."""
    return next((kind.rule for kind in LEARNERS if isinstance(learner, kind.root)), UnknownAdapter.rule)


def known_step(lr: Any, rule: str) -> tuple[float, str]:
    """Learning rate and rule of an inner step, as far as a number and a name can describe it."""
    return adapter_named(rule).step(lr)


def require_learner(learner: object) -> None:
    """Raise a `RecordingError` that says what can be recorded, unless ``learner`` is a learner of this kind."""
    if not isinstance(learner, ROOTS):
        raise RecordingError(
            f"{type(learner).__name__} cannot be recorded as a learner. Pass learn2learn's MAML, MetaSGD and GBML, "
            "or an object of a class derived from them: they are cloned for each task and adapted by gradient steps. "
            "For a LightningMAML pass its .model, for a LightningANIL its .classifier, for a Study its .learner. Not "
            "supported: Reptile (it has no outer loss), prototypical networks (they adapt no parameters) and "
            "MetaOptNet (its head solves a separate problem)."
        )
