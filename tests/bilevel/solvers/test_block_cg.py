"""Many right-hand sides of one matrix, solved together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from l2l_influence.bilevel import CG, BilevelProblem, Unrolled
from l2l_influence.bilevel.hessians.sketch import SampledRows
from l2l_influence.bilevel.solvers import BlockCG, LowRankPlusIdentity
from l2l_influence.bilevel.solvers.block_cg import orthonormal
from l2l_influence.parallel.ranks import ALONE

from ...reference_problems.autograd import classification, classification_tasks, parameters, randn, relative
from ..systems import Inverted, Matrices, close, indefinite, rotated, spread, true_residual

SIZE = 60


def one(condition=1e4, rows=12, negative=0):
    """The same matrix for each row, one that is wrong by a factor of up to 2, and right-hand sides."""
    eigenvalues = spread(1, SIZE, [condition]) if not negative else indefinite(1, SIZE, negative)
    wrong = 2 ** (2 * torch.rand(1, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1)
    matrix, nearby = (rotated(values).expand(rows, SIZE, SIZE) for values in (eigenvalues, eigenvalues * wrong))
    return matrix, nearby, randn(1, rows, SIZE)


class Shared(Matrices):
    """One matrix for however many rows."""

    def __init__(self, matrix):
        super().__init__(matrix[:1])
        self.products = 0

    def matvec(self, v):
        self.products += len(v)
        return v @ self.matrices[0].mT


class Near(Inverted):
    """That knows its inverse."""

    def __init__(self, matrix):
        super().__init__(matrix[:1])

    def inverse(self, v):
        return v @ self.inverses[0].mT


@pytest.mark.parametrize("helped", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("rows", [1, 2, 12, SIZE, SIZE + 7])
def test_it_is_the_dense_solution(rows, helped):
    matrix, nearby, b = one(rows=rows)
    solution = BlockCG(1e-10, preconditioner=Near(nearby) if helped else None).solve(Shared(matrix), b)
    assert bool(solution.report.converged.all())
    assert float(true_residual(matrix, solution.value, b).max()) <= 1e-10
    assert close(solution.value, matrix, b) < 1e-5
    assert solution.report.solver == ("preconditioned block cg" if helped else "block cg")


def test_one_row_takes_the_iterations_of_plain_conjugate_gradients():
    matrix, nearby, b = one(condition=300, rows=1)
    for near in (None, Near(nearby)):
        block, plain = (kind(1e-8, preconditioner=near).solve(Shared(matrix), b) for kind in (BlockCG, CG))
        assert abs(block.report.iterations - plain.report.iterations) <= 1
        assert relative(block.value, plain.value) < 1e-7


def test_together_they_take_fewer_products():
    matrix, _, b = one()
    block, plain = Shared(matrix), Shared(matrix)
    assert bool(BlockCG(1e-8).solve(block, b).report.converged.all())
    assert bool(CG(1e-8).solve(plain, b).report.converged.all())
    assert block.products < plain.products / 3


def test_rows_may_depend_on_each_other_and_be_nothing():
    matrix, _, b = one(rows=5)
    b = torch.stack([b[0], b[1], b[0], 0 * b[0], b[0] + 1e-9 * b[2], 1e6 * b[3], 1e-6 * b[4]])
    matrix = matrix[:1].expand(len(b), SIZE, SIZE)
    solution = BlockCG(1e-9).solve(Shared(matrix), b)
    assert bool(solution.report.converged.all())
    assert float(true_residual(matrix, solution.value, b).nan_to_num(0).max()) <= 1e-9
    assert not solution.value[3].any() and relative(solution.value[2], solution.value[0]) < 1e-9


def test_rows_that_are_done_take_no_products():
    """One right-hand side is an eigenvector, which a single product solves."""
    matrix, _, b = one(rows=2)
    b[0] = torch.linalg.eigh(matrix[0])[1][:, 0]
    operator = Shared(matrix)
    report = BlockCG(1e-8).solve(operator, b).report
    assert bool(report.converged.all())
    assert operator.products <= report.iterations + 4  # 1 of its own, and 2 that check the results


def test_negative_curvature_refuses_all_rows():
    matrix, _, b = one(negative=3)
    report = BlockCG(1e-8).solve(Shared(matrix), b).report
    assert bool(report.refused.all()) and float(report.smallest_curvature.max()) <= 0
    assert float(report.smallest_curvature.min()) >= float(torch.linalg.eigvalsh(matrix[0])[0]) - 1e-9


def test_what_is_no_number_is_not_converged():
    matrix, _, b = one(rows=3)
    wrong = matrix.clone()
    wrong[0, 0, 0] = torch.nan
    assert not bool(BlockCG(1e-8).solve(Shared(wrong), b).report.converged.any())


def test_float32():
    matrix, nearby, b = one(condition=300)
    solution = BlockCG(1e-4, preconditioner=Near(nearby.float())).solve(Shared(matrix.float()), b.float())
    assert solution.value.dtype == torch.float32 and bool(solution.report.converged.all())
    assert float(true_residual(matrix, solution.value, b).max()) < 1.1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_are_orthonormal_and_span_the_rows(dtype):
    basis, mixed = randn(0, 3, SIZE), randn(1, 8, 3)
    rows = (mixed @ basis * 10.0 ** torch.arange(-4, 4).unsqueeze(1)).to(dtype)
    found = orthonormal(rows).double()
    assert found.shape == (3, SIZE)
    assert relative(found @ found.mT, torch.eye(3, dtype=torch.float64)) < 1e-4
    left = rows.double() - rows.double() @ torch.linalg.pinv(found) @ found
    assert bool((left.norm(dim=-1) <= 1e-4 * rows.double().norm(dim=-1)).all())


# ---- what few samples are like --------------------------------------------------------------------------------------


def sampled(h, count, seed):
    """``SᵀS`` of so many rows with mean H."""
    rows = randn(seed, count, len(h)) @ torch.linalg.cholesky(h).mT / count**0.5
    solved_tasks = SimpleNamespace(settings=SimpleNamespace(ranks=ALONE), lam=rows[0])
    return SampledRows(rows, torch.arange(count), solved_tasks, count, "")


@pytest.mark.parametrize("count", [40, 80, 400])
def test_a_sample_acts_as_if_more_had_been_added(count):
    """Seen in the mean of the inverse itself, over many samples."""
    size, shift = 100, 0.05
    h = rotated(torch.logspace(-3, 1, size, dtype=torch.float64).unsqueeze(0))[0]
    eye = torch.eye(size, dtype=torch.float64)
    samples = [sampled(h, count, seed) for seed in range(200)]
    mean = torch.stack([shift * torch.linalg.inv(s.rows.mT @ s.rows + shift * eye) for s in samples]).mean(0)
    kappa = sum(s.effective_damping(shift) for s in samples) / len(samples)
    told = kappa * torch.linalg.inv(h + kappa * eye)
    untold = shift * torch.linalg.inv(h + shift * eye)
    assert kappa > shift
    assert relative(mean, told) < 0.03 and relative(mean, told) < relative(mean, untold) / 5


def test_it_preconditions_as_what_it_acts_as():
    """Few rows leave most directions to the multiple of the identity, which is to be as large as those are."""
    size, shift = 300, 0.01
    h = rotated(torch.logspace(-3, 1, size, dtype=torch.float64).unsqueeze(0))
    few, system = sampled(h[0], 60, 0), h + shift * torch.eye(size, dtype=torch.float64)
    b = randn(0, 1, size)

    def iterations(added):
        return CG(1e-4, preconditioner=LowRankPlusIdentity(few, added)).solve(Shared(system), b).report.iterations

    assert iterations(few.effective_damping(shift)) < 0.7 * iterations(shift)


def test_a_sum_that_is_no_sample_acts_as_what_it_is():
    problem = BilevelProblem(classification, classification, Unrolled(0.1, 2), l2=0.5)
    hessian = problem.total_hessian(parameters(), classification_tasks(2), "gauss-newton")
    assert hessian.operator.effective_damping(0.3) == 0.3
    assert hessian.solve(randn(0, len(hessian.solved_tasks.lam))).report.solver == "preconditioned block cg"
