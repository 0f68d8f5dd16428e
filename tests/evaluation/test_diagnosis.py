"""What a diagnosis finds, against dense algebra and true re-optimisation; and what it makes of it."""

from __future__ import annotations

import math
import random
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import nn
from torch.nn.utils import vector_to_parameters

from l2l_influence import MAML, QueryInfluence, SupportInfluence, TaskDataset, TaskInfluence
from l2l_influence.bilevel import CG, Sketch
from l2l_influence.evaluation import Check, ContinuedOptimisation, Diagnosis, Outcome
from l2l_influence.evaluation.diagnosis.spot_check import fisher_interval
from l2l_influence.evaluation.diagnosis.verdicts import SPOT_CHECK, graded

from ..influence.retraining import Run, optimal_run
from ..reference_problems.learn2learn import (
    ListedTasks,
    classification_batches,
    everything,
    pairs,
    regression_batches,
    train,
)

HOOKS = [TaskInfluence, QueryInfluence, SupportInfluence]


@pytest.fixture(scope="module")
def run() -> Run:
    return optimal_run("unrolled")


def keys(run: Run) -> list[int]:
    """The key of each task, in the order of ids, in which a retraining gets its weights."""
    return sorted(range(len(run.ids)), key=run.ids.__getitem__)


def reoptimised(run: Run, weights: np.ndarray) -> torch.Tensor:
    """λ* with these weights of the tasks, by the reference's own Newton steps. Found once: the run is shared."""
    return _reoptimised(run, tuple(weights))


@cache
def _reoptimised(run: Run, weights: tuple[float, ...]) -> torch.Tensor:
    task = run.reference.weights.task.clone()
    task[keys(run)] *= torch.tensor(weights)
    return run.reference.optimum(run.lam, run.reference.weights._replace(task=task))


def retrain(run: Run, sign: float = 1.0):
    base = run.test.losses(run.lam)

    def again(weights: np.ndarray, seed: int) -> Outcome:
        return Outcome((base + sign * (run.test.losses(reoptimised(run, weights)) - base)).numpy())

    return again


class Elsewhere:
    """The shared run's learner, for a while at another λ."""

    def __init__(self, run: Run, lam: torch.Tensor) -> None:
        self.run, self.lam = run, lam

    def __enter__(self) -> None:
        vector_to_parameters(self.lam, self.run.maml.module.parameters())

    def __exit__(self, *_: object) -> None:
        vector_to_parameters(self.run.lam, self.run.maml.module.parameters())


# ---- a study that can be trusted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_at_a_minimum_everything_is_fine(run, hook):
    found = run.hook(hook, damping=1.0).diagnose(run.test.tasks, retrain=retrain(run))
    assert {check.name: check.verdict for check in found.checks} == dict.fromkeys(
        ("coverage", "stationarity", "inner", "curvature", "damping", "solver", SPOT_CHECK), "fine"
    )
    assert found.verdict == "fine" and str(found).startswith("Fine: ")
    assert all(f"{check.name}: {check.found}" in str(found) for check in found.checks)
    assert "→" not in str(found)  # there is nothing to do


def test_without_test_tasks_scores_are_not_looked_at(run):
    found = run.hook(TaskInfluence, damping=1.0).diagnose()
    assert found.verdict == "not checked" and math.isnan(found["solver"].figure)
    assert {check.name for check in found.checks if check.verdict == "not checked"} == {
        "solver",
        "sampling",
        SPOT_CHECK,
    }
    with pytest.raises(ValueError, match="pass test_tasks="):
        run.hook(TaskInfluence).diagnose(retrain=retrain(run))


# ---- the point, and the curvature there ---------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_an_untrained_learner_is_not_trusted(hook):
    maml, tasks = train(nn.Linear(3, 1, dtype=torch.float64), regression_batches(6, seed=0), nn.MSELoss())
    influence = hook(maml, tasks, nn.MSELoss(), damping=0.0)
    found = influence.diagnose()
    assert found["stationarity"].figure == influence.stationarity().tasks > 6**0.5
    assert found["stationarity"].verdict == found.verdict == "do not trust" and "train closer" in str(found)
    # A linear model under squares is convex wherever it stands.
    assert found["curvature"].verdict == "fine"


@pytest.mark.parametrize("inner", ["unrolled", "proximal"])
def test_curvature_is_the_smallest_eigenvalue(inner):
    run = optimal_run(inner)
    smallest = float(torch.linalg.eigvalsh(run.hessian)[0])
    check = run.hook(TaskInfluence, hessian="sketch").diagnose()["curvature"]
    assert check.figure == pytest.approx(smallest, rel=1e-3) and check.verdict == "fine"


