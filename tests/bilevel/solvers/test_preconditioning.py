"""Preconditioned CG and Neumann, and how an approximate inverse compares with the exact one."""

from __future__ import annotations

import pytest
import torch

from l2l_influence.bilevel import CG, Neumann
from l2l_influence.bilevel.solvers import LowRank, MultipleOfIdentity, agreement, enforce
from l2l_influence.bilevel.solvers.neumann import largest_eigenvalue
from l2l_influence.errors import NegativeCurvatureError

from ...reference_problems.autograd import randn
from ..systems import Inverted, Matrices, close, indefinite, rotated, shifted, spread, true_residual

KINDS = pytest.mark.parametrize("kind", [CG, Neumann], ids=["cg", "neumann"])


def system(condition=1e4, rows=3, size=40):
    """Ill-conditioned matrices, and others close to them: each eigenvalue wrong by a factor of up to 2."""
    eigenvalues = spread(rows, size, [condition] * rows)
    wrong = 2 ** (2 * torch.rand(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1)
    return rotated(eigenvalues), rotated(eigenvalues * wrong), randn(1, rows, size)


@KINDS
def test_the_same_solution_in_fewer_iterations(kind):
    matrices, nearby, b = system(condition=300)
    plain = kind(tolerance=1e-8).solve(Matrices(matrices), b)
    helped = kind(tolerance=1e-8, preconditioner=Inverted(nearby)).solve(Matrices(matrices), b)
    assert close(helped.value, matrices, b) < 1e-6 and close(plain.value, matrices, b) < 1e-6
    assert bool((true_residual(matrices, helped.value, b) <= 1e-8).all())  # of A x = b, not of M⁻¹A x = M⁻¹b
    assert helped.report.iterations < plain.report.iterations / 3
    assert helped.report.solver == f"preconditioned {plain.report.solver}"
    enforce(helped.report, "test")


@KINDS
def test_a_system_that_cannot_be_solved_without(kind):
    matrices, nearby, b = system(condition=1e7)
    solver = kind(tolerance=1e-6, max_iterations=100)
    assert not bool(solver.solve(Matrices(matrices), b).report.converged.any())
    helped = kind(tolerance=1e-6, max_iterations=100, preconditioner=Inverted(nearby))
    assert bool(helped.solve(Matrices(matrices), b).report.converged.all())


@KINDS
def test_the_identity_gives_what_none_does(kind):
    matrices, _, b = system(condition=30)
    plain = kind(tolerance=1e-8).solve(Matrices(matrices), b)
    for scale in (1.0, 2.0**-10, 64.0):  # powers of 4 round nothing, nor do their roots
        same = kind(tolerance=1e-8, preconditioner=MultipleOfIdentity(scale)).solve(Matrices(matrices), b)
        assert torch.equal(same.value, plain.value)
        assert same.report.iterations == plain.report.iterations
        assert torch.equal(same.report.smallest_curvature, plain.report.smallest_curvature)


def test_the_exact_inverse_takes_one_iteration():
    matrices, _, b = system()
    assert CG(1e-8, preconditioner=Inverted(matrices)).solve(Matrices(matrices), b).report.iterations == 1


@KINDS
def test_rows_do_not_see_each_other(kind):
    matrices, nearby, b = system(condition=100)
    together = kind(1e-6, preconditioner=Inverted(nearby)).solve(Matrices(matrices), b).value
    for i in range(3):
        alone = kind(1e-6, preconditioner=Inverted(nearby[i : i + 1])).solve(
            Matrices(matrices[i : i + 1]), b[i : i + 1]
        )
        assert float((together[i] - alone.value[0]).norm() / together[i].norm()) < 1e-10


@KINDS
def test_rows_of_zeros_give_zeros(kind):
    matrices, nearby, b = system(condition=100)
    b[1] = 0
    solution = kind(1e-6, preconditioner=Inverted(nearby)).solve(Matrices(matrices), b)
    assert not solution.value[1].any() and bool(solution.report.converged.all())
    assert float(true_residual(matrices, solution.value, b).max()) <= 1e-6


@KINDS
def test_float32(kind):
    matrices, nearby, b = system(condition=300)
    solver = kind(tolerance=1e-4, preconditioner=Inverted(nearby.float()))
    solution = solver.solve(Matrices(matrices.float()), b.float())
    assert solution.value.dtype == torch.float32 and bool(solution.report.converged.all())
    assert float(true_residual(matrices, solution.value, b).max()) < 1.1e-4


@KINDS
def test_negative_curvature_is_noticed(kind):
    eigenvalues = indefinite(2, 20, 0)
    nearby = Inverted(rotated(eigenvalues))
    eigenvalues[1, 0] *= -1
    solution = kind(1e-10, preconditioner=nearby).solve(Matrices(rotated(eigenvalues)), randn(0, 2, 20))
    assert solution.report.converged.tolist() == [True, False]
    assert solution.report.refused.tolist() == [False, True]
    with pytest.raises(NegativeCurvatureError):
        enforce(solution.report, "test")


@KINDS
def test_a_preconditioner_that_is_not_positive_is_never_believed(kind):
    matrices, _, b = system(condition=10)
    wrong = Inverted(rotated(indefinite(3, 40, 20), 5))
    solution = kind(1e-8, preconditioner=wrong).solve(Matrices(matrices), b)
    assert torch.equal(solution.report.converged, true_residual(matrices, solution.value, b) <= 1e-8)
    assert not bool(solution.report.converged.all())
    assert solution.report.iterations < 100  # it is noticed, not tried to the end


def test_the_largest_eigenvalue_of_a_preconditioned_matrix():
    matrices, nearby, b = system(condition=100)
    found = largest_eigenvalue(Matrices(matrices), b, 200, Inverted(nearby))
    expected = torch.linalg.eigvals(torch.linalg.solve(nearby, matrices)).real.amax(-1)
    assert bool((found <= expected * (1 + 1e-9)).all())
    assert torch.allclose(found, expected, rtol=1e-2)


# ---- agreement ---------------------------------------------------------------------------------------------------


def test_agreement_is_measured_against_dense_algebra():
    matrices, nearby, b = system(condition=100)
    found = agreement(Inverted(nearby), Matrices(matrices), b, tolerance=1e-8)
    guess, exact = torch.linalg.solve(nearby, b), torch.linalg.solve(matrices, b)
    assert torch.allclose(found.residual, true_residual(matrices, guess, b), rtol=1e-8)
    assert torch.allclose(found.cosine, torch.cosine_similarity(guess, exact), rtol=1e-6)
    assert bool((found.residual > 0.1).all()) and bool((found.cosine < 0.995).all())


def test_an_exact_inverse_agrees_with_itself():
    rows, b = randn(0, 2, 3, 9), randn(1, 2, 9)
    system = LowRank(rows).plus_identity(0.5)
    found = agreement(system, Matrices(shifted(rows.mT @ rows, torch.tensor([0.5, 0.5]))), b)
    assert float(found.residual.max()) < 1e-10 and float(found.cosine.min()) > 1 - 1e-6
    assert str(found).endswith("cosine 1.000")


def test_no_cosine_without_an_exact_solution():
    eigenvalues = indefinite(2, 20, 0)
    eigenvalues[1, 0] *= -1
    found = agreement(MultipleOfIdentity(1.0), Matrices(rotated(eigenvalues)), randn(0, 2, 20))
    assert found.cosine.isnan().tolist() == [False, True]
    assert bool(found.residual.isfinite().all())
