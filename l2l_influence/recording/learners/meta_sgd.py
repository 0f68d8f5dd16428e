"""MetaSGD: gradient steps with one learned rate for each parameter entry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from learn2learn.algorithms import MetaSGD
from torch import Tensor, nn

from ...bilevel.inner import LearnedRates
from ...errors import UncoveredParameterError
from .base import LearnedRule, LearnerAdapter, copies, names_of


class MetaSGDAdapter(LearnerAdapter):
    """learn2learn's ``MetaSGD``: θ ← θ − rates ∘ gradient. The rates are meta-parameters beside the model's."""

    rule = "meta-sgd"
    root = MetaSGD

    def step_rule(self, adapted: Mapping[str, str]) -> LearnedRule:
        """The learned rates; ``lrs`` holds them in the order of the model's parameters."""
        self._require_root()
        own = self._names_in_model()
        named, lrs = names_of(self.learner), self.learner.lrs
        rates = {name: named[id(lrs[own.index(inside)])] for name, inside in adapted.items()}
        by_name = {named[id(rate)]: rate for rate in lrs}
        trained = copies(by_name, trained=True)
        self._require_apart(trained)
        return LearnedRule(LearnedRates(rates, copies(by_name, trained=False)), trained)

    @classmethod
    def rebuilt(cls, model: nn.Module, own: Mapping[str, Tensor], about: Mapping[str, Any]) -> nn.Module:
        """A MetaSGD with the saved rates."""
        return MetaSGD(model, first_order=about["first_order"], lrs=_rates(own, about["fixed"]))

    def _names_in_model(self) -> list[str]:
        model, lrs = self.learner.module, self.learner.lrs
        own = [name for name, _ in model.named_parameters()]
        if len(own) < len(list(model.named_parameters(remove_duplicate=False))):
            raise UncoveredParameterError(
                "the model registers a parameter (or a module) twice, as learn2learn's OmniglotCNN does. MetaSGD's "
                "adapt() updates only the first registration, so a part of the model was not adapted. Use a model "
                "without shared parameters"
            )
        if not isinstance(lrs, nn.ParameterList) or len(lrs) != len(own):
            raise UncoveredParameterError(
                "MetaSGD's lrs= must be an nn.ParameterList with one entry for each parameter of the model: rates in a "
                "plain list are missing from the state_dict, and parameters without a rate are not adapted"
            )
        return own


def _rates(saved: Mapping[str, Tensor], fixed: Collection[str]) -> nn.ParameterList:
    names = [f"lrs.{number}" for number in range(sum(name.startswith("lrs.") for name in saved))]
    return nn.ParameterList([nn.Parameter(saved[name], requires_grad=name not in fixed) for name in names])
