"""What learn2learn's learners learn of their inner steps, as rules of the core's and as meta-parameters.

A learner with a rule of its own is one more function in ``LEARNED``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from learn2learn.algorithms import GBML, MetaSGD
from learn2learn.optim import ParameterUpdate
from torch import Tensor, nn

from ...bilevel.functional import FunctionalModule
from ...bilevel.inner import LearnedRates, LearnedTransforms, StepRule
from ...bilevel.layout import Layout, Named
from ...errors import UncoveredParameterError
from ..episodes.task import Rule


@dataclass(frozen=True)
class LearnedRule:
    """The inner rule of a learner that learns it, on copies of its tensors.

    Attributes:
        steps: the rule.
        parameters: those entries of λ that are the rule's, named as in the learner's state_dict.
        through_steps: whether the loop differentiates through the steps even if it says ``first_order``.
    """

    steps: StepRule
    parameters: Named
    through_steps: bool = False


def learned_rule(learner: nn.Module, rule: Rule, adapted: Mapping[str, str]) -> LearnedRule | None:
    """What ``learner`` has learned of its inner steps; None if they are of a rule that learns nothing, or an unknown.

    Args:
        learner: as it stands; it is left as it is.
        rule: how its steps were taken.
        adapted: θ's names in λ, and in the learner's own module.

    Raises:
        UncoveredParameterError: its steps are not what they seem, or what they learn is in no state_dict.
    """
    if rule not in LEARNED:
        return None
    kind, read = LEARNED[rule]
    if not isinstance(learner, kind):
        raise UncoveredParameterError(
            f"the loop's steps were those of a {kind.__name__}, and what it learned of them is not known here: load "
            f"the study around a learner made as in the script, Study.load(path, {kind.__name__}(model, ...))"
        )
    learned = read(learner, adapted)
    _require_apart(learner, learned.parameters)
    return learned


def _rates(learner: Any, adapted: Mapping[str, str]) -> LearnedRule:
    """MetaSGD: the rates are in the order of the model's parameters."""
    own = [name for name, _ in learner.module.named_parameters()]
    if len(own) < len(list(learner.module.named_parameters(remove_duplicate=False))):
        raise UncoveredParameterError(
            "a parameter (or a module) stands at several places of the model, as in learn2learn's OmniglotCNN, and "
            "MetaSGD's adapt moves it at the first of them alone, so that part of the model was not adapted: use a "
            "model without shared parameters"
        )
    if not isinstance(learner.lrs, nn.ParameterList) or len(learner.lrs) != len(own):
        raise UncoveredParameterError(
            "MetaSGD's lrs= must be an nn.ParameterList with an entry for each parameter of the model: rates in a "
            "plain list are in no state_dict, and parameters without a rate are not adapted"
        )
    named = _names(learner)
    rates = {name: named[id(learner.lrs[own.index(inside)])] for name, inside in adapted.items()}
    trained, fixed = _split({named[id(rate)]: rate for rate in learner.lrs})
    return LearnedRule(LearnedRates(rates, fixed), trained)


def _transforms(learner: Any, adapted: Mapping[str, str]) -> LearnedRule:
    """GBML: one transform, or none, for each of the model's parameters in order."""
    update, own = learner.compute_update, dict(learner.module.named_parameters())
    if type(update) is not ParameterUpdate or len(update.transforms_indices) != len(own):
        raise UncoveredParameterError(
            f"GBML's steps were those of {type(update).__name__}, not of a learn2learn.optim.ParameterUpdate made for "
            "the model's parameters, so they are not known. Pass inner='proximal' and proximal=, a number"
        )
    if isinstance(learner.lr, Tensor) and learner.lr.requires_grad:
        raise UncoveredParameterError("GBML's lr= is learned itself: make it a number, and learn a transform instead")
    indices = dict(zip(own, update.transforms_indices, strict=True))
    transforms = FlatTransforms(
        {name: own[inside] for name, inside in adapted.items()},
        {name: indices[inside] for name, inside in adapted.items()},
        update.transforms_modules,
    )
    copied, named = FunctionalModule(transforms), _names(learner)
    names = {inside: named[id(p)] for inside, p in transforms.named_parameters() if inside in copied.parameters}
    steps = LearnedTransforms(float(learner.lr), copied, names, learner.adapt_transform)
    # ParameterUpdate keeps the gradients' graph wherever the transforms are adapted, whatever first_order says.
    return LearnedRule(steps, {names[inside]: value for inside, value in copied.parameters.items()}, steps.adapted)


class FlatTransforms(nn.Module):
    """The transforms of a learn2learn ``ParameterUpdate`` as one map of θ's flat gradient to its update.

    Args:
        theta: θ, which gives the shapes of the parts.
        indices: which of ``transforms`` each of its tensors has, None for none.
        transforms: of all tensors.
    """

    def __init__(self, theta: Named, indices: Mapping[str, int | None], transforms: nn.ModuleList) -> None:
        super().__init__()
        self.transforms, self._indices, self._layout = transforms, indices, Layout(theta)

    def forward(self, gradient: Tensor) -> Tensor:
        """``[Q] -> [Q]``."""
        parts = self._layout.unravel(gradient)
        return self._layout.ravel({name: self._update(name, part) for name, part in parts.items()})

    def _update(self, name: str, part: Tensor) -> Tensor:
        index = self._indices[name]
        if index is None:
            return part
        update: Tensor = self.transforms[index](part)
        return update


LEARNED: dict[Rule, tuple[type, Callable[[Any, Mapping[str, str]], LearnedRule]]] = {
    "meta-sgd": (MetaSGD, _rates),
    "gbml": (GBML, _transforms),
}
"""By the rule that was recorded: whose it is, and what reads it off a learner."""


def _names(learner: nn.Module) -> dict[int, str]:
    """What the learner's state_dict calls each parameter; the first name of one that is shared."""
    return {id(parameter): name for name, parameter in learner.named_parameters()}


def _split(parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of those that are trained, and of the others."""
    copies = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    return {n: v for n, v in copies.items() if n in trained}, {n: v for n, v in copies.items() if n not in trained}


def _require_apart(learner: nn.Module, names: Iterable[str]) -> None:
    """The rule's parameters must be none of the model's, nor be called like one."""
    model: Any = learner.module
    shared = [name for name in names if name.startswith("module.") or name in dict(model.named_parameters())]
    if shared:
        raise UncoveredParameterError(
            f"the parameters {', '.join(shared)} of the inner rule are (or are called like) parameters of the model, "
            "so that influences on the two cannot be told apart: use parameters, or names, of their own"
        )
