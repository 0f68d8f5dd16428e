"""What results say of how far they can be trusted: stationarity, inner and outer solves, damping."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from l2l_influence import QueryInfluence, SupportInfluence, TaskInfluence, TotalGradient, TotalHessian

from ..reference_problems.learn2learn import classification_batches, pairs, regression_batches, train
from .retraining import L2, ORDER, STEPS, Retraining, Run, optimal_run, relative

ALL = [TaskInfluence, QueryInfluence, SupportInfluence, TotalGradient, TotalHessian]
SCORING = [TaskInfluence, QueryInfluence, SupportInfluence]


@pytest.fixture(scope="module", params=["unrolled", "proximal"])
def run(request) -> Run:
    return optimal_run(request.param)


def notes(scores, start: str) -> str:
    """The one note that starts so."""
    (note,) = [note for note in scores.notes if note.startswith(start)]
    return note


# ---- stationarity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ALL)
def test_a_reoptimised_learner_is_stationary_and_hooks_say_so(run, hook):
    found = run.hook(hook).stationarity()
    assert found.relative < 1e-6 and found.tasks < 1e-6 and found.trusted
    assert "stationary enough for removals to be trusted" in str(found) and "NOT" not in str(found)


@pytest.mark.parametrize("hook", ALL)
def test_an_untrained_learner_is_not_and_hooks_say_what_to_do(hook):
    maml, tasks = train(nn.Linear(3, 1, dtype=torch.float64), regression_batches(6, seed=0), nn.MSELoss())
    found = hook(maml, tasks, nn.MSELoss()).stationarity()
    assert found.relative > 0.1 and found.tasks > 1 and not found.trusted
    for words in ("NOT stationary", "train closer to a minimum", "correct_residual=True", f"{found.tasks:.2g} of them"):
        assert words in str(found)


def test_its_numbers_are_the_gradient_and_its_terms(run):
    """Σ_i c_i g_i + δ_o λ, beside Σ_i ‖c_i g_i‖ + ‖δ_o λ‖, and in units of the average ‖c_i g_i‖."""
    reference, lam = run.reference, run.lam + 0.2
    everything = reference.gradient(lam)
    norms = [
        (everything - reference.gradient(lam, reference.without("task", [key]))).norm()
        for key in range(len(reference.tasks))
    ]
    vector_to_parameters(lam, run.maml.module.parameters())
    found = run.hook(TotalGradient).stationarity()
    scored = run.hook(TaskInfluence, hessian="gauss-newton").scores(run.test.tasks)
    vector_to_parameters(run.lam, run.maml.module.parameters())
    assert relative(found.gradient, everything) < 1e-8
    assert found.terms == pytest.approx(float(sum(norms) + L2 * lam.norm()), rel=1e-8)
    assert found.relative == pytest.approx(float(everything.norm() / (sum(norms) + L2 * lam.norm())), rel=1e-8)
    assert found.tasks == pytest.approx(float(everything.norm() / (sum(norms) / 5)), rel=1e-8)
    # A scoring pass leaves the same behind.
    assert notes(scored, "λ*") == f"λ*: {found}"


@pytest.mark.parametrize("hook", SCORING)
def test_scores_say_how_stationary_the_learner_is(run, hook):
    study = run.hook(hook, hessian="sketch")
    for scores in (study.scores(run.test.tasks), study.self_influence()):
        assert "stationary enough for removals to be trusted" in notes(scores, "λ*")


# ---- the inner problem ------------------------------------------------------------------------------------------


def test_the_loops_own_steps_are_named():
    run = optimal_run("unrolled")
    scores = run.hook(TaskInfluence).scores(run.test.tasks)
    assert notes(scores, "inner") == "inner: the loop's own gradient steps"
    batches = classification_batches(3, 0)
    maml, tasks = train(nn.Linear(4, 3), batches, nn.CrossEntropyLoss(), first_order=True)
    first_order = TaskInfluence(maml, tasks, nn.CrossEntropyLoss()).scores(pairs(batches))
    assert (
        notes(first_order, "inner") == "inner: the loop's own gradient steps (first-order: dθ/dλ = I, as in the loop)"
    )


@pytest.mark.parametrize("hook", SCORING)
def test_the_proximal_problem_is_described(hook):
    """δ and where it comes from, how well it was solved, and by what it is inverted."""
    run = optimal_run("proximal")
    inner = notes(run.hook(hook, hessian="sketch").scores(run.test.tasks), "inner:")
    assert "proximal, δ = 5 (auto: 1/(lr·K), for a mean loss)" in inner
    assert float(re.search(r"residual (\S+)$", inner)[1]) < 1e-12
    given = run.hook(hook, hessian="sketch", proximal=4.0, inner_tolerance=0.5).scores(run.test.tasks)
    assert "δ = 4;" in notes(given, "inner:") and "auto" not in notes(given, "inner:")
    assert 1e-12 < float(re.search(r"residual (\S+)$", notes(given, "inner:"))[1]) < 0.5


def test_a_sum_of_losses_has_its_own_strength():
    batches = regression_batches(4, seed=0)
    maml, tasks = train(nn.Linear(3, 1, dtype=torch.float64), batches, nn.MSELoss(reduction="sum"), lr=0.05, steps=2)
    hook = TaskInfluence(maml, tasks, nn.MSELoss(reduction="sum"), inner="proximal")
    assert "δ = 40 (auto: n/(lr·K), for a sum)" in notes(hook.scores(pairs(batches)), "inner:")


def test_the_inner_inverse_is_named_and_held_against_all_of_the_hessian():
    run = optimal_run("proximal")

    def note(**options) -> str:
        return notes(run.hook(TaskInfluence, **options).scores(run.test.tasks), "inner inverse:")

    approximate = note(hessian="sketch", inner_solver="auto")
    assert "gram" in approximate and "median of 5 tasks" in approximate
    missed = float(re.search(r"relative residual (\S+), cosine", approximate)[1])
    assert 1e-3 < missed < 1  # the network's own curvature is left out
    for solver in ("cg", "dense"):
        assert note(hessian="sketch", inner_solver=solver) == f"inner inverse: {solver}"
    assert note(hessian="exact", inner_solver="auto") == "inner inverse: cg"  # which leaves nothing out


def test_the_distance_between_the_two_inner_kinds_is_told():
    """‖θ_proximal − θ_K‖ / ‖θ_K − λ‖, both from λ*, of the median task."""
    run = optimal_run("proximal")
    unrolled = Retraining(run.reference.model, run.reference.tasks, run.reference.loss, "unrolled")
    ends, minima = (problem.theta(run.lam, problem.weights) for problem in (unrolled, run.reference))
    expected = ((minima - ends).norm(dim=1) / (ends - run.lam).norm(dim=1)).median()
    note = notes(run.hook(TaskInfluence, hessian="sketch").scores(run.test.tasks), "θ:")
    assert f"the loop's {STEPS} steps lie {float(expected):.0%} of the adaptation's length apart" in note
    assert expected > 0.02
    assert not [text for text in run.hook(TaskInfluence).scores(run.test.tasks).notes if "nan" in text]


def test_loops_of_many_kinds_have_no_such_distance():
    """The proximal problem does not need to know the loop's steps."""
    batches = regression_batches(2, seed=0)
    maml, tasks = train(nn.Linear(3, 1, dtype=torch.float64), batches, nn.MSELoss())
    x, y = tasks[0]
    learner = maml.clone()
    for _ in range(3):
        learner.adapt(nn.functional.mse_loss(learner(x[::2]), y[::2]))
    nn.functional.mse_loss(learner(x[1::2]), y[1::2]).backward()
    scores = TaskInfluence(maml, tasks, nn.MSELoss(), inner="proximal", proximal=2.0).scores(pairs(batches))
    assert not [note for note in scores.notes if note.startswith("θ:")]


# ---- the outer system -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", SCORING)
def test_the_outer_system_is_described(run, hook):
    """What was solved, with its damping, how well, and on how many test tasks."""
    scores = run.hook(hook, hessian="gauss-newton", damping=0.25).scores(run.test.tasks)
    outer = notes(scores, "outer:")
    assert outer.startswith(
        "outer: gauss-newton Hessian, l2 0.3 + damping 0.25; preconditioned block cg: converged in "
    )
    assert float(re.search(r"relative residual (\S+) ", outer)[1]) <= 1e-12
    assert notes(scores, "test tasks") == "test tasks: 3"
    sketched = notes(run.hook(hook, hessian="sketch", damping="auto").scores(run.test.tasks), "outer:")
    assert "sketch (16 samples of all 5 tasks)" in sketched
    assert float(re.search(r"damping (\S+);", sketched)[1]) > 0


@pytest.mark.parametrize("hook", SCORING)
def test_what_was_recorded_is_told(run, hook):
    scores = run.hook(hook, hessian="sketch").scores(run.test.tasks)
    assert f"5 tasks in {len(ORDER)} draws" in notes(scores, "recording")
    assert all(note in str(scores) for note in scores.notes)
