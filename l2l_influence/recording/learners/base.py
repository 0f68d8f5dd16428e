"""`LearnerAdapter`: everything the package has to know about one class of learners.

To support another learner, write a subclass in a file of its own and add it to ``LEARNERS`` in ``registry.py``.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...bilevel.inner import StepRule
from ...bilevel.layout import Named
from ...errors import UncoveredParameterError

OTHER = "other"
"""The rule of inner steps that no adapter knows."""

PLAIN = "sgd"
"""The rule of plain gradient steps."""

OWN = "module."
"""Prefix of the model's weights in a learner's state_dict."""


@dataclass(frozen=True)
class LearnedRule:
    """The inner rule of a learner that learns it, on copies of its tensors.

    Attributes:
        steps: the rule.
        parameters: those entries of λ that belong to the rule, named as in the learner's state_dict.
        through_steps: whether the loop differentiates through the steps even if it says ``first_order``.
    """

    steps: StepRule
    parameters: Named
    through_steps: bool = False


class LearnerAdapter(ABC):
    """Describes the learners of one class; an instance describes one learner in its present state.

    The defaults describe a learner that copies all parameters of its model and takes gradient steps from there.

    Attributes:
        rule: name of its step rule in recordings and in saved studies; it must not change once studies exist.
        root: the class whose ``adapt`` takes these steps; subclasses are covered too.
        plain_steps: whether a learning rate and a number of steps say all about its inner steps.
        needs_learner: whether a saved study can only be loaded into a learner, because a bare model is not enough to
            rebuild one.
        settings_names: settings that its steps depend on, compared between processes and at loading.
    """

    rule: ClassVar[str]
    root: ClassVar[type]
    plain_steps: ClassVar[bool] = False
    needs_learner: ClassVar[bool] = False
    settings_names: ClassVar[tuple[str, ...]] = ("learner", "rule", "lr", "first_order")

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    @property
    def model(self) -> nn.Module:
        """The model inside the learner."""
        return model_of(self.learner)

    def adapted(self) -> dict[str, Tensor | None]:
        """The parameters that a task adapts, by name in the model, and where they start.

        None stands for the parameter's entry of λ. A tensor is the start in every task; its parameter is no entry of λ.
        """
        return {name: None for name, _ in self.model.named_parameters()}

    def step_rule(self, adapted: Mapping[str, str]) -> LearnedRule | None:
        """The learned rule of the inner steps; None if the rule learns nothing or is unknown.

        Args:
            adapted: names of the adapted parameters, from their name in λ to their name in the model.

        Raises:
            UncoveredParameterError: the steps do not have the form that the rule needs, or what they learn is missing
                from the learner's state_dict.
        """
        return None

    @classmethod
    def step(cls, lr: Any) -> tuple[float, str]:
        """Learning rate and rule of an inner step that was taken with ``lr``; NaN if no number describes it."""
        return math.nan, cls.rule

    def steps_like(self, original: nn.Module | None) -> bool:
        """True if this clone takes its steps with the settings of the learner that it was cloned from, if known."""
        return True

    def settings(self) -> dict[str, Any]:
        """Settings that are saved with a study: class, rule, settings of the steps, names of frozen own parameters."""
        lr = getattr(self.learner, "lr", None)
        return {
            "learner": type(self.learner).__name__,
            "rule": self.rule,
            "lr": float(lr) if isinstance(lr, (int, float)) else None,
            "first_order": bool(getattr(self.learner, "first_order", False)),
            "fixed": [name for name, p in self.learner.named_parameters() if not (p.requires_grad or _is_model(name))],
        }

    @classmethod
    def rebuilt(cls, model: nn.Module, own: Mapping[str, Tensor], about: Mapping[str, Any]) -> nn.Module:
        """A learner around a model that has its saved weights already.

        Args:
            model: the model.
            own: the saved parameters beside the model's, named as in the learner's state_dict.
            about: what `settings` gave when the study was saved.
        """
        from learn2learn.algorithms import MAML

        return MAML(model, lr=about["lr"] or 0.0, first_order=about["first_order"])

    def _require_root(self) -> None:
        if not isinstance(self.learner, self.root):
            name = self.root.__name__
            raise UncoveredParameterError(
                f"the loop was trained with the inner steps of {name}, but the study was loaded into a "
                f"{type(self.learner).__name__}, which lacks what {name} learned about its steps. Load the study into "
                f"a learner made as in the training script: Study.load(path, {name}(model, ...))"
            )

    def _require_apart(self, names: Iterable[str]) -> None:
        """The rule's parameters must not belong to the model, or share a name with a parameter of it."""
        known = dict(self.learner.module.named_parameters())
        shared = [name for name in names if _is_model(name) or name in known]
        if shared:
            raise UncoveredParameterError(
                f"the parameters {', '.join(shared)} of the inner rule are also parameters of the model, or have the "
                "same name as one, so their influences cannot be told apart. Give the rule parameters of its own, with "
                "names of their own"
            )


class UnknownAdapter(LearnerAdapter):
    """Describes a user's learner that derives from no class of learn2learn: its inner steps are unknown."""

    rule = OTHER


def model_of(learner: nn.Module) -> nn.Module:
    """The model inside a learner, without a wrapper that spreads it over devices or processes."""
    model = learner._modules["module"]
    assert model is not None
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def names_of(learner: nn.Module) -> dict[int, str]:
    """The name of each parameter in the learner's state_dict, by id; the first name of a shared one."""
    return {id(parameter): name for name, parameter in learner.named_parameters()}


def copies(parameters: Mapping[str, Tensor], trained: bool) -> dict[str, Tensor]:
    """Copies of the parameters that are trained, or of those that are not."""
    return {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad is trained}


def _is_model(name: str) -> bool:
    return name.startswith(OWN)
