"""Losses with known outputs: further terms and coupled samples in Gauss–Newton matrices, against dense ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l_influence.bilevel import EKFAC, BilevelProblem, OutputLoss, Proximal, Sketch, Subsample, Task, Unrolled
from l2l_influence.bilevel.inner.inverses.ekfac import EKFACPlusIdentity
from l2l_influence.bilevel.item_gradients import QueryGradient
from l2l_influence.errors import LossStructureError

from ..reference_problems.autograd import Named, Reference, UnrolledReference, generator, randn, relative

DELTA = 2.0


def parameters() -> Named:
    return {"body": 0.5 * randn(0, 4, 3), "bias": 0.3 * randn(1, 4), "head": 0.5 * randn(2, 3, 4)}


class Outputs(OutputLoss):
    """A network of two linear layers, the second without a bias."""

    def outputs(self, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        p = {**lam, **theta}
        return F.linear(torch.tanh(F.linear(x, p["body"], p["bias"])), p["head"])


class Coupled(Outputs):
    """One term for the whole set, convex in all outputs together, after n zeros."""

    coupled = True
    theta_first = True

    def from_outputs(self, outputs: Tensor, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        pairs = outputs @ outputs.new_tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]).T
        term = pairs.flatten().logsumexp(0) - outputs.gather(1, y.unsqueeze(1)).mean() + outputs.mean(0).square().sum()
        return torch.cat([outputs.new_zeros(len(y)), term.unsqueeze(0)])


class Undeclared(Coupled):
    """The same, without saying so."""

    coupled = False


class Extra(Outputs):
    """Cross-entropy, a term of the set that is a sum over rows, and a penalty that does not depend on outputs."""

    def from_outputs(self, outputs: Tensor, lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        further = torch.stack([outputs.square().mean(), theta["head"].square().sum()])
        return torch.cat([F.cross_entropy(outputs, y, reduction="none"), further])


def tasks(further: int, count: int = 2) -> list[Task]:
    def pair(seed: int, n: int) -> tuple[Tensor, Tensor]:
        return randn(seed, n, 3), torch.randint(0, 3, (n,), generator=generator(seed))

    def weights(seed: int, n: int) -> Tensor:
        return torch.rand(n + further, generator=generator(seed), dtype=torch.float64) + 0.3

    return [
        Task(pair(seed, 5), pair(seed + 1, 4), weights(seed, 5), weights(seed + 1, 4))
        for seed in range(10, 10 * count + 10, 10)
    ]


CASES = pytest.mark.parametrize("loss, further", [(Coupled(), 1), (Extra(), 2)], ids=["coupled", "further terms"])


def dense_curvature(loss: OutputLoss, truth: Reference, theta: Tensor, samples: tuple[Tensor, Tensor], w: Tensor):
    """The outputs' Jacobian by (λ, θ), and the Hessian of the weighted loss by all outputs of a task."""
    named = (truth.layout.unravel(truth.lam), truth.part.unravel(theta))
    outputs = loss.outputs(*named, *samples)

    def value(flat: Tensor) -> Tensor:
        return (w * loss.from_outputs(flat.view_as(outputs), *named, *samples)).sum()

    def by_both(lam: Tensor, theta: Tensor) -> Tensor:
        return loss.outputs(truth.layout.unravel(lam), truth.part.unravel(theta), *samples).flatten()

    jacobian = torch.cat(torch.autograd.functional.jacobian(by_both, (truth.lam, theta)), dim=1)
    return jacobian, torch.autograd.functional.hessian(value, outputs.flatten())


def reference(loss: OutputLoss, kind: object) -> Reference:
    if isinstance(kind, Unrolled):
        return UnrolledReference(loss, parameters(), ["bias", "head"], kind.lr, kind.steps)
    return Reference(loss, parameters(), ["bias", "head"], DELTA)


