"""Spot check: retrain without a few tasks, and compare predicted with actual changes of the mean test loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from ...analysis.estimators import Implicit, ImplicitFit
from ...analysis.estimators.implicit import OuterSystem
from ...analysis.run import RunAt
from ...bilevel.solved_tasks import SolvedTasks
from ...bilevel.stationarity import Stationarity
from ...errors import RetrainingError
from ...storage.outcomes import Outcome
from ..ground_truth.removals import leave_one_out
from ..ground_truth.retraining import Retrain
from ..ground_truth.truth import measure
from ..intervals import Interval
from ..metrics import Floats, pearson, slope
from .answers import Answers
from .checks import largest_curvature
from .verdicts import SPOT_CHECK, Check, Verdict, unknown

FEWEST = 4
"""Least number of removals: the interval of a correlation has width √(1/(k − 3)) on Fisher's scale."""

STEPS = 20
"""Default number of steps of each optimisation. T accelerated steps of 1/σ_max hardly move λ in directions with less
curvature than about 4 σ_max/T²: for 20 that is σ_max/100, the default damping of hooks."""

GRADIENTS = 0.53
"""Correlation of products of gradients with retraining on the hardest problem (r of `identity`, ANIL, in Table 2 of
"Which estimator")."""


@dataclass(frozen=True)
class ContinuedOptimisation:
    """Continued optimisation of L_Total, as a :data:`~l2l_influence.evaluation.Retrain`: accelerated gradient steps
    (Nesterov's) from λ*, on all tasks at once, on a private copy.

    The steps are the same with and without a task, so the results differ by the task and by nothing else, even if λ* is
    not stationary; an optimiser that adapts its steps, such as L-BFGS, would take other paths. It uses no Hessian
    except for the size of its steps, and ignores the loop's own optimiser and noise.

    Attributes:
        run: the training tasks, at λ*.
        test: the test tasks.
        largest: σ_max, the largest curvature of L_Total; a step has length 1/σ_max.
        steps: how many, each a pass over the tasks.
        left: ‖D_λ L_Total‖ at the last step of each optimisation so far.
    """

    run: RunAt
    test: SolvedTasks
    largest: float
    steps: int = STEPS
    left: list[float] = field(default_factory=list, repr=False)

    def __call__(self, weights: Floats, seed: int) -> Outcome:
        """Weights multiply the recorded c_i; nothing here depends on the seed."""
        kept = (np.asarray(self.run.solved_tasks.weights) * weights).tolist()
        before = lam = self.run.solved_tasks.lam.double()
        slope_now = torch.zeros_like(lam)
        for step in range(self.steps):
            ahead = lam + step / (step + 3) * (lam - before)
            slope_now = self._gradient(ahead, kept)
            before, lam = lam, ahead - slope_now / self.largest
        self.left.append(float(slope_now.norm()))
        return Outcome(self._test_losses(lam), lam.cpu().numpy())

    def _gradient(self, lam: Tensor, weights: list[float]) -> Tensor:
        """D_λ L_Total, ``[P]``, float64."""
        total = torch.zeros_like(lam)
        for solved in self._moved(self.run.solved_tasks, lam, weights).microbatches("continued optimisation"):
            total += solved.weighted_gradient().double().sum(0)
        return self.run.problem.l2 * lam + self.run.problem.ranks.sum(total)

    def _test_losses(self, lam: Tensor) -> Floats:
        losses = torch.zeros(len(self.test.tasks), dtype=torch.float64)
        for solved in self._moved(self.test, lam, self.test.weights).microbatches("test tasks"):
            losses[solved.batch.index] = solved.outer_loss().double().cpu()
        return self.run.problem.ranks.sum(losses).numpy()

    def _moved(self, solved_tasks: SolvedTasks, lam: Tensor, weights: list[float]) -> SolvedTasks:
        return SolvedTasks(solved_tasks.settings, lam.to(solved_tasks.lam), solved_tasks.tasks, weights)


def spot_check(answers: Answers, stationarity: Stationarity, retrain: Retrain | None, count: int, seed: int) -> Check:
    """Pearson's r of predicted with actual changes of the mean test loss, and its 95 % interval by Fisher's z."""
    run = answers.fit.run
    tasks = len(run.recorded)
    if min(count, tasks) < FEWEST:
        return unknown(SPOT_CHECK, f"{min(count, tasks)} removals are too few for a correlation")
    removals = leave_one_out(tasks, min(count, tasks), seed)
    continued = ContinuedOptimisation(run, answers.targets.at(run).solved(), largest_curvature(_system(answers)))
    try:
        truth = measure(retrain or continued, removals, (seed,), progress=run.problem.progress)
    except RetrainingError as error:
        if retrain is not None:
            raise
        return unknown(SPOT_CHECK, f"continued optimisation of L_Total failed: {str(error).splitlines()[-1]}", _OWN)
    predicted, true = truth.predicted(answers.tasks), truth.mean_change.mean(1)
    r = fisher_interval(pearson(predicted, true), len(removals))
    by = "your retraining" if retrain else continued_words(continued, stationarity)
    found = (
        f"{len(removals)} tasks removed one by one, by {by}: r = {r.value:.2f} (95 % interval {r.low:.2f} to "
        f"{r.high:.2f}) between predicted and actual change of the mean test loss; a predicted change of 1 stands "
        f"for an actual one of {slope(predicted, true):.2g}"
    )
    return Check(SPOT_CHECK, _verdict(r), r.value, found, _MORE if retrain else _OWN)


_OWN = "pass retrain=, which trains as you do, and more spot_checks"
_MORE = "more spot_checks; measure() with several seeds and ceiling() say what the noise of retraining allows"


def _system(answers: Answers) -> OuterSystem:
    """The estimator's own outer system, or a default one for the size of the steps."""
    fit = answers.fit
    return fit.system if isinstance(fit, ImplicitFit) else OuterSystem(fit.run, Implicit(damping=0.0))


def continued_words(continued: ContinuedOptimisation, stationarity: Stationarity) -> str:
    """The optimisation in words, and how far it came."""
    left = float(np.median(continued.left)) / stationarity.task
    return (
        f"continued optimisation of L_Total ({continued.steps} full-batch gradient steps from λ*, with and without; "
        f"the gradient that is left is {left:.2g} times the average task's)"
    )


def fisher_interval(r: float, count: int, level: float = 0.95) -> Interval:
    """The interval of Pearson's r of ``count`` pairs: tanh(artanh r ± z/√(count − 3)); nan where r is."""
    solved = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    reach = norm.ppf((1 + level) / 2) / (count - 3) ** 0.5
    return Interval(r, float(np.tanh(solved - reach)), float(np.tanh(solved + reach)))


def _verdict(r: Interval) -> Verdict:
    """Fine if it is significantly above 0, the value of random scores, and as high as that of products of gradients."""
    if not r.value > 0:
        return "do not trust"
    return "fine" if r.low > 0 and r.value >= GRADIENTS else "read with care"
