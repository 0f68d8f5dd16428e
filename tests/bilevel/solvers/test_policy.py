"""What happens to systems that are not positive definite, or not solved."""

from __future__ import annotations

import warnings

import pytest
import torch

from l2l_influence.bilevel import CG, Dense, Neumann
from l2l_influence.bilevel.solvers import MINRES, Policy
from l2l_influence.errors import NegativeCurvatureError, NotConvergedError

from ...reference_problems.autograd import randn
from ..systems import Inverted, Matrices, close, indefinite, rotated, shifted, spread, true_residual

SOLVERS = pytest.mark.parametrize(
    "solver",
    [CG(1e-9), Neumann(1e-9, 50_000), Dense(1e-9), CG(1e-9, preconditioner=Inverted(rotated(spread(4, 20, [3] * 4))))],
    ids=lambda s: s.name,
)


def mixed(dtype=torch.float64):
    """Systems 1 and 3 are indefinite, 0 and 2 are not; all of different scale and condition."""
    eigenvalues = torch.cat([indefinite(1, 20, k, seed) for seed, k in enumerate((0, 1, 0, 7))])
    scales = torch.tensor([[1.0], [1e-3], [1e2], [10.0]], dtype=torch.float64)
    return rotated(scales * eigenvalues).to(dtype), randn(5, 4, 20).to(dtype)


