"""The measurement of estimators: its truth, its figures and its tables."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.estimators import run as running
from benchmarks.estimators.fidelity import (
    DAMPINGS,
    ESTIMATORS,
    FIGURES,
    QUESTIONS,
    Estimator,
    Linearised,
    System,
    figures,
    total_hessian,
)
from benchmarks.estimators.inverses import INVERSES
from benchmarks.estimators.retraining import ProximalHead, Retraining, Weights
from benchmarks.estimators.tables import _default_and_best, page_tables
from benchmarks.estimators.truth import Removal, measure
from benchmarks.estimators.worlds import WORLDS, Size, World
from l2l_influence.errors import NegativeCurvatureError

pytestmark = pytest.mark.benchmarks

TINY = Size(tasks=0.15, tests=3, removals=2, halves=2, hidden=0.1, seeds=1)


@pytest.fixture(scope="module", params=["convex", "anil", "maml"])
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param](0, TINY)


@pytest.fixture(scope="module")
def anil() -> World:
    return replace(WORLDS["anil"](0, TINY), l2=0.5)


@pytest.fixture(scope="module")
def at_optimum(anil: World) -> tuple[Retraining, torch.Tensor, torch.Tensor]:
    """How the small ANIL problem is trained, λ*, and the total Hessian with δ_o there."""
    retraining = Retraining(anil)
    found, hessian = retraining.trained()
    return retraining, found.lam, hessian


# ---- the truth ----------------------------------------------------------------------------------------------------


def uneven(world: World) -> Weights:
    """A task and two samples gone, the others weighted unequally."""
    weights = Weights(
        *(part * torch.linspace(0.5, 1.5, part.numel()).view(part.shape) for part in Weights.of(world.train))
    )
    for level, items in (("task", ((0, 0),)), ("query", ((1, 3),)), ("support", ((2, 4),))):
        weights = Removal(level, items).applied(weights)
    return weights


def test_the_gradient_of_the_truth_is_that_of_its_value(world: World) -> None:
    retraining, weights = Retraining(world), uneven(world)
    lam = world.layout.ravel(world.start)
    gradient = retraining.total(lam, weights)[1]
    for e in torch.eye(len(lam), dtype=torch.float64)[:: len(lam) // 7]:
        ends = [retraining.total(lam + sign * 1e-5 * e, weights)[0] for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient @ e), rel=1e-6, abs=1e-8)


def test_the_head_is_solved_and_its_hessian_is_its_gradients_derivative(anil: World) -> None:
    head = ProximalHead(anil.start, anil.train.support_x, anil.train.support_y, uneven(anil).support, 0.5)
    theta = head.minimum()
    assert float(head.slope(theta).norm()) < 1e-12
    everywhere = theta + 0.3
    expected = torch.autograd.functional.jacobian(lambda t: head.slope(t).sum(0), everywhere)  # [Q, N, Q]
    torch.testing.assert_close(head.hessian(everywhere), expected.transpose(0, 1), rtol=1e-10, atol=1e-12)


def test_removal_takes_away_what_it_names() -> None:
    weights = Weights(torch.ones(3), torch.ones(3, 4), torch.ones(3, 4))
    support = Removal("support", ((1, 2), (2, 0))).applied(weights).support
    assert support.tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]]
    assert Removal("task", ((0, 0), (2, 0))).applied(weights).task.tolist() == [0, 1, 0]
    assert all(bool((part == 1).all()) for part in weights)


def test_what_is_measured_is_a_minimum_without_what_was_removed(anil, at_optimum) -> None:
    retraining, lam, hessian = at_optimum
    assert float(retraining.total(lam, Weights.of(anil.train))[1].norm()) < 1e-9
    removal = Removal("task", ((1, 0),))
    truth = measure(retraining, lam, hessian, [removal])
    there, weights = lam + truth.moved[0], removal.applied(Weights.of(anil.train))
    assert float(truth.moved.norm()) > 1e-3
    assert truth.left < 1e-5
    least = retraining.total(there, weights)[0]
    for direction in torch.randn(5, len(lam), generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        assert retraining.total(there + 1e-3 * direction / direction.norm(), weights)[0] > least
    losses = retraining.losses(there, anil.test) - retraining.losses(lam, anil.test)
    torch.testing.assert_close(truth.change[0], losses)


# ---- the estimates ------------------------------------------------------------------------------------------------


def test_matrices_are_decomposed_and_refused_where_they_have_no_minimum() -> None:
    matrix = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)  # eigenvalues 3 and −1
    rows = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    expected = torch.linalg.solve(matrix + 1.5 * torch.eye(2), rows[0])
    torch.testing.assert_close(System(matrix).solve(rows, 1.5)[0], expected)
    with pytest.raises(NegativeCurvatureError):
        System(matrix).solve(rows, 1.0)


@pytest.mark.parametrize("name", ["exact", "sketch, 4 samples", "direct-first-order"])
def test_predictions_are_the_packages_own_removals(anil, at_optimum, name) -> None:
    """One decomposition of a stored matrix answers as the solvers do that never store one."""
    (estimator,) = (each for each in ESTIMATORS if each.name == name)
    lam, linearised = at_optimum[1], Linearised(anil, at_optimum[1])
    problem, named = anil.problem(), anil.layout.unravel(lam)
    hessian = total_hessian(problem.at(named, anil.train.listed()), anil.l2, estimator)
    for question, k, j in (("task", 1, 0), ("query", 2, 7), ("support", 0, 3), ("support, resolved", 0, 3)):
        level, how = QUESTIONS[question]
        moved = anil.layout.ravel(problem.remove(named, hessian.influence(how, k, j), level)) - lam
        found = linearised.predict(estimator, question, [Removal(level, ((k, j),))], 0.0)[0]
        torch.testing.assert_close(found, moved, rtol=1e-5, atol=1e-9)


def test_what_is_left_out_is_left_out_as_the_package_does(anil, at_optimum) -> None:
    lam = at_optimum[1]
    estimator = Estimator("", "gauss-newton", leave_out=True)
    expected = anil.problem().task_influence(
        anil.layout.unravel(lam), anil.train.listed(), 1, "gauss-newton", leave_one_out=True
    )
    found = Linearised(anil, lam).predict(estimator, "task", [Removal("task", ((1, 0),))], 0.0)[0]
    torch.testing.assert_close(found, -anil.layout.ravel(expected), rtol=1e-5, atol=1e-9)


# ---- the figures --------------------------------------------------------------------------------------------------

MOVED = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
GRADIENTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


def test_a_perfect_prediction_has_perfect_figures() -> None:
    found = figures(MOVED, MOVED, GRADIENTS, MOVED @ GRADIENTS.T)
    assert found == pytest.approx({"cosine": 1, "error": 0, "pearson": 1, "spearman": 1, "lds": 1})


def test_figures_by_hand() -> None:
    """The first removal predicted in the wrong direction, the second half as large, the third at a right angle."""
    predicted = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [-4.0, 3.0]], dtype=torch.float64)
    # Foretold loss changes: (−1, 0, −1), (0, 1, −1), (−4, 3, −7).
    change = torch.tensor([[1.0, 0.0, 1.0], [0.0, 3.0, -3.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    found = figures(predicted, MOVED, GRADIENTS, change)
    assert found["cosine"] == pytest.approx(0)  # the median of −1, 1 and 0
    assert found["error"] == pytest.approx(math.sqrt(2))  # of 2, 1/2 and √2
    third = statistics.correlation([-4, 3, -7], [2, 1, 0])
    assert found["pearson"] == pytest.approx((-1 + 1 + third) / 3)
    assert found["spearman"] == pytest.approx(-1)  # means −2/3, 0 and −8/3 against 2/3, 0 and 1
    assert found["lds"] == pytest.approx((-1 + 0.5 + 0) / 3)  # the last from a tie


# ---- the run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A tiny run of one world, as it was written."""
    folder = tmp_path_factory.mktemp("estimators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "WORLDS", {"anil": WORLDS["anil"]})
        patch.setattr(running, "QUICK", TINY)
        running.run(quick=True, out=folder)
    return folder, json.loads((folder / "estimators.json").read_text(encoding="utf-8"))


def test_every_estimator_and_inverse_is_measured(measured) -> None:
    rows = measured[1]["rows"]
    answered = {(row["estimator"], row["question"]) for row in rows if row["table"] == "fidelity"}
    assert answered == {
        (each.name, question) for each in ESTIMATORS for question in QUESTIONS if each.answers(question)
    }
    assert {row["estimator"] for row in rows if row["table"] == "seconds"} == {each.name for each in ESTIMATORS}
    assert {row["inverse"] for row in rows if row["table"] == "inverses"} == set(INVERSES)


def test_figures_are_finite_or_say_why_there_are_none(measured) -> None:
    for row in measured[1]["rows"]:
        if row["table"] == "fidelity":
            assert len(row["verdict"]) == len(DAMPINGS)
            for at, verdict in enumerate(row["verdict"]):
                assert verdict in ("measured", "indefinite", "zero")
                assert all((row[name][at] is not None) == (verdict == "measured") for name in FIGURES)
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers)


