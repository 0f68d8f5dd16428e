"""Checks of scores: how much of them is error of the solver, and how much is noise of the sketch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from torch import Tensor

from ...analysis.estimators import FittedEstimator, ImplicitFit
from ...analysis.items import Items, Tasks
from ...analysis.passes import Targets
from ...bilevel import Sketch, Subsample
from ..metrics import Floats, spearman
from .verdicts import Check, graded

WITHIN = 0.95
"""The default Hessian was chosen because its LDS is within .05 of what it samples (Table 6 of "Which estimator")."""

NO_GAIN = 0.83
"""Below this, noise costs more than curvature gives: of r on single tasks, products of gradients reach .94, .83 and .90
times what Gauss–Newton does (`identity` and `gauss-newton` in Table 2 of "Which estimator")."""


@dataclass(frozen=True)
class Answers:
    """Scores of items on the mean of some test tasks.

    Attributes:
        fit: the estimator that scores.
        items: that are scored.
        targets: the mean of the test tasks.
    """

    fit: FittedEstimator[Any]
    items: Items
    targets: Targets

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of the mean test loss, ``[1, P]``."""
        return self.targets.at(self.fit.run).gradients()[0]

    @cached_property
    def values(self) -> Floats:
        """Scores of the items, ``(n,)``."""
        return self._scores(self.items)

    @cached_property
    def tasks(self) -> Floats:
        """Scores of whole tasks, whatever the items."""
        return self.values if isinstance(self.items, Tasks) else self._scores(Tasks())

    def along(self, fit: ImplicitFit[Any], gradient: Tensor) -> Floats:
        """Scores by another implicit estimator, on a target with this gradient, ``[1, P]``."""
        vectors, _ = fit.directions_for(self.items, gradient)
        return _floats(self.items.scores(fit.run, fit.walked(self.items, vectors).scores))

    def _scores(self, items: Items) -> Floats:
        return _floats(items.scores(self.fit.run, self.fit.scores(items, self.targets).scores))


def _floats(scores: Tensor) -> Floats:
    return cast(Floats, scores[:, 0].numpy())


def solver(answers: Answers, fit: ImplicitFit[Any]) -> Check:
    """How much scores would change if the outer system were also solved for the residual r = g − (δ_o I + H) x:
    −⟨(δ_o I + H)⁻¹ r, g_item⟩. An error of ρ times the scores' spread leaves a correlation of 1/√(1 + ρ²)."""
    system, gradient = fit.system, answers.gradient
    x = system.solve(gradient).value
    left = gradient - system.hessian.operator.matvec(x) - system.shift * x
    error, spread = answers.along(fit, left).std(), answers.values.std()
    ratio = float(error / spread) if spread > 0 else float("nan")
    found = f"scores have a spread of {spread:.2g}; the error of the solver has {error:.1g} ({ratio:.1g} of it)"
    bounds = [(1 / r**2 - 1) ** 0.5 for r in (WITHIN, NO_GAIN)]
    return Check("solver", graded(ratio, *bounds), ratio, found, "a lower tolerance")


def sampling(answers: Answers, fit: ImplicitFit[Any]) -> Check | None:
    """Agreement of two samples of the Hessian, as the rank correlation ρ of their scores: each agrees with what they
    sample to about √ρ (correction for attenuation). None if nothing is sampled."""
    drawn = fit.system.hessian.curvature
    if not isinstance(drawn, (Sketch, Subsample)):
        return None
    other = fit.system.with_hessian(replace(drawn, seed=drawn.seed + 1))
    agreed = spearman(answers.values, answers.along(ImplicitFit(fit.estimator, fit.run, other), answers.gradient))
    limit = max(agreed, 0.0) ** 0.5
    found = (
        f"scores by two samples of the Hessian agree to ρ = {agreed:.2f}, so one is worth √{agreed:.2f} = {limit:.2f}"
    )
    advice = "more samples (Sketch(samples=64)), a tenfold damping, or hessian='gauss-newton'"
    return Check("sampling", graded(-limit, -WITHIN, -NO_GAIN), agreed, found, advice)
