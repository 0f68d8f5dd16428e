"""How one inner step moves θ along a gradient, and which entries of λ take part in it.

A new inner rule is a new :class:`StepRule`; :class:`~l2l_influence.bilevel.Unrolled` repeats and differentiates it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.func import vjp

from ...layout import Layout, Named

Step = Callable[[Tensor, Tensor], "tuple[Tensor, Step]"]
"""``(theta, gradient) -> (theta, step)``, of one task: ``[Q]``, ``[Q] -> [Q]``, and the step to take after this one."""


class StepRule(ABC):
    """A rule by which inner steps are taken."""

    @abstractmethod
    def first(self, lam: Named, part: Layout) -> Step:
        """The first step, with the rule's own entries of λ; ``part`` is the layout of θ. Made of torch operations."""


@dataclass(frozen=True)
class PlainSteps(StepRule):
    """θ ← θ − lr g, as MAML's ``adapt`` does. Nothing of it is in λ."""

    lr: float

    def first(self, lam: Named, part: Layout) -> Step:
        def step(theta: Tensor, gradient: Tensor) -> tuple[Tensor, Step]:
            return theta - self.lr * gradient, step

        return step


@dataclass(frozen=True)
class LearnedRates(StepRule):
    """θ ← θ − α ∘ g with rates α that are entries of λ, as MetaSGD's ``adapt`` does.

    Args:
        names: the entry of λ that holds the rates of each of θ's tensors, by the tensor's name. Its shape is the
            tensor's, or broadcasts to it.
        fixed: rates that are in no λ, by the names used there.
    """

    names: Mapping[str, str]
    fixed: Named = field(default_factory=dict, repr=False)

    def first(self, lam: Named, part: Layout) -> Step:
        known = {**self.fixed, **lam}
        rates = part.ravel({key: known[self.names[key]].expand(shape) for key, shape in part.shapes.items()})

        def step(theta: Tensor, gradient: Tensor) -> tuple[Tensor, Step]:
            return theta - rates * gradient, step

        return step


@dataclass(frozen=True)
class LearnedTransforms(StepRule):
    """θ ← θ − lr T_φ(g) with parameters φ that are entries of λ, as GBML's ``adapt`` does.

    Args:
        lr: step size.
        transform: ``transform(parameters, gradient) -> update``, ``[Q] -> [Q]``: T, its parameters φ a dict.
        names: the entry of λ that holds each of them, by what ``transform`` calls it.
        adapted: whether each step but the first is preceded by one of φ, φ ← φ − lr ∂_φ L_I: down the gradient of the
            support loss at θ by the φ that led there in the step before.
    """

    lr: float
    transform: Callable[[Named, Tensor], Tensor] = field(repr=False)
    names: Mapping[str, str]
    adapted: bool = False

    def first(self, lam: Named, part: Layout) -> Step:
        return _Transformed(self, {own: lam[name] for own, name in self.names.items()})


@dataclass(frozen=True)
class _Transformed:
    """A step with the parameters φ; ``before`` is the gradient that the step before was taken along."""

    rule: LearnedTransforms
    parameters: Named
    before: Tensor | None = None

    def __call__(self, theta: Tensor, gradient: Tensor) -> tuple[Tensor, Step]:
        rule, parameters = self.rule, self._adapted(gradient)
        moved = theta - rule.lr * rule.transform(parameters, gradient)
        return moved, replace(self, parameters=parameters, before=gradient)

    def _adapted(self, gradient: Tensor) -> Named:
        """φ for this step. θ is where −lr T_φ(before) led to, which makes ∂_φ L_I = −lr (∂_φ T_φ(before))ᵀ ∂_θ L_I."""
        before, rule = self.before, self.rule
        if before is None or not rule.adapted:
            return self.parameters
        _, pull_back, *_ = vjp(lambda parameters: rule.transform(parameters, before), dict(self.parameters))
        slopes: dict[str, Any] = pull_back(gradient)[0]
        return {name: value + rule.lr**2 * slopes[name] for name, value in self.parameters.items()}
