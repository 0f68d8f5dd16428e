"""Rules of inner steps: how a step moves θ along a gradient, and which entries of λ take part in it.

A new rule is a new :class:`StepRule`; :class:`~l2l_influence.bilevel.Unrolled` repeats it and differentiates through
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.func import vjp

from ...layout import Layout, Named

Step = Callable[[Tensor, Tensor], "tuple[Tensor, Step]"]
"""``(theta, gradient) -> (theta, step)`` for one task: ``[Q]``, ``[Q] -> [Q]``, and the next step."""


class StepRule(ABC):
    """A rule of inner steps."""

    @abstractmethod
    def first(self, lam: Named, part: Layout) -> Step:
        """The first step, with the rule's entries of λ. Must consist of torch operations.

        Args:
            lam: λ by name.
            part: the layout of θ.
        """


@dataclass(frozen=True)
class PlainSteps(StepRule):
    """θ ← θ − lr g, as in MAML's ``adapt``. No entry of λ belongs to it.

    Args:
        lr: the step size, or a sequence with one step size for each step.
    """

    lr: float | Sequence[float]

    def first(self, lam: Named, part: Layout) -> Step:
        return self._step(0)

    def rate(self, k: int) -> float:
        """The size of step k = 0, 1, …"""
        return self.lr[k] if isinstance(self.lr, Sequence) else self.lr

    def _step(self, k: int) -> Step:
        def step(theta: Tensor, gradient: Tensor) -> tuple[Tensor, Step]:
            return theta - self.rate(k) * gradient, self._step(k + 1)

        return step


@dataclass(frozen=True)
class LearnedRates(StepRule):
    """θ ← θ − α ∘ g with rates α that are entries of λ, as in MetaSGD's ``adapt``.

    Args:
        names: for each tensor of θ, the name of the entry of λ that holds its rates, of the same shape or broadcastable
            to it.
        fixed: rates that are not in λ, by the same names.
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
    """θ ← θ − lr T_φ(g) with parameters φ that are entries of λ, as in GBML's ``adapt``.

    Args:
        lr: step size.
        transform: T, ``transform(parameters, gradient) -> update``, ``[Q] -> [Q]``, with its parameters φ as a dict.
        names: for each parameter in that dict, the name of the entry of λ that holds it.
        adapted: whether each step except the first is preceded by a step of φ, φ ← φ − lr ∂_φ L_I, where L_I depends on
            φ through the previous step to θ.
    """

    lr: float
    transform: Callable[[Named, Tensor], Tensor] = field(repr=False)
    names: Mapping[str, str]
    adapted: bool = False

    def first(self, lam: Named, part: Layout) -> Step:
        return _Transformed(self, {parameter: lam[name] for parameter, name in self.names.items()})


@dataclass(frozen=True)
class _Transformed:
    """A step with parameters φ; ``before`` is the gradient of the previous step."""

    rule: LearnedTransforms
    parameters: Named
    before: Tensor | None = None

    def __call__(self, theta: Tensor, gradient: Tensor) -> tuple[Tensor, Step]:
        rule, parameters = self.rule, self._adapted(gradient)
        new = theta - rule.lr * rule.transform(parameters, gradient)
        return new, replace(self, parameters=parameters, before=gradient)

    def _adapted(self, gradient: Tensor) -> Named:
        """φ for this step. Since −lr T_φ(before) led to θ, ∂_φ L_I = −lr (∂_φ T_φ(before))ᵀ ∂_θ L_I."""
        before, rule = self.before, self.rule
        if before is None or not rule.adapted:
            return self.parameters
        _, pull_back, *_ = vjp(lambda parameters: rule.transform(parameters, before), dict(self.parameters))
        slopes: dict[str, Any] = pull_back(gradient)[0]
        return {name: value + rule.lr**2 * slopes[name] for name, value in self.parameters.items()}