def test_negative_curvature_is_held_against_the_damping(run):
    saddle = 1.5 * torch.randn(14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smallest = float(torch.linalg.eigvalsh(run.reference.hessian(saddle))[0])
    assert smallest < -0.1
    with Elsewhere(run, saddle):
        for damping, verdict in ((-0.5 * smallest, "do not trust"), (-1.5 * smallest, "read with care")):
            check = run.hook(TaskInfluence, hessian="sketch", damping=damping).diagnose()["curvature"]
            assert check.figure == pytest.approx(smallest, rel=1e-3) and check.verdict == verdict
            assert "no minimum" in str(check)


def test_effective_rank_is_a_trace(run):
    """tr H (H + dI)⁻¹ of the hook's own sketch, by dense algebra."""
    hook = run.hook(TaskInfluence, hessian="sketch", damping=0.5)
    matrix = hook.fitted().system.hessian.operator.dense(run.lam.unsqueeze(0))[0]
    rank = float((matrix @ torch.linalg.inv(matrix + 0.8 * torch.eye(14))).trace())
    check = hook.diagnose()["damping"]
    assert check.figure == pytest.approx(rank, rel=1e-6) and check.verdict == (
        "fine" if rank <= 2.5 else "read with care"
    )
    assert f"{rank / 5:.2g} for each of 5 items" in check.found
    flat = run.hook(TaskInfluence, hessian="sketch", damping=1e6).diagnose()["damping"]
    assert flat.figure < 1 and flat.verdict == "read with care" and "less damping" in str(flat)


def test_inner_residuals_are_held_against_the_users_own_tolerances():
    run = optimal_run("proximal")
    options = {"hessian": "sketch", "inner_tolerance": 0.9}
    for tolerance, verdict in ((0.99, "fine"), (1e-12, "read with care")):
        check = run.hook(TaskInfluence, **options, tolerance=tolerance).diagnose()["inner"]
        assert 1e-12 < check.figure < 0.9 and check.verdict == verdict


# ---- the recording --------------------------------------------------------------------------------------------------


def test_what_a_hook_leaves_out_is_told():
    loss, batches = nn.MSELoss(), regression_batches(4, seed=0)
    maml, tasks = train(nn.Linear(3, 1, dtype=torch.float64), batches, loss)
    other = TaskDataset(ListedTasks(regression_batches(2, seed=1)))
    for key in (0, 1):
        x, y = other[key]
        learner = maml.clone()
        learner.adapt(loss(learner(x[::2]), y[::2]))
        loss(learner(x[1::2]), y[1::2]).backward()
    part, whole = (TaskInfluence(maml, chosen, loss).diagnose()["coverage"] for chosen in (tasks, None))
    assert (part.verdict, part.figure) == ("read with care", 4 / 6) and "2 draws of other tasks" in str(part)
    assert (whole.verdict, whole.figure) == ("fine", 1.0)


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_the_solvers_error_is_that_against_dense_algebra(run):
    """Scores by two steps of CG, against those of the dense inverse."""
    loose = run.hook(TaskInfluence, solver=CG(tolerance=0.5), on_unconverged="warn", tolerance=0.5)
    found = loose.scores(run.test.tasks).values
    gradients = [
        run.reference.gradient(run.lam) - run.reference.gradient(run.lam, run.reference.without("task", [key]))
        for key in keys(run)
    ]
    dense = -torch.stack(gradients) @ torch.linalg.solve(run.hessian, run.test_gradient)
    scores = torch.tensor([found[id_] for id_ in range(5)], dtype=torch.float64)
    ratio = float((scores - dense).std() / scores.std())
    check = loose.diagnose(run.test.tasks, spot_checks=0)["solver"]
    assert ratio > 0.05 and check.figure == pytest.approx(ratio, rel=0.5)  # it is itself found by CG, to half
    exact = run.hook(TaskInfluence).diagnose(run.test.tasks, spot_checks=0)["solver"]
    assert exact.figure < 1e-9 and exact.verdict == "fine"


def test_two_draws_tell_the_noise_of_a_sketch(run):
    few, many = (
        run.hook(TaskInfluence, hessian=Sketch(samples=draws), damping=0.0).diagnose(run.test.tasks, spot_checks=0)[
            "sampling"
        ]
        for draws in (1, 100)
    )
    assert many.verdict == "fine" and many.figure > few.figure
    assert few.verdict != "fine" and "more samples" in str(few)
    with pytest.raises(KeyError):
        run.hook(TaskInfluence).diagnose(run.test.tasks, spot_checks=0)["sampling"]  # nothing is drawn


# ---- the spot-check -------------------------------------------------------------------------------------------------


def test_a_spot_check_is_a_correlation_with_retraining(run):
    hook = run.hook(TaskInfluence)
    scores = hook.scores(run.test.tasks).values
    removals = 1 - np.eye(5)
    true = [float((run.test.losses(reoptimised(run, w)) - run.test.losses(run.lam)).mean()) for w in removals]
    r = pearsonr([-scores[id_] for id_ in range(5)], true)
    check = hook.diagnose(run.test.tasks, retrain=retrain(run))[SPOT_CHECK]
    low, high = r.confidence_interval(0.95)
    assert check.figure == pytest.approx(r.statistic, rel=1e-6)
    assert low < 0 < r.statistic and check.verdict == "read with care"  # five are too few to be sure
    assert f"(95 % interval {low:.2f} to {high:.2f})" in check.found and "5 tasks removed one by one" in check.found


def test_what_goes_the_other_way_is_not_trusted(run):
    found = run.hook(TaskInfluence, damping=1.0).diagnose(run.test.tasks, retrain=retrain(run, sign=-1.0))
    assert found[SPOT_CHECK].verdict == found.verdict == "do not trust"


def test_continued_optimisation_goes_to_the_minimum_without_the_task(run):
    hook = run.hook(TaskInfluence)
    at_lam = hook.run_at()
    test = at_lam.test_tasks(run.test.tasks)
    largest = float(torch.linalg.eigvalsh(run.hessian)[-1])
    weights = np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    long = ContinuedOptimisation(at_lam, test, largest, steps=150)
    outcome, expected = long(weights, 0), reoptimised(run, weights)
    assert np.abs(outcome.parameters - expected.numpy()).max() < 1e-6
    assert np.abs(outcome.losses - run.test.losses(expected).numpy()).max() < 1e-6
    assert long.left[0] < 1e-6


@pytest.mark.parametrize("hook", HOOKS)
def test_without_a_retraining_it_continues_optimisation_and_says_so(run, hook):
    check = run.hook(hook, damping=0.5).diagnose(run.test.tasks)[SPOT_CHECK]
    assert check.verdict == "fine" and "continued optimisation of L_Total (20 full-batch gradient steps" in check.found


def test_too_few_removals_say_nothing(run):
    check = run.hook(TaskInfluence).diagnose(run.test.tasks, spot_checks=3)[SPOT_CHECK]
    assert check.verdict == "not checked"


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_figures_are_graded_and_what_is_no_number_is_not_trusted():
    assert [graded(figure, 1, 2) for figure in (1, 1.5, 2, 2.1, math.nan)] == [
        "fine", "read with care", "read with care", "do not trust", "do not trust",
    ]  # fmt: skip


def test_the_interval_is_fishers():
    """tanh(artanh .9 ± 1.96/√5), by a table."""
    assert fisher_interval(0.9, 8) == pytest.approx((0.9, 0.534, 0.981), abs=1e-3)


def test_the_worst_counts_unless_a_spot_check_has_seen_better():
    bad, fine, seen = (
        Check("a", "do not trust", 1.0, ""),
        Check("b", "fine", 1.0, ""),
        Check(SPOT_CHECK, "fine", 1.0, ""),
    )
    assert Diagnosis((bad, fine)).verdict == "do not trust"
    assert Diagnosis((bad, seen)).verdict == "read with care"
    assert Diagnosis((fine, seen)).verdict == "fine"


# ---- the user's things ----------------------------------------------------------------------------------------------


def test_nothing_of_the_users_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    batches = [(x.double(), y) for x, y in classification_batches(5, 0)]
    maml, tasks = train(model, batches, nn.CrossEntropyLoss(), optimizer_lr=0.1)
    assert isinstance(maml, MAML)
    model[0].weight.grad = torch.full((5, 4), 7.0, dtype=torch.float64)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    before, threads = everything(maml), torch.get_num_threads()
    TaskInfluence(maml, tasks, nn.CrossEntropyLoss()).diagnose(pairs(batches[:2]), spot_checks=4)
    assert everything(maml) == before and torch.get_num_threads() == threads