def test_tables_have_every_row_and_say_what_made_them(measured) -> None:
    folder, found = measured
    tables = page_tables(found)
    for question in QUESTIONS:
        names = [line.split(" | ")[0].removeprefix("| ") for line in tables[question].splitlines()[4:]]
        assert names == [*(each.name for each in ESTIMATORS if each.answers(question)), "spread over seeds"]
    written = (folder / "estimators.md").read_text(encoding="utf-8")
    for table in tables.values():
        assert "`python -m benchmarks estimators --quick`, seed 0; l2l_influence " in table
        assert table in written


def test_a_run_that_was_cut_off_goes_on_where_it_was(measured, monkeypatch) -> None:
    folder, found = measured
    monkeypatch.setattr(running, "WORLDS", {"anil": WORLDS["anil"]})
    monkeypatch.setattr(running, "QUICK", TINY)
    monkeypatch.setattr(running, "study", lambda *_: pytest.fail("this was measured already"))
    running.run(quick=True, out=folder)
    assert json.loads((folder / "estimators.json").read_text(encoding="utf-8")) == found


def test_figures_of_other_settings_are_not_mixed(measured) -> None:
    with pytest.raises(SystemExit, match="other settings"):
        running.run(quick=False, out=measured[0])


def row(**changed):
    """A row in which damping 1e-1 is the best."""
    figures = {"cosine": 0.999, "error": 1.5, "pearson": -0.001, "spearman": 0.5, "lds": 0.25}
    verdicts = ["indefinite", "measured", "measured", "measured"]
    lists = {name: [None, value, value, value] for name, value in figures.items()}
    lists["pearson"] = [None, -0.001, -0.001, 0.75]
    return {
        "table": "fidelity",
        "world": "w",
        "seed": 0,
        "question": "task",
        "estimator": "exact",
        "verdict": verdicts,
        **lists,
        **changed,
    }


def cell(*rows) -> str:
    return _default_and_best(rows, ("cosine", "pearson", "error"))


def test_a_cell_shows_the_default_and_the_best_damping() -> None:
    assert cell(row()) == "1.00 / .00 / 1.50<br>1.00 / .75 / 1.50 at 1e-1"


def test_a_cell_says_where_a_seed_was_refused() -> None:
    refused = row(verdict=["indefinite", "indefinite", "indefinite", "measured"])
    assert cell(row(), refused) == "indefinite (1 of 2 seeds)<br>1.00 / .75 / 1.50 at 1e-1"
    assert cell(row(verdict=["indefinite"] * 4)) == "indefinite"
    assert cell(row(verdict=["zero"] * 4)) == "zero"


# ---- the page ------------------------------------------------------------------------------------------------------
