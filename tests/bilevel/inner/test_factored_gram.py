"""The rows of the inner Gauss–Newton matrix, in factors or not, against dense algebra."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from learn2learn.vision.models import OmniglotFC
from torch import nn
from torch.func import functional_call

from l2l_influence.bilevel import FunctionalModel, Layout, ModelLoss, Task
from l2l_influence.bilevel.inner import InnerProblem
from l2l_influence.bilevel.inner.inverses.gram import gauss_newton_rows, rows_nbytes
from l2l_influence.bilevel.inner.inverses.inverse import INVERSES, pick
from l2l_influence.bilevel.objective import Objective
from l2l_influence.bilevel.solvers import ClosedForm, LowRank, OuterProducts, SideBySide
from l2l_influence.bilevel.task import stack
from l2l_influence.errors import LossStructureError, NegativeCurvatureError

from ...reference_problems.autograd import gauss_newton_factor, randn, relative

DELTA, WAYS, N, TASKS = 0.3, 3, 5, 3


def cross_entropy(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


# ---- models --------------------------------------------------------------------------------------------------------


def fc():
    """Batch statistics couple the samples."""
    return OmniglotFC(24, WAYS, sizes=[20, 15])


class Tied(nn.Module):
    """One wide weight in two calls, one of them transposed; another under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(24, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.third.weight = self.second.weight
        self.wide, self.head = nn.Linear(24, 20), nn.Linear(20, WAYS)

    def forward(self, x):
        x = torch.tanh(self.first(x)) @ self.first.weight
        return self.head(self.third(torch.tanh(self.second(torch.tanh(self.wide(x))))))


class Twice(nn.Module):
    """The same module called twice; an in-place activation; a bias that two layers share."""

    def __init__(self):
        super().__init__()
        self.step, self.left, self.right = nn.Linear(24, 24), nn.Linear(24, 16), nn.Linear(24, 16)
        self.right.bias, self.head = self.left.bias, nn.Linear(16, WAYS)

    def forward(self, x):
        x = F.relu(self.step(torch.tanh(self.step(x))), inplace=True)
        return self.head(torch.tanh(self.left(x) + self.right(2 * x)))


class Tokens(nn.Module):
    """Linear layers over positions: N is the number of samples times theirs."""

    def __init__(self):
        super().__init__()
        self.token, self.mix = nn.Linear(30, 25, bias=False), nn.Linear(25, 22)
        self.norm, self.head = nn.LayerNorm(22), nn.Linear(22, WAYS)

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.mix(torch.tanh(self.token(x))))).mean(1))


