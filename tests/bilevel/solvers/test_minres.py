"""MINRES on indefinite systems, and what the Lanczos process says of a spectrum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import minres

from l2l_influence.bilevel.solvers import MINRES, enforce
from l2l_influence.bilevel.solvers.lanczos import extreme_eigenvalues
from l2l_influence.errors import NotConvergedError

from ...reference_problems.autograd import randn
from ..systems import Matrices, close, indefinite, rotated, spread, true_residual


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 4), size=st.integers(1, 25), seed=st.integers(0, 10**6), data=st.data())
def test_indefinite_systems_are_solved(rows, size, seed, data):
    negative = data.draw(st.integers(0, size))
    matrices, b = rotated(indefinite(rows, size, negative, seed), seed), randn(seed + 1, rows, size)
    solution = MINRES(1e-10).solve(Matrices(matrices), b)
    assert bool((true_residual(matrices, solution.value, b) <= 1e-10).all())
    assert close(solution.value, matrices, b) < 1e-10 * 50 * 1.01  # tolerance times condition, at worst
    enforce(solution.report, "test")


@pytest.mark.parametrize("iterations", [1, 2, 3, 10, 20])
def test_iterates_are_scipys(iterations):
    matrices, b = rotated(indefinite(3, 30, 10)), randn(1, 3, 30)
    found = MINRES().prepare(Matrices(matrices), b)(b, torch.zeros(3, dtype=torch.float64), iterations)
    assert found.iterations == iterations
    for matrix, right, x in zip(matrices, b, found.x, strict=True):
        expected, _ = minres(matrix.numpy(), right.numpy(), rtol=1e-30, maxiter=iterations)
        assert float((x - torch.from_numpy(expected)).norm() / x.norm()) < 1e-10


def test_rows_do_not_see_each_other():
    matrices = rotated(torch.cat([indefinite(2, 15, 4), spread(2, 15, [3, 1e4])]))
    b, solver = randn(1, 4, 15), MINRES(1e-8)
    together = solver.solve(Matrices(matrices), b)
    for i in range(4):
        alone = solver.solve(Matrices(matrices[i : i + 1]), b[i : i + 1])
        assert float((together.value[i] - alone.value[0]).norm() / alone.value[0].norm()) < 1e-8
        assert bool(alone.report.converged[0]) and bool(together.report.converged[i])


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_indefinite_systems_in_float32(tolerance):
    matrices, b = rotated(indefinite(4, 200, 40)), randn(1, 4, 200)
    solution = MINRES(tolerance).solve(Matrices(matrices.float()), b.float())
    assert solution.value.dtype == torch.float32 and bool(solution.report.converged.all())
    assert float(true_residual(matrices, solution.value, b).max()) < 1.1 * tolerance


def test_curvature_is_reported_and_lies_in_the_spectrum():
    for seed in range(20):
        eigenvalues = indefinite(3, 20, seed % 3, seed)
        report = MINRES(1e-10).solve(Matrices(rotated(eigenvalues, seed)), randn(seed, 3, 20)).report
        lowest = eigenvalues.amin(-1)
        assert bool((report.smallest_curvature >= lowest - 1e-10).all())
        assert torch.equal(report.smallest_curvature > 0, lowest > 0)  # what CG would have met
        assert not report.indefinite and bool(report.converged.all())


def test_singular_systems_are_reported_as_unsolved():
    eigenvalues = torch.tensor([[3.0, 2.0, -1.0, 0.0], [3.0, 2.0, -1.0, 0.5]])
    solution = MINRES(1e-10).solve(Matrices(rotated(eigenvalues)), randn(2, 2, 4))
    assert solution.report.converged.tolist() == [False, True]
    assert bool(solution.value.isfinite().all()) and solution.report.iterations < 20
    with pytest.raises(NotConvergedError):
        enforce(solution.report, "test")
    nothing = MINRES().solve(Matrices(torch.zeros(1, 3, 3, dtype=torch.float64)), randn(0, 1, 3))
    assert not bool(nothing.report.converged.any()) and not nothing.value.any()


def test_one_step_is_enough_for_an_eigenvector():
    matrix = torch.diag_embed(torch.tensor([[-2.0, 1.0, 3.0]], dtype=torch.float64))
    solution = MINRES(1e-12).solve(Matrices(matrix), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    assert solution.report.iterations == 1 and solution.value.tolist() == [[-0.5, 0.0, 0.0]]
    assert solution.report.smallest_curvature.tolist() == [-2.0]


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 30), scale=st.floats(-6, 6), seed=st.integers(0, 10**6), data=st.data())
def test_extreme_eigenvalues(size, scale, seed, data):
    eigenvalues = 10**scale * indefinite(2, size, data.draw(st.integers(0, size)), seed)
    lowest, highest = extreme_eigenvalues(Matrices(rotated(eigenvalues, seed)), randn(seed, 2, size), 30)
    assert bool(((lowest - eigenvalues.amin(-1)).abs() <= 1e-3 * 5 * 10**scale).all())
    assert bool(((highest - eigenvalues.amax(-1)).abs() <= 1e-3 * 5 * 10**scale).all())


def test_a_row_that_is_not_finite_leaves_the_others_their_spectrum():
    matrices = rotated(spread(2, 6, [10, 10]))
    matrices[0] = torch.nan
    lowest, highest = extreme_eigenvalues(Matrices(matrices), randn(0, 2, 6), 30)
    assert float(lowest[1]) == pytest.approx(0.1) and float(highest[1]) == pytest.approx(1.0)