def gauss_newton(loss: OutputLoss, truth: Reference, task: Task) -> Tensor:
    theta = truth.solve(truth.lam, task)
    z = truth.chain(task, theta)
    jacobian, curvature = dense_curvature(loss, truth, theta, task.query, task.query_weights)
    return z.T @ jacobian.T @ curvature @ jacobian @ z


KINDS = pytest.mark.parametrize("kind", [Unrolled(0.1, 2), Proximal(DELTA, "cg", 1e-12)], ids=["unrolled", "proximal"])
EXECUTIONS = pytest.mark.parametrize("execution", ["mapped", "one-by-one"])


@EXECUTIONS
@KINDS
@CASES
def test_gauss_newton_products(loss: OutputLoss, further: int, kind: object, execution: str) -> None:
    data, truth, v = tasks(further), reference(loss, kind), randn(3, 28)
    problem = BilevelProblem(loss, loss, kind, 0.5, ["bias", "head"], execution=execution)
    expected = sum(gauss_newton(loss, truth, task) @ v for task in data)
    assert relative(problem.total_hessian(parameters(), data, "gauss-newton") @ v[: truth.layout.size], expected) < 1e-8


@EXECUTIONS
@CASES
def test_a_sketch_has_the_gauss_newton_matrix_as_its_mean(loss: OutputLoss, further: int, execution: str) -> None:
    """With the roots R as they are, ``Σ_k`` over the columns in place of random signs gives the matrix exactly."""
    (task,), kind = tasks(further, 1), Unrolled(0.1, 2)
    truth = reference(loss, kind)
    problem = BilevelProblem(loss, loss, kind, 0.5, ["bias", "head"], execution=execution)
    solved = problem.at(parameters(), [task]).one(0)
    root = solved.outer.output_curvature_root(solved.lam, solved.solution.point, solved.batch.query)
    assert root.shape == ((1, 1, 12, 12) if loss.coupled else (1, 4, 3, 3))
    rows = [
        solved.solution.total(solved.outer.outputs_dot_of_one, solved.batch.query, cotangent)[0][0]
        for j in range(root.shape[1])
        for cotangent in _cotangents(root, j)
    ]
    expected = gauss_newton(loss, truth, task)
    assert relative(sum(torch.outer(row, row) for row in rows), expected) < 1e-9
    sketch = problem.total_hessian(parameters(), [task], Sketch(samples=400))
    v = randn(5, truth.layout.size)
    assert relative(sketch @ v, expected @ v) < 0.4


def _cotangents(root: Tensor, j: int) -> list[Tensor]:
    """The columns of R_j, as cotangents of all outputs."""
    cotangents = []
    for k in range(root.shape[3]):
        cotangent = torch.zeros_like(root[..., 0])
        cotangent[:, j] = root[:, j, :, k]
        cotangents.append(cotangent)
    return cotangents


@EXECUTIONS
@CASES
def test_the_gram_inverse_is_that_of_the_dense_gauss_newton_matrix(
    loss: OutputLoss, further: int, execution: str
) -> None:
    data = tasks(further)
    problem = BilevelProblem(loss, loss, Proximal(DELTA, "gram", 1e-6), 0.5, ["bias", "head"], execution=execution)
    solved = next(problem.at(parameters(), data).microbatches())
    v = randn(6, 2, solved.solution.theta.shape[1])
    truth = reference(loss, problem.kind)
    for i, task in enumerate(data):
        theta = solved.solution.theta[i]
        jacobian, curvature = dense_curvature(loss, truth, theta, task.support, task.support_weights)
        by_theta = jacobian[:, truth.layout.size :]
        matrix = by_theta.T @ curvature @ by_theta + DELTA * torch.eye(len(theta), dtype=torch.float64)
        assert relative(solved.solution.inverse(v)[i], torch.linalg.solve(matrix, v[i])) < 1e-9