def conv():
    """A wide layer behind convolutions, whose weights are written out."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(36, 20),
        nn.Tanh(),
        nn.Linear(20, WAYS),
    )


def narrow():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS))


SHAPES = {Tokens: (2, 30), conv: (1, 9, 9), narrow: (4,)}
WIDTHS = {fc: [480, 300], Tied: [480], Twice: [384, 384], Tokens: [750, 550], conv: [720], narrow: []}
"""Of the weights that are kept in factors: their numbers of entries."""

MODELS = pytest.mark.parametrize("build", list(WIDTHS))


class Case:
    """Tasks at a θ of their own each, and their Gauss–Newton matrices by a Jacobian of the module."""

    def __init__(self, build, keys=None, together=False, criterion=cross_entropy, dtype=torch.float64, loss=None):
        torch.manual_seed(0)
        self.model = build().to(dtype).train()
        with torch.no_grad():  # weights as after training: batch normalisation makes tiny ones violently curved
            for parameter in self.model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        function = FunctionalModel(self.model)
        self.lam, self.layout = function.parameters, Layout(function.parameters)
        self.part = self.layout.keep(keys or self.lam)
        self.objective = Objective(loss or ModelLoss(function, criterion), self.layout, self.part)
        weights, shape = torch.linspace(0.2, 0.9, N), SHAPES.get(build, (24,))
        pairs = [(randn(10 + i, N, *shape).to(dtype), torch.arange(N) % WAYS) for i in range(TASKS)]
        self.tasks = [Task(pair, pair, weights, together=together) for pair in pairs]
        self.rows = 2 * N if together else N
        prior = self.part.start(self.layout.ravel(self.lam))
        self.theta = prior + 0.1 * randn(5, TASKS, self.part.size).to(dtype)

    def problem(self, span=slice(None)):
        tasks, lam = self.tasks[span], self.layout.ravel(self.lam)
        samples = stack(tasks, list(range(len(tasks))), [1.0] * len(tasks), lam).support
        return InnerProblem(self.objective, lam, samples, self.theta[span], self.layout, self.part)

    def operator(self):
        return gauss_newton_rows(self.problem(), self.theta)

    def written_out(self):
        """The rows, ``[B, r, Q]``, in the order of the operator's."""
        problem = self.problem()
        rows = gauss_newton_factor(self.objective, problem.lam, self.theta, problem.samples)
        return rows.unflatten(1, (N, -1)).transpose(1, 2).flatten(1, 2)

    def matrices(self):
        """JᵀΛJ, ``[B, Q, Q]``."""
        return torch.stack([self._matrix(*pair) for pair in zip(self.tasks, self.theta, strict=True)])

    def _matrix(self, task, theta):
        x = task.support[0].repeat(self.rows // N, *[1] * (task.support[0].dim() - 1))
        module = copy.deepcopy(self.model)

        def outputs(theta):
            return functional_call(module, {**self.lam, **self.part.unravel(theta)}, (x,))[:N]

        j, p = torch.autograd.functional.jacobian(outputs, theta), outputs(theta).softmax(-1)
        bent = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        return torch.einsum("n,ncp,ncd,ndq->pq", task.support_weights.to(p), j, bent, j).detach()


def in_factors(operator):
    """How many entries the weights in factors have, one by one."""
    return [part.width for part in getattr(operator, "parts", []) if isinstance(part, OuterProducts)]


def check(case):
    """All that an operator of few rows can do, and its inverse."""
    operator, rows, matrices = case.operator(), case.written_out(), case.matrices()
    v, small = randn(6, TASKS, case.part.size), randn(7, *rows.shape[:2])
    assert operator.width == case.part.size
    assert relative(operator.project(v), torch.einsum("brq,bq->br", rows, v)) < 1e-10
    assert relative(operator.lift(small), torch.einsum("brq,br->bq", rows, small)) < 1e-10
    assert relative(operator.gram(), rows @ rows.mT) < 1e-10
    assert relative(operator.largest_eigenvalue(v, 500), torch.linalg.eigvalsh(matrices)[:, -1]) < 1e-6
    assert relative(operator.dense(v), matrices) < 1e-10
    shifted = matrices + DELTA * torch.eye(case.part.size, dtype=torch.float64)
    system = operator.plus_identity(DELTA)
    assert relative(system.matvec(v), torch.einsum("bpq,bq->bp", shifted, v)) < 1e-10
    assert relative(system.inverse(v), torch.linalg.solve(shifted, v)) < 1e-10
    return operator


# ---- exactness -------------------------------------------------------------------------------------------------------


@MODELS
def test_rows_are_those_of_dense_algebra(build):
    assert in_factors(check(Case(build))) == WIDTHS[build]


def test_the_head_alone():
    operator = check(Case(fc, ["features.1.1.linear.weight", "classifier.weight"]))
    assert in_factors(operator) == [300]


def test_samples_that_only_count_in_the_statistics():
    """Rows of the other set that go through the model, and through its layers, with a task's own."""
    check(Case(fc, together=True))


@pytest.mark.parametrize("columns", [1, 2, 7])
def test_chunks_of_the_gram_matrix_change_nothing(columns, monkeypatch):
    operator = Case(fc).operator()
    whole = operator.gram()
    monkeypatch.setattr("l2l_influence.bilevel.solvers.factors.CHUNK", columns * N)
    assert relative(operator.gram(), whole) < 1e-14


def written(lam, theta, x, y):
    """A loss by hand: a layer, a product that is none, and one of λ's own parameters in between."""
    p = {**lam, **theta}
    hidden = torch.tanh(F.linear(x, p["0.weight"], p["0.bias"]))
    return F.cross_entropy(hidden @ p["2.weight"].T + p["2.bias"], y, reduction="none")


def wide():
    return nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, WAYS))


@pytest.mark.parametrize("keys", [None, ["0.weight", "2.bias"]])
def test_a_loss_written_by_hand(keys):
    assert in_factors(check(Case(wide, keys, loss=written))) == [480]


def test_a_task_fares_alone_as_it_does_in_a_batch():
    case = Case(fc)
    v = randn(6, TASKS, case.part.size)
    together = case.operator().plus_identity(DELTA).inverse(v)
    for i in range(TASKS):
        span = slice(i, i + 1)
        alone = gauss_newton_rows(case.problem(span), case.theta[span]).plus_identity(DELTA)
        assert relative(alone.inverse(v[span])[0], together[i]) < 1e-12


@pytest.mark.parametrize("build", [fc, Tokens])
def test_float32(build):
    case, exact = Case(build, dtype=torch.float32), Case(build)
    exact.theta, v = case.theta.double(), randn(6, TASKS, case.part.size)
    problem = case.problem()
    operator, solver = INVERSES["gram"](problem, case.theta, DELTA, 1e-4)
    solution = solver.solve(operator, v.float())
    assert solution.value.dtype == torch.float32 and bool(solution.report.converged.all())
    left = v - exact.operator().plus_identity(DELTA).matvec(solution.value.double())
    assert float((left.norm(dim=-1) / v.norm(dim=-1)).max()) < torch.finfo(torch.float32).eps ** 0.5


