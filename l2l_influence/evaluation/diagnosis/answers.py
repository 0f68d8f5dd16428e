"""What can be seen of scores: how much of them is the solver's error, and how much the sketch's luck."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from ...analysis.estimators.outer import Outer
from ...analysis.estimators.scoring import mean_test_gradient, score
from ...bilevel import Sketch, Subsample
from ...bilevel.item_gradients import ItemGradient, TaskGradient
from ...bilevel.solved_tasks import SolvedTasks
from ..metrics import Floats, spearman
from .verdicts import Check, graded

WITHIN = 0.95
"""The default Hessian was taken because its LDS is within .05 of what it samples (Table 6 of "Which estimator")."""

NO_GAIN = 0.83
"""Below this, noise takes more than curvature gives: of r on single tasks, products of gradients reach .94, .83 and .90
times what Gauss–Newton does (`identity` and `gauss-newton` in Table 2 of "Which estimator")."""


@dataclass(frozen=True)
class Answers:
    """Scores of a level's items on the mean of some test tasks."""

    outer: Outer
    level: ItemGradient
    test: SolvedTasks

    @cached_property
    def gradient(self) -> Tensor:
        """Of the mean test loss, ``[1, P]``."""
        return mean_test_gradient(self.test, exact=True)[0]

    @cached_property
    def values(self) -> Floats:
        """``(n,)``, as :meth:`~l2l_influence.TaskInfluence.scores` has them."""
        return self.of(self.outer, self.level)

    @cached_property
    def tasks(self) -> Floats:
        """Scores of whole tasks, whatever the level."""
        return self.values if isinstance(self.level, TaskGradient) else self.of(self.outer, TaskGradient())

    def of(self, outer: Outer, level: ItemGradient, rows: Tensor | None = None) -> Floats:
        """Scores by an outer system of one's own, on the test gradient unless another row is given."""
        found = score(outer, level, self.gradient if rows is None else rows)
        return cast(Floats, torch.cat(found.scores)[:, 0].numpy())


def solver(answers: Answers) -> Check:
    """How much scores would change if the outer system were solved for what is left, r = g − (δ_o I + H) x, as well:
    −⟨(δ_o I + H)⁻¹ r, pull⟩. An error of ρ times the scores' spread leaves a correlation of 1/√(1 + ρ²)."""
    outer, gradient = answers.outer, answers.gradient
    x = outer.solve(gradient)
    shift = outer.study.problem.l2 + outer.damping
    left = gradient - outer.hessian.operator.matvec(x) - shift * x
    error, spread = answers.of(outer, answers.level, left).std(), answers.values.std()
    ratio = float(error / spread) if spread > 0 else float("nan")
    found = f"scores spread by {spread:.2g}, and what the solve left spreads by {error:.1g} ({ratio:.1g} of it)"
    bounds = [(1 / r**2 - 1) ** 0.5 for r in (WITHIN, NO_GAIN)]
    return Check("solver", graded(ratio, *bounds), ratio, found, "a lower tolerance")


def sampling(answers: Answers) -> Check | None:
    """Two draws of the sampled Hessian, by rank correlation ρ of their scores: each knows the truth of what they sample
    to about √ρ (correction for attenuation). None where nothing is drawn."""
    drawn = answers.outer.hessian.curvature
    if not isinstance(drawn, (Sketch, Subsample)):
        return None
    other = answers.outer.with_hessian(replace(drawn, seed=drawn.seed + 1))
    agreed = spearman(answers.values, answers.of(other, answers.level))
    limit = max(agreed, 0.0) ** 0.5
    found = f"two draws of the Hessian agree to {agreed:.2f} in rank, so that one is worth √{agreed:.2f} = {limit:.2f}"
    advice = "more draws (Sketch(samples=64)), a tenfold damping, or hessian='gauss-newton'"
    return Check("sampling", graded(-limit, -WITHIN, -NO_GAIN), agreed, found, advice)