@EXECUTIONS
@CASES
def test_ekfac_has_the_trace_of_the_dense_gauss_newton_matrix(loss: OutputLoss, further: int, execution: str) -> None:
    """Its eigenvalues are the diagonal of that matrix in an orthonormal basis of each block."""
    (task,) = tasks(further, 1)
    problem = BilevelProblem(loss, loss, Unrolled(0.1, 1), 0.5, ["bias", "head"], execution=execution)
    solved = problem.at(parameters(), [task]).one(0)
    theta = solved.solution.theta
    operator, _ = EKFAC()(solved.solution.problem, theta, DELTA, 1e-6)
    assert isinstance(operator, EKFACPlusIdentity)
    size, truth = theta.shape[1], reference(loss, Unrolled(0.1, 1))
    found = torch.stack([operator.matvec(row.unsqueeze(0))[0] for row in torch.eye(size, dtype=torch.float64)])
    jacobian, curvature = dense_curvature(loss, truth, theta[0], task.support, task.support_weights)
    by_theta = jacobian[:, truth.layout.size :]
    matrix = by_theta.T @ curvature @ by_theta
    torch.testing.assert_close(found.trace() - DELTA * size, matrix.trace(), rtol=1e-9, atol=0.0)
    bias = slice(0, 4)  # forms a dense block, which is exact
    torch.testing.assert_close(found[bias, bias] - DELTA * torch.eye(4).double(), matrix[bias, bias])


def test_the_empirical_fisher_matrix_needs_a_sum_over_samples() -> None:
    for loss, further in ((Coupled(), 1), (Extra(), 2)):
        problem = BilevelProblem(loss, loss, Proximal(DELTA, EKFAC("empirical"), 1e-4), 0.5, ["bias", "head"])
        with pytest.raises(LossStructureError, match="empirical Fisher"):
            problem.solve_inner(parameters(), tasks(further, 1)[0])


@EXECUTIONS
def test_coupling_that_is_not_declared_is_refused(execution: str) -> None:
    problem = BilevelProblem(Undeclared(), Undeclared(), Unrolled(0.1, 1), 0.5, ["head"], execution=execution)
    with pytest.raises(LossStructureError, match="couples the samples.*coupled = True"):
        problem.total_hessian(parameters(), tasks(1), Sketch())


def test_the_uncertainty_of_coupled_samples_is_refused() -> None:
    problem = BilevelProblem(Coupled(), Coupled(), Unrolled(0.1, 1), 0.5, ["head"])
    with pytest.raises(LossStructureError, match="couples its samples"):
        problem.total_hessian(parameters(), tasks(1, 3), Subsample("hessian", 2, "uncertainty"))


def test_the_weights_of_further_terms_count() -> None:
    """Without weight, a further term has no curvature and no gradient."""
    (task,), loss = tasks(2, 1), Extra()
    quiet = replace(task, query_weights=torch.cat([task.query_weights[:4], torch.zeros(2)]))
    problem = BilevelProblem(loss, loss, Unrolled(0.1, 2), 0.5, ["bias", "head"])
    solved, truth = problem.at(parameters(), [quiet]).one(0), reference(loss, Unrolled(0.1, 2))
    v = randn(4, truth.layout.size)
    items = sum(QueryGradient().gradient(solved, j)[0] for j in range(4))
    assert relative(items, solved.total_gradient[0]) < 1e-12
    expected = gauss_newton(loss, truth, quiet) @ v
    assert relative(problem.total_hessian(parameters(), [quiet], "gauss-newton") @ v, expected) < 1e-8


@pytest.mark.parametrize("loss", [Coupled(), Extra()], ids=["theta first", "reads both"])
def test_a_loss_is_asked_whether_it_reads_lambda(loss: OutputLoss) -> None:
    problem = BilevelProblem(loss, loss, Unrolled(0.1, 1), 0.5)
    settings = problem.at(parameters(), tasks(1)).settings
    assert settings.outer.direct is not loss.theta_first
    assert loss.reads("anything")