# ---- what is kept ----------------------------------------------------------------------------------------------------


@MODELS
def test_memory_is_known_before_and_counted_after(build):
    case = Case(build)
    assert TASKS * rows_nbytes(case.problem(), N * WAYS) == case.operator().nbytes


def test_a_wide_network_takes_a_small_part_of_its_rows():
    case = Case(lambda: OmniglotFC(24, WAYS, sizes=[500, 400]))
    dense = TASKS * N * WAYS * case.part.size * 8
    assert case.operator().nbytes < dense / 20


def test_rows_are_one_tensor_where_no_factors_pay():
    assert isinstance(Case(narrow).operator(), LowRank)
    assert isinstance(Case(fc).operator(), SideBySide)


def test_auto_reckons_with_factors(monkeypatch):
    case = Case(fc)
    problem = case.problem()
    needed = rows_nbytes(problem, N * WAYS)
    assert needed < N * WAYS * case.part.size * 8 / 2

    def note():
        return pick("auto", problem)(problem, case.theta, DELTA, 1e-6)[0].note

    monkeypatch.setattr("l2l_influence.bilevel.inner.inverses.inverse.GRAM_BYTES", needed)
    assert note() == "gram (15 outputs a task)"
    monkeypatch.setattr("l2l_influence.bilevel.inner.inverses.inverse.GRAM_BYTES", needed - 1)
    assert note().startswith("cg (15 outputs a task, whose gram rows would take")


# ---- in use, and refused ---------------------------------------------------------------------------------------------


def test_it_preconditions_conjugate_gradients():
    case = Case(wide)
    problem, delta, v = case.problem(), 30.0, randn(6, TASKS, case.part.size)
    operator, solver = INVERSES["cg+gram"](problem, case.theta, delta, 1e-10)
    assert operator.note == "preconditioned cg (gram)" and isinstance(solver.preconditioner.low_rank, SideBySide)
    plain, alone = INVERSES["cg"](problem, case.theta, delta, 1e-10)
    found, expected = solver.solve(operator, v), alone.solve(plain, v)
    assert bool(found.report.converged.all()) and found.report.iterations < expected.report.iterations
    assert relative(found.value, expected.value) < 1e-9
    assert solver.nbytes == solver.preconditioner.nbytes > 0


def test_a_criterion_that_is_not_convex_is_refused():
    case = Case(fc, criterion=lambda outputs, y: -outputs.square().sum(-1))
    with pytest.raises(LossStructureError, match="not convex"):
        case.operator()


def test_a_loss_that_hides_its_outputs_is_refused():
    case = Case(wide, loss=lambda lam, theta, x, y: F.linear(x, theta["0.weight"]).square().sum(-1))
    with pytest.raises(LossStructureError, match="outputs"):
        case.operator()


def test_a_system_that_is_next_to_singular_is_refused():
    left, right = 1e6 * torch.ones(1, 4, 2, 3), 1e6 * torch.ones(1, 2, 5)
    with pytest.raises(NegativeCurvatureError, match="no Cholesky factor"):
        OuterProducts(left, right).plus_identity(1e-9)
    assert ClosedForm().solve(OuterProducts(left / 1e6, right / 1e6).plus_identity(1.0), randn(1, 1, 15).float())


def slopes(lam, theta, x, y):
    by_inputs = torch.func.grad(lambda x: torch.tanh(F.linear(x, theta["w"])).sum())(x)
    return F.mse_loss(by_inputs[:, :1], y, reduction="none").sum(1)


def rows_by_map(lam, theta, x, y):
    outputs = torch.func.vmap(lambda row: torch.tanh(x @ row), out_dims=1)(theta["w"]) + F.linear(x, theta["w"])
    return F.mse_loss(outputs, y.expand_as(outputs), reduction="none").sum(1)


@pytest.mark.parametrize("loss", [slopes, rows_by_map])
def test_outputs_that_depend_on_a_weight_in_ways_not_seen_have_rows_written_out(loss):
    lam = {"w": 0.3 * randn(0, 40, 30)}
    layout = Layout(lam).keep(lam)
    objective, flat = Objective(loss, layout, layout), layout.ravel(lam)
    task = Task((randn(1, 3, 30), randn(2, 3, 1)), (randn(1, 3, 30), randn(2, 3, 1)))
    samples = stack([task], [0], [1.0], flat).support
    operator = gauss_newton_rows(InnerProblem(objective, flat, samples, flat[None], layout, layout), flat[None])
    rows, v = gauss_newton_factor(objective, flat, flat[None], samples)[0], randn(3, 1, layout.size)
    assert isinstance(operator, LowRank)
    assert relative(operator.matvec(v)[0], rows.T @ (rows @ v[0])) < 1e-10