def quietly(policy, operator, solver, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return policy.solve(operator, solver, b, "the test system")


def lowest(matrices):
    return torch.linalg.eigvalsh(matrices)[:, 0]


@SOLVERS
def test_raise_names_the_system(solver):
    matrices, b = mixed()
    with pytest.raises(NegativeCurvatureError, match="the test system.*larger regulariser.*on_indefinite"):
        Policy().solve(Matrices(matrices), solver, b, "the test system")
    definite = Policy().solve(Matrices(matrices[::2]), CG(1e-9), b[::2], "the test system")
    assert close(definite.value, matrices[::2], b[::2]) < 1e-7


@SOLVERS
def test_damp_solves_a_system_with_more_on_its_diagonal_and_says_how_much(solver):
    matrices, b = mixed()
    with pytest.warns(UserWarning, match="the test system: 2 of 4 matrices are not positive definite") as caught:
        solution = Policy("damp").solve(Matrices(matrices), solver, b, "the test system")
    assert len(caught) == 1
    report = solution.report
    assert report.damping[[0, 2]].tolist() == [0, 0]
    assert bool((report.damping[[1, 3]] > -lowest(matrices)[[1, 3]]).all())
    assert bool((report.damping[[1, 3]] < -4 * lowest(matrices)[[1, 3]]).all())
    assert close(solution.value, shifted(matrices, report.damping), b) < 1e-6
    assert bool(report.converged.all()) and not report.indefinite
    assert f"up to {float(report.damping.max()):.3g} more in 2 of 4 systems" in str(report)


@SOLVERS
def test_minres_solves_the_system_as_it_is(solver):
    matrices, b = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = Policy("minres").solve(Matrices(matrices), solver, b, "the test system")
    report = solution.report
    assert close(solution.value, matrices, b) < 1e-6
    assert bool((true_residual(matrices, solution.value, b) <= 1e-9).all())
    assert bool(report.converged.all()) and not report.indefinite and not report.damping.any()
    assert report.solver == f"{solver.name}, then minres"
    assert (report.smallest_curvature < 0).tolist() == [False, True, False, True]


@SOLVERS
@pytest.mark.parametrize("word", ["damp", "minres"])
def test_other_rows_are_not_touched(solver, word):
    matrices, b = mixed()
    before, after = solver.solve(Matrices(matrices), b), quietly(Policy(word), Matrices(matrices), solver, b)
    for i in (0, 2):
        assert torch.equal(after.value[i], before.value[i])
        assert after.report.residual[i] == before.report.residual[i]
        assert after.report.smallest_curvature[i] == before.report.smallest_curvature[i]


@pytest.mark.parametrize("solver", [CG(1e-9), Neumann(1e-9, 50_000), Dense(1e-9)], ids=lambda s: s.name)
@pytest.mark.parametrize("word", ["damp", "minres"])
def test_a_row_fares_alone_as_it_does_in_a_batch(solver, word):
    matrices, b = mixed()
    together = quietly(Policy(word), Matrices(matrices), solver, b)
    for i in range(4):
        alone = quietly(Policy(word), Matrices(matrices[i : i + 1]), solver, b[i : i + 1])
        assert float(alone.report.damping) == pytest.approx(float(together.report.damping[i]), rel=1e-9)
        assert float((alone.value[0] - together.value[i]).norm() / alone.value.norm()) < 1e-6


def test_the_damping_is_the_matrix_s_and_not_the_right_hand_side_s():
    """Right-hand sides of one matrix: all that meet negative curvature are solved with the same one."""
    matrix = rotated(indefinite(1, 25, 3)).expand(6, 25, 25)
    report = quietly(Policy("damp"), Matrices(matrix), CG(1e-9), randn(2, 6, 25)).report
    assert bool((report.damping > 0).all())
    assert float(report.damping.max() / report.damping.min()) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("word", ["damp", "minres"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_float32(word, tolerance):
    matrices, b = mixed(torch.float32)
    solution = quietly(Policy(word), Matrices(matrices), CG(tolerance), b)
    assert solution.value.dtype == solution.report.damping.dtype == torch.float32
    assert bool(solution.report.converged.all())
    residual = true_residual(shifted(matrices.double(), solution.report.damping.double()), solution.value, b)
    assert float(residual.max()) < 1.1 * tolerance


@pytest.mark.parametrize("solver", [CG(1e-9), Dense(1e-9)], ids=lambda s: s.name)
def test_curvature_of_exactly_zero_is_damped_too(solver):
    matrix = torch.diag_embed(torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64))
    b = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    with pytest.warns(UserWarning, match="1 of 1"):
        solution = Policy("damp").solve(Matrices(matrix - 0.5), solver, b, "test")
    assert close(solution.value, shifted(matrix - 0.5, solution.report.damping), b) < 1e-6
    b[0, 1] = 0  # now the right-hand side lies where there is no curvature at all
    alone = quietly(Policy("damp"), Matrices(matrix), solver, b)
    assert 0 < float(alone.report.damping) < 1e-6
    assert close(alone.value, shifted(matrix, alone.report.damping), b) < 1e-6


@pytest.mark.parametrize("word", ["damp", "minres"])
def test_the_zero_matrix_is_an_error_whatever_the_policy(word):
    with pytest.raises((NegativeCurvatureError, NotConvergedError)):
        quietly(Policy(word), Matrices(torch.zeros(1, 3, 3, dtype=torch.float64)), CG(), randn(0, 1, 3))


def test_damping_is_given_up_after_some_tries(monkeypatch):
    monkeypatch.setattr("l2l_influence.bilevel.solvers.policy.PRODUCTS", 1)
    monkeypatch.setattr("l2l_influence.bilevel.solvers.policy.MARGIN", 1e-3)
    matrices, b = mixed()
    with pytest.raises(NegativeCurvatureError, match="the test system"):
        Policy("damp").solve(Matrices(matrices), CG(1e-9), b, "the test system")


def test_damping_grows_until_it_is_enough(monkeypatch):
    """A first guess that saw too little: one product, and a right-hand side that hardly meets the negative part."""
    monkeypatch.setattr("l2l_influence.bilevel.solvers.policy.PRODUCTS", 1)
    matrix = torch.diag_embed(torch.tensor([[-1.0, -100.0, 1000.0, 3.0, 2.0]], dtype=torch.float64))
    b = torch.tensor([[1.0, 1e-3, 0.0, 1e-2, 1e-2]], dtype=torch.float64)
    solution = quietly(Policy("damp"), Matrices(matrix), CG(1e-9), b)
    assert 100 < float(solution.report.damping) < 400
    assert close(solution.value, shifted(matrix, solution.report.damping), b) < 1e-7


def test_a_missed_tolerance_is_an_error_or_on_demand_a_warning():
    matrices, b = rotated(spread(2, 20, [1, 1000])), randn(1, 2, 20)
    with pytest.raises(NotConvergedError, match="here: cg: NOT converged in 3 iterations.*more iterations"):
        Policy().solve(Matrices(matrices), CG(1e-10, 3), b, "here")
    with pytest.warns(UserWarning, match="here: cg: NOT converged"):
        solution = Policy(on_unconverged="warn").solve(Matrices(matrices), CG(1e-10, 3), b, "here")
    assert solution.report.converged.tolist() == [True, False]


def test_a_warning_for_missed_tolerances_does_not_let_negative_curvature_through():
    matrices, b = mixed()
    with pytest.raises(NegativeCurvatureError):
        Policy(on_unconverged="warn").solve(Matrices(matrices), CG(1e-9), b, "test")


def test_minres_itself_needs_no_policy_for_indefinite_systems():
    matrices, b = mixed()
    solution = Policy().solve(Matrices(matrices), MINRES(1e-9), b, "test")
    assert close(solution.value, matrices, b) < 1e-6 and solution.report.solver == "minres"


@pytest.mark.parametrize("word", ["damp", "minres"])
def test_values_that_are_not_finite_never_pass(word):
    matrices, b = mixed()
    matrices[0] = torch.nan
    with pytest.raises(NotConvergedError):
        quietly(Policy(word), Matrices(matrices), CG(1e-9), b)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="on_indefinite must be one of.*damp"):
        Policy("clip")
    with pytest.raises(ValueError, match="on_unconverged"):
        Policy(on_unconverged="ignore")
