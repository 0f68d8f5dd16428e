"""Solvers against ``torch.linalg.solve``, and their honesty where a system cannot be solved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_influence.bilevel import CG, Dense, Neumann
from l2l_influence.bilevel.solvers import MINRES, ClosedForm, LowRank, MultipleOfIdentity, enforce, solver_for
from l2l_influence.bilevel.solvers.neumann import largest_eigenvalue
from l2l_influence.errors import InfluenceError, LossStructureError, NegativeCurvatureError, NotConvergedError

from ...reference_problems.autograd import randn
from ..systems import Matrices, close, rotated, spread, true_residual

SOLVERS = pytest.mark.parametrize(
    "solver",
    [CG(tolerance=1e-10), MINRES(tolerance=1e-10), Neumann(tolerance=1e-10), Dense(tolerance=1e-10)],
    ids=lambda s: s.name,
)
FLOAT32_SOLVERS = pytest.mark.parametrize(
    "solver", [CG(1e-5), MINRES(1e-5), Neumann(1e-5), Dense(1e-5)], ids=lambda s: s.name
)


# ---- the answer --------------------------------------------------------------------------------------------------


@SOLVERS
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), size=st.integers(1, 12), log=st.floats(0, 1.3), seed=st.integers(0, 10**6))
def test_solvers_agree_with_linalg_in_float64(solver, rows, size, log, seed):
    matrices = rotated(spread(rows, size, [10**log] * rows), seed)
    b = randn(seed + 1, rows, size)
    solution = solver.solve(Matrices(matrices), b)
    assert close(solution.value, matrices, b) < 1e-8
    assert bool(solution.report.converged.all())
    enforce(solution.report, "test")


def low_rank(count, rank, size, dtype=torch.float64):
    return randn(3, count, rank, size).to(dtype) / size**0.5


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 8), size=st.integers(1, 15), log=st.floats(-4, 2), seed=st.integers(0, 10**6))
def test_gram_agrees_with_linalg_in_float64(rank, size, log, seed):
    rows, b, delta = randn(seed, 3, rank, size), randn(seed + 1, 3, size), 10**log
    solution = ClosedForm(tolerance=1e-9).solve(LowRank(rows).plus_identity(delta), b)
    assert close(solution.value, rows.mT @ rows + delta * torch.eye(size, dtype=torch.float64), b) < 1e-8
    assert bool(solution.report.converged.all())


def test_gram_with_one_matrix_for_all_rows():
    rows, b = randn(0, 4, 9), randn(1, 5, 9)
    solution = ClosedForm().solve(LowRank(rows).plus_identity(0.1), b)
    matrix = rows.T @ rows + 0.1 * torch.eye(9, dtype=torch.float64)
    assert close(solution.value, matrix.expand(5, 9, 9), b) < 1e-10


def test_gram_with_more_columns_than_a_chunk(monkeypatch):
    monkeypatch.setattr("l2l_influence.bilevel.solvers.gram.CHUNK", 7)
    rows, b = low_rank(2, 3, 30), randn(1, 2, 30)
    solution = ClosedForm().solve(LowRank(rows).plus_identity(0.5), b)
    assert close(solution.value, rows.mT @ rows + 0.5 * torch.eye(30, dtype=torch.float64), b) < 1e-10


@FLOAT32_SOLVERS
def test_solvers_agree_with_linalg_in_float32(solver):
    matrices = rotated(spread(3, 30, [50] * 3))
    b = randn(1, 3, 30)
    solution = solver.solve(Matrices(matrices.float()), b.float())
    assert solution.value.dtype == torch.float32
    assert bool(solution.report.converged.all())
    assert close(solution.value.double(), matrices, b) < 1e-3  # tolerance times condition, at worst


@SOLVERS
def test_a_row_of_zeros_gives_zeros_and_leaves_the_others_alone(solver):
    matrices, b = rotated(spread(3, 8, [5, 5, 5])), randn(1, 3, 8)
    b[1] = 0
    solution = solver.solve(Matrices(matrices), b)
    assert torch.equal(solution.value[1], torch.zeros(8, dtype=torch.float64))
    assert solution.report.residual[1] == 0 and bool(solution.report.converged.all())
    assert close(solution.value[[0, 2]], matrices[[0, 2]], b[[0, 2]]) < 1e-8
    nothing = solver.solve(Matrices(matrices), torch.zeros_like(b))
    assert not nothing.value.any() and bool(nothing.report.converged.all())


@SOLVERS
def test_each_row_meets_its_own_tolerance(solver):
    matrices = rotated(spread(5, 20, [1, 3, 10, 30, 90]))
    scales = torch.tensor([1e-30, 1e8, 1.0, 1e-8, 1e30], dtype=torch.float64).unsqueeze(-1)
    matrices = matrices * torch.tensor([1e6, 1e-6, 1.0, 1e3, 1e-3], dtype=torch.float64).view(-1, 1, 1)
    b = scales * randn(1, 5, 20)
    solution = solver.solve(Matrices(matrices), b)
    assert bool((true_residual(matrices, solution.value, b) <= 1.01e-10).all())
    assert bool(solution.report.converged.all())


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e25])
@FLOAT32_SOLVERS
def test_float32_rows_of_any_size_are_solved_alike(solver, scale):
    matrices, b = rotated(spread(2, 10, [5, 5])).float(), randn(1, 2, 10).float()
    solution = solver.solve(Matrices(matrices), scale * b)
    enforce(solution.report, "test")
    assert close((solution.value.double() / scale), matrices.double(), b.double()) < 1e-4


@pytest.mark.parametrize("solver", [CG(1e-8), MINRES(1e-8), Neumann(1e-3)], ids=lambda s: s.name)
def test_rows_do_not_see_each_other(solver):
    matrices, b = rotated(spread(4, 15, [2, 10, 100, 1000])), randn(1, 4, 15)
    together = solver.solve(Matrices(matrices), b).value
    alone = torch.cat([solver.solve(Matrices(matrices[i : i + 1]), b[i : i + 1]).value for i in range(4)])
    assert ((together - alone).norm(dim=-1) / alone.norm(dim=-1)).max() < 1e-12


def test_a_multiple_of_the_identity_knows_its_inverse():
    b = randn(0, 2, 5)
    solution = ClosedForm().solve(MultipleOfIdentity(4.0), b)
    assert torch.equal(solution.value, b / 4)
    assert solution.report.shift == 4.0 and solution.report.smallest_curvature.tolist() == [4.0, 4.0]
    with pytest.raises(NegativeCurvatureError):
        enforce(ClosedForm().solve(MultipleOfIdentity(0.0), b).report, "test")


def test_reports_say_what_the_diagonal_was_given():
    rows, b = randn(0, 4, 9), randn(1, 5, 9)
    for system in (Matrices(rows.T @ rows).plus_identity(0.5), LowRank(rows).plus_identity(0.5)):
        assert solver_for(system, 1e-6).solve(system, b).report.shift == 0.5
        twice = system.plus_identity(0.25)
        assert solver_for(twice, 1e-6).solve(twice, b).report.shift == 0.75
        assert close(CG(1e-10).solve(twice, b).value, (rows.T @ rows + 0.75 * torch.eye(9)).expand(5, 9, 9), b) < 1e-8


# ---- honesty -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize(
    "solver",
    [CG(1e-4, 2000), CG(1e-7, 300), MINRES(1e-4), MINRES(1e-7, 300), Neumann(1e-3, 500), Dense(1e-4)],
    ids=["cg", "cg7", "minres", "minres7", "neumann", "dense"],
)
def test_float32_reports_say_what_is_true(solver, condition):
    matrices, b = rotated(spread(4, 40, [condition] * 4)).float(), randn(1, 4, 40).float()
    solution = solver.solve(Matrices(matrices), b)
    found = true_residual(matrices, solution.value, b)
    rounding = 1e-6 * (1 + (matrices.double() @ solution.value.double().abs().unsqueeze(-1)).norm() / b.norm())
    assert bool(((found - solution.report.residual).abs() <= rounding + 0.01 * found).all())
    claimed = solution.report.converged
    assert bool((found[claimed] <= solver.tolerance + rounding).all())


@pytest.mark.parametrize("delta", [1.0, 1e-2, 1e-4, 1e-6])
def test_gram_in_float32_reports_what_is_true(delta):
    rows, b = 10 * low_rank(3, 20, 4000, torch.float32), randn(1, 3, 4000).float()
    solution = ClosedForm(tolerance=1e-3).solve(LowRank(rows).plus_identity(delta), b)
    matrices = rows.double().mT @ rows.double() + delta * torch.eye(4000, dtype=torch.float64)
    found = true_residual(matrices, solution.value, b)
    norm = torch.linalg.matrix_norm(rows.double(), 2) ** 2
    rounding = 1e-7 * norm * solution.value.double().norm(dim=-1) / b.double().norm(dim=-1)
    assert bool(((found - solution.report.residual).abs() <= rounding + 0.01 * found).all())
    assert solution.report.converged.tolist() == [delta >= 1e-2] * 3  # a condition of 1e4 leaves float32 room, 1e6 not


def test_what_rounding_left_over_is_solved_again():
    operator, b = Matrices(rotated(spread(16, 60, [1e4] * 16), 4).float()), randn(1, 16, 60).float()
    solver = CG(tolerance=1e-5, max_iterations=5000)
    one_go = solver.prepare(operator, b)(b, 1e-5 * b.norm(dim=-1), 5000)
    assert one_go.iterations < 5000  # the residual updated on the way said 1e-5
    before = true_residual(operator.matrices, one_go.x, b)
    after = true_residual(operator.matrices, solver.solve(operator, b).value, b)
    assert float(after.mean()) < 0.5 * float(before.mean())


@pytest.mark.parametrize("solver", [CG(), Neumann(), Dense()], ids=lambda s: s.name)
def test_indefinite_matrices_are_refused(solver):
    eigenvalues = torch.linspace(0.1, 2, 12, dtype=torch.float64).repeat(2, 1)
    eigenvalues[1, 0] = -0.3
    operator, b = Matrices(rotated(eigenvalues)), randn(1, 2, 12)
    solution = solver.solve(operator, b)
    assert bool(solution.value.isfinite().all())
    assert solution.report.converged.tolist() == [True, False]
    assert solution.report.indefinite
    with pytest.raises(NegativeCurvatureError, match="the outer system.*larger regulariser"):
        enforce(solution.report, "the outer system")
    with pytest.raises(NegativeCurvatureError):  # a warning will not do: the value means nothing
        enforce(solution.report, "test", "warn")


def test_neumann_on_an_indefinite_matrix_stops_soon():
    eigenvalues = torch.linspace(0.1, 2, 12, dtype=torch.float64).unsqueeze(0)
    for lowest in (-1e-2, -0.5, -30.0):
        eigenvalues[0, 0] = lowest
        solution = Neumann(1e-12).solve(Matrices(rotated(eigenvalues)), randn(1, 1, 12))
        assert solution.report.iterations < 1000
        assert bool(solution.value.isfinite().all())
        with pytest.raises(NegativeCurvatureError):
            enforce(solution.report, "test")


@pytest.mark.parametrize("solver", [CG(), Neumann(), Dense()], ids=lambda s: s.name)
def test_singular_matrices_are_refused(solver):
    diagonal = torch.diag_embed(torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64))
    solution = solver.solve(Matrices(diagonal), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
    with pytest.raises(NegativeCurvatureError):
        enforce(solution.report, "test")
    turned = rotated(torch.tensor([[2.0, 1.0, 0.5, 0.0]]))
    solution = solver.solve(Matrices(turned), randn(2, 1, 4))
    assert not bool(solution.report.converged.any())
    with pytest.raises(InfluenceError):  # rounding decides which of the two errors
        enforce(solution.report, "test")


@pytest.mark.parametrize("solver", [CG(), Neumann(), Dense()], ids=lambda s: s.name)
def test_the_zero_matrix_is_refused(solver):
    solution = solver.solve(Matrices(torch.zeros(1, 3, 3, dtype=torch.float64)), randn(0, 1, 3))
    with pytest.raises(NegativeCurvatureError):
        enforce(solution.report, "test")


@pytest.mark.parametrize("solver", [CG(1e-10, 3), MINRES(1e-10, 3), Neumann(1e-10, 3)], ids=lambda s: s.name)
def test_a_missed_tolerance_is_an_error_or_on_demand_a_warning(solver):
    matrices, b = rotated(spread(2, 20, [1, 1000])), randn(1, 2, 20)
    b[0] = 0
    solution = solver.solve(Matrices(matrices), b)
    assert solution.report.iterations <= 3
    assert solution.report.converged.tolist() == [True, False]
    assert torch.allclose(solution.report.residual, true_residual(matrices, solution.value, b), atol=1e-12)
    with pytest.raises(NotConvergedError, match="NOT converged in 3 iterations.*more iterations"):
        enforce(solution.report, "test")
    with pytest.warns(UserWarning, match="NOT converged"):
        enforce(solution.report, "test", "warn")


@SOLVERS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_pass(solver, bad):
    matrices, b = rotated(spread(2, 5, [2, 2])), randn(1, 2, 5)
    b[0, 0] = bad
    report = solver.solve(Matrices(matrices), b).report
    assert report.converged.tolist() == [False, True]
    with pytest.raises(InfluenceError):
        enforce(report, "test")


def test_gram_refuses_what_it_cannot_factorise():
    with pytest.raises(NegativeCurvatureError, match="larger regulariser"):
        LowRank(torch.full((1, 2, 3), float("nan"))).plus_identity(1.0)
    with pytest.raises(NegativeCurvatureError, match="larger regulariser"):
        LowRank(1e12 * torch.ones(1, 4, 3)).plus_identity(1e-9)
    with pytest.raises(ValueError, match="positive"):
        LowRank(torch.ones(1, 2, 3)).plus_identity(0.0)
    with pytest.raises(LossStructureError, match="no closed-form inverse"):
        ClosedForm().solve(Matrices(torch.eye(3).expand(1, 3, 3)), torch.ones(1, 3))


# ---- Neumann -----------------------------------------------------------------------------------------------------


def test_the_unscaled_series_diverges_where_ours_converges():
    matrix, b = rotated(torch.linspace(0.5, 8, 10, dtype=torch.float64).unsqueeze(0)), randn(1, 1, 10)
    x = torch.zeros_like(b)
    for _ in range(100):
        x = x + b - (matrix @ x.unsqueeze(-1)).squeeze(-1)
    assert float(true_residual(matrix, x, b)) > 1e10
    assert close(Neumann(1e-10).solve(Matrices(matrix), b).value, matrix, b) < 1e-8


def test_a_largest_eigenvalue_that_was_guessed_too_small_is_corrected_on_the_way():
    eigenvalues = torch.cat([torch.full((99,), 1.0), torch.tensor([50.0])]).unsqueeze(0)
    matrix, b = rotated(eigenvalues), randn(1, 1, 100)
    hasty = Neumann(1e-8, power_iterations=1)
    assert float(largest_eigenvalue(Matrices(matrix), b, 1)) < 50 / 2 / 1.1
    assert bool(hasty.solve(Matrices(matrix), b).report.converged.all())


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 40), log=st.floats(0, 6), scale=st.floats(-6, 6), seed=st.integers(0, 10**6))
def test_power_iteration_finds_the_scale_of_the_largest_eigenvalue(size, log, scale, seed):
    matrices = 10**scale * rotated(spread(2, size, [10**log, 1]), seed)
    found = largest_eigenvalue(Matrices(matrices), randn(seed, 2, size), 20)
    largest = torch.linalg.eigvalsh(matrices)[:, -1]
    assert bool((found <= largest * (1 + 1e-9)).all())
    assert bool((found > 0.6 * largest).all())  # 1/(1.1 · 0.6) < 2: the series converges


# ---- repeatability -----------------------------------------------------------------------------------------------


@SOLVERS
def test_solves_repeat_bit_for_bit_and_draw_no_random_number(solver):
    matrices, b = rotated(spread(3, 20, [30, 3, 1])), randn(1, 3, 20)
    before, kept = torch.get_rng_state(), b.clone()
    first = solver.solve(Matrices(matrices), b)
    torch.rand(7)
    torch.set_rng_state(before)
    second = solver.solve(Matrices(matrices), b)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.report.residual, second.report.residual)
    assert torch.equal(b, kept)


def test_products_are_what_the_report_says():
    operator = Matrices(rotated(spread(2, 20, [30, 30])))
    report = CG(1e-8).solve(operator, randn(1, 2, 20)).report
    assert report.iterations <= operator.products <= report.iterations + 2
