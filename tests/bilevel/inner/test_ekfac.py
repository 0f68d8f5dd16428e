"""EK-FAC against dense Gauss–Newton matrices, where theory makes them equal, and against curvlinops elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator
from learn2learn.vision.models import OmniglotCNN, OmniglotFC
from torch import nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, Layout, ModelLoss, Proximal, Task
from l2l_influence.bilevel.inner import InnerProblem
from l2l_influence.bilevel.inner.inverses.ekfac import EKFAC
from l2l_influence.bilevel.kfac import gradients as pseudo_gradients
from l2l_influence.bilevel.objective import Objective
from l2l_influence.bilevel.solvers import ClosedForm
from l2l_influence.bilevel.task import stack
from l2l_influence.errors import LossStructureError, UncoveredParameterError

from ...reference_problems.autograd import randn, relative

DELTA, WAYS, N = 0.3, 3, 7

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def cross_entropy(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def squared(outputs, y):
    return (outputs - torch.eye(WAYS).to(outputs)[y]).square().sum(-1)


# ---- models --------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Linear layers over positions, as in a token mixer."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Linear(4, 5), nn.Linear(5, WAYS, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(self.token(x))).mean(1)


class Mixing(nn.Module):
    """One sample's activations matter to one other sample, and no parameter tells."""

    def __init__(self, source, target):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, WAYS)
        self.mix = torch.eye(N, dtype=torch.float64)
        self.mix[target, source] = 0.5

    def forward(self, x):
        return self.second(self.mix @ torch.tanh(self.first(x)))


class Tied(nn.Module):
    """The same weight in two calls, one of them transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(4, WAYS)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) @ self.first.weight)


class Twice(nn.Module):
    """The same module called twice; an in-place activation; a bias that two layers share."""

    def __init__(self):
        super().__init__()
        self.step, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, WAYS), nn.Linear(4, WAYS)
        self.other.bias = self.head.bias

    def forward(self, x):
        x = F.relu(self.step(torch.tanh(self.step(x))), inplace=True)
        return self.head(x) + self.other(2 * x)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, WAYS))


def linear():
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6, bias=False), nn.Linear(6, WAYS))


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0)),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, (2, 1), dilation=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 1 * 4, WAYS),
    )


def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding="same", padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(4, 4, (2, 4), groups=4, padding="same", bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3, padding="valid"),
        nn.Flatten(),
        nn.Linear(2 * 3 * 4, WAYS),
    )


def normed():
    """Batch statistics, no affine parameters."""
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, WAYS))


def layer_norm():
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, WAYS))


def cnn():
    return OmniglotCNN(WAYS, hidden_size=4, layers=2)


def fc():
    return OmniglotFC(16, WAYS, sizes=[6, 5])


SHAPES = {conv: (2, 5, 6), grouped: (2, 5, 6), cnn: (1, 28, 28), fc: (16,), Shared: (3, 4)}


def make(build, seed=0):
    torch.manual_seed(seed)
    model = build().double()
    with torch.no_grad():  # learn2learn's own first weights are so small that batch normalisation bends violently
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model


class Case:
    """A model and its tasks, and each task's Gauss–Newton matrix by one backward pass of the module for each output."""

    def __init__(self, build, count=2, n=N, criterion=cross_entropy, keys=None, weights=None):
        self.model, self.criterion = make(build), criterion
        self.weights = torch.linspace(0.2, 0.9, n, dtype=torch.float64) if weights is None else weights
        shape = SHAPES.get(build, (4,))
        self.tasks = [self._task(randn(10 + i, n, *shape)) for i in range(count)]
        function = FunctionalModel(self.model)
        self.loss, self.lam = ModelLoss(function, criterion), function.parameters
        self.layout = Layout(self.lam)
        self.part = self.layout.keep(keys or self.lam)

    def _task(self, x):
        pair = (x, torch.arange(len(x)) % WAYS)
        return Task(pair, pair, self.weights)

    def problem(self, only=None):
        tasks = self.tasks if only is None else [self.tasks[only]]
        lam = self.layout.ravel(self.lam)
        samples = stack(tasks, list(range(len(tasks))), [1.0] * len(tasks), lam).support
        theta = self.part.start(lam).expand(len(tasks), -1)
        return InnerProblem(Objective(self.loss, self.layout, self.part), lam, samples, theta, self.layout, self.part)

    def operator(self, inverse, only=None):
        problem = self.problem(only)
        operator, solver = inverse(problem, problem.start, DELTA, 1e-8)
        assert solver == ClosedForm()
        return operator

    def curvature(self, i):
        """JᵀΛJ of the weighted sum of task i's losses, ``[Q, Q]``."""
        (x, y), model = self.tasks[i].support, copy.deepcopy(self.model)
        outputs = model(x)
        parameters = [parameter for name, parameter in model.named_parameters() if name in self.part.shapes]
        rows = [torch.autograd.grad(out, parameters, retain_graph=True) for out in outputs.flatten()]
        j = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).view(*outputs.shape, -1)
        bent = [
            torch.autograd.functional.hessian(lambda o, j=j: self.criterion(o[None], y[j : j + 1])[0], out)
            for j, out in enumerate(outputs.detach())
        ]
        return torch.einsum("n,ncp,ncd,ndq->pq", self.weights, j, torch.stack(bent), j)

    def entries(self, *names):
        at = self.part.unravel(torch.arange(self.part.size))
        return torch.cat([at[name].flatten() for name in names])


def dense(operator, case):
    """The matrices without their multiple of the identity, ``[B, Q, Q]``."""
    like = torch.zeros(len(operator.blocks[0].values), case.part.size, dtype=torch.float64)
    return operator.dense(like) - DELTA * torch.eye(case.part.size, dtype=torch.float64)


def block_diagonal(matrix, blocks):
    out = torch.zeros_like(matrix)
    for block in blocks:
        for group in block.index.flatten(1):
            at = group.unsqueeze(1), group.unsqueeze(0)
            out[at] = matrix[at]
    return out


def basis(block, i):
    """A block's U for each group of task i, its rows ordered as ``block.index``: ``[groups, e·d, p·r]``."""
    return torch.stack([torch.kron(a, b) for a, b in zip(block.left[i], block.right[i], strict=True)])


def errors(found, expected):
    return [relative(a, b) for a, b in zip(found, expected, strict=True)]


EVERY_MODEL = [mlp, linear, conv, grouped, Shared, normed, layer_norm, cnn, fc, Tied, Twice]


# ---- where theory makes it exact -------------------------------------------------------------------------------------


def test_deep_linear_nets_with_squared_loss_are_exact_block_by_block():
    """The gradients by a layer's outputs are then the same for all samples, up to the weights: G factors out."""
    case = Case(linear, criterion=squared)
    operator = case.operator(EKFAC())
    assert len(operator.blocks) == 3
    expected = [block_diagonal(case.curvature(i), operator.blocks) for i in range(2)]
    assert max(errors(dense(operator, case), expected)) < 1e-12


def test_a_single_sample_is_exact_block_by_block():
    case = Case(mlp, n=1)
    operator = case.operator(EKFAC())
    expected = [block_diagonal(case.curvature(i), operator.blocks) for i in range(2)]
    assert max(errors(dense(operator, case), expected)) < 1e-12


def test_elsewhere_it_is_an_approximation():
    case = Case(mlp)
    operator = case.operator(EKFAC())
    expected = [block_diagonal(case.curvature(i), operator.blocks) for i in range(2)]
    assert min(errors(dense(operator, case), expected)) > 1e-2


@pytest.mark.parametrize("build", EVERY_MODEL)
def test_the_diagonal_in_the_eigenbasis_is_that_of_the_curvature(build):
    """Also where samples interact, and where some of them weigh nothing; and the basis leaves nothing out."""
    case = Case(build, weights=torch.tensor([0.5, 0.0, 1.0, 0.2, 0.0, 0.7, 0.3], dtype=torch.float64))
    operator = case.operator(EKFAC())
    for i in range(2):
        curvature = case.curvature(i)
        for block in operator.blocks:
            for index, u, values in zip(block.index.flatten(1), basis(block, i), block.values[i], strict=True):
                inside = curvature[index][:, index]
                assert relative(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype)) < 1e-12
                assert relative(values.flatten(), (u.T @ inside @ u).diagonal()) < 1e-10
                assert abs(values.sum() - inside.trace()) < 1e-10 * inside.trace()


# ---- against curvlinops ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fisher", "theirs"), [("true", "type-2"), ("empirical", "empirical")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("build", [mlp, linear, conv, Shared])
def test_it_agrees_with_curvlinops(build, reduction, fisher, theirs):
    """A mean loss is w = 1/n here and a reduction there."""
    weights = torch.full((N,), 1.0 if reduction == "sum" else 1 / N, dtype=torch.float64)
    case = Case(build, weights=weights)
    operator = case.operator(EKFAC(fisher))
    v = randn(5, 2, case.part.size)
    products, solutions = operator.matvec(v) - DELTA * v, operator.inverse(v)
    for i, task in enumerate(case.tasks):
        parameters = list(case.model.parameters())
        oracle = EKFACLinearOperator(
            case.model,
            nn.CrossEntropyLoss(reduction=reduction),
            parameters,
            [task.support],
            fisher_type=theirs,
            separate_weight_and_bias=False,
        )
        damped = KFACInverseLinearOperator(oracle, damping=DELTA, use_exact_damping=True)
        assert relative(products[i], oracle @ v[i]) < 1e-10
        assert relative(solutions[i], damped @ v[i]) < 1e-10


# ---- coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", EVERY_MODEL)
def test_every_entry_is_in_exactly_one_block(build):
    case = Case(build, count=1)
    blocks = case.operator(EKFAC()).blocks
    covered = torch.cat([block.index.flatten() for block in blocks]).sort().values
    assert torch.equal(covered, torch.arange(case.part.size))
    assert sorted(name for block in blocks for name in block.names) == sorted(case.part.shapes)


@pytest.mark.parametrize(
    ("build", "tensors"),
    [(cnn, "6 of 10"), (fc, "6 of 10"), (layer_norm, "4 of 6"), (Tied, "2 of 4"), (Twice, "2 of 5")],
)
def test_what_is_no_layers_is_a_dense_gauss_newton_block(build, tensors):
    case = Case(build)
    operator = case.operator(EKFAC())
    matrices, rest = dense(operator, case), [block for block in operator.blocks if not block.kronecker]
    assert rest and f" {tensors} tensors" in operator.note and operator.note.endswith("dense blocks: the rest")
    for i in range(2):
        curvature = case.curvature(i)
        for block in rest:
            index = case.entries(*block.names)
            assert relative(matrices[i][index][:, index], curvature[index][:, index]) < 1e-10


def test_a_module_s_parameters_share_a_dense_block():
    blocks = Case(cnn).operator(EKFAC()).blocks
    rest = [set(block.names) for block in blocks if not block.kronecker]
    assert rest == [{f"base.{i}.normalize.weight", f"base.{i}.normalize.bias"} for i in range(2)]


@pytest.mark.parametrize(
    ("keys", "kronecker"),
    [
        (["classifier.weight", "classifier.bias"], ["classifier.weight", "classifier.bias"]),
        (["classifier.weight"], ["classifier.weight"]),
        (["classifier.bias"], []),
        (["base.0.conv.weight", "base.1.normalize.weight", "classifier.bias"], ["base.0.conv.weight"]),
    ],
)
def test_theta_may_be_a_part_of_lambda(keys, kronecker):
    case = Case(cnn, keys=keys)
    operator = case.operator(EKFAC())
    assert [name for block in operator.blocks if block.kronecker for name in block.names] == kronecker
    assert sorted(name for block in operator.blocks for name in block.names) == sorted(keys)
    for i in range(2):
        assert abs(dense(operator, case)[i].trace() / case.curvature(i).trace() - 1) < 1e-10


def test_a_parameter_that_is_not_used_keeps_its_place():
    class Spare(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    case = Case(lambda: Spare(nn.Linear(4, WAYS), nn.Linear(4, 2)))
    matrices, unused = dense(case.operator(EKFAC()), case), case.entries("1.weight", "1.bias")
    assert float(matrices.norm()) > 1
    assert float(matrices[:, unused].norm()) < 1e-14


def test_a_hand_written_loss_is_as_good_as_a_module():
    lam = {"w": randn(0, 5, 4), "b": randn(1, 5), "head": randn(2, 5, WAYS)}
    layout = Layout(lam).keep(lam)
    twin = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS, bias=False)))
    with torch.no_grad():
        for parameter, value in zip(twin.parameters(), (lam["w"], lam["b"], lam["head"].T), strict=True):
            parameter.copy_(value)

    def loss(lam, theta, x, y):
        hidden = torch.tanh(F.linear(x, theta["w"], bias=theta["b"]))
        return F.cross_entropy(hidden @ theta["head"], y, reduction="none")

    case = Case(mlp)
    case.model, case.loss, case.layout, case.part, case.lam = twin, loss, layout, layout, lam
    operator = case.operator(EKFAC())
    assert [list(block.names) for block in operator.blocks] == [["w", "b"], ["head"]]
    first = dense(operator, case)[0]
    case.loss = ModelLoss(FunctionalModel(twin), cross_entropy)
    case.lam = case.loss.model.parameters
    case.layout = case.part = Layout(case.lam).keep(case.lam)
    body = slice(0, 25)
    assert relative(first[body, body], dense(case.operator(EKFAC()), case)[0][body, body]) < 1e-12


# ---- samples together or apart ---------------------------------------------------------------------------------------


def gradients_of(case):
    problem = case.problem(0)
    residuals = problem.objective.output_curvature_root(problem.lam, problem.start, problem.samples)[0].permute(2, 0, 1)
    function, x = case.loss.model, problem.samples.x[0]
    return pseudo_gradients.PseudoGradients(lambda theta: function(theta, x), case.lam, residuals)


@pytest.mark.parametrize(
    ("build", "together"), [(mlp, True), (conv, True), (Shared, True), (normed, False), (fc, False)]
)
def test_samples_are_pulled_back_together_only_where_they_do_not_interact(build, together):
    assert gradients_of(Case(build)).together is together


@pytest.mark.parametrize("source", range(N))
def test_any_two_samples_that_interact_are_found(source):
    for target in set(range(N)) - {source}:
        case = Case(lambda target=target: Mixing(source, target), count=1)
        assert not gradients_of(case).together
        assert abs(dense(case.operator(EKFAC()), case)[0].trace() / case.curvature(0).trace() - 1) < 1e-10


@pytest.mark.parametrize("build", [conv, cnn])
def test_chunks_change_nothing(build, monkeypatch):
    case = Case(build)
    whole = dense(case.operator(EKFAC()), case)
    monkeypatch.setattr(pseudo_gradients, "ENTRIES_AT_ONCE", 1)
    assert max(errors(dense(case.operator(EKFAC()), case), whole)) < 1e-12


# ---- sampled Fisher --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [mlp, fc])
def test_sampling_tends_to_the_true_fisher_at_the_monte_carlo_rate(build):
    case = Case(build, count=1)
    true = dense(case.operator(EKFAC()), case)[0]

    def error(draws):
        found = [dense(case.operator(EKFAC("mc", draws, seed)), case)[0] for seed in range(6)]
        return sum(float((one - true).square().sum()) for one in found) ** 0.5 / float(true.norm()) / 6**0.5

    few, many = error(8), error(8 * 36)
    assert few / 12 < many < few / 3
    assert many < 0.1


@pytest.mark.parametrize("fisher", ["true", "mc", "empirical"])
def test_a_batch_of_tasks_is_its_tasks_one_by_one(fisher):
    case = Case(cnn, count=3)
    inverse = EKFAC(fisher, samples=2, seed=5)
    v = randn(3, 3, case.part.size)
    together = case.operator(inverse)
    for i in range(3):
        alone = case.operator(inverse, only=i)
        assert relative(together.matvec(v)[i], alone.matvec(v[i : i + 1])[0]) < 1e-12
        assert relative(together.inverse(v)[i], alone.inverse(v[i : i + 1])[0]) < 1e-12


def test_draws_depend_on_the_seed_and_the_task_alone():
    case = Case(mlp)
    v = randn(3, 2, case.part.size)
    products = [case.operator(EKFAC("mc", 2, seed)).matvec(v) for seed in (1, 1, 2)]
    assert torch.equal(products[0], products[1])
    assert relative(products[0], products[2]) > 1e-3
    signs = [EKFAC("mc")._signs(task.support[0], (N, WAYS)) for task in case.tasks]
    assert not torch.equal(*signs)


# ---- the operator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [mlp, conv, grouped, cnn, fc])
@pytest.mark.parametrize("fisher", ["true", "mc", "empirical"])
def test_the_inverse_inverts(build, fisher):
    case = Case(build)
    operator = case.operator(EKFAC(fisher))
    v = randn(3, 2, case.part.size)
    product = operator.matvec(v)
    assert relative(operator.inverse(product), v) < 1e-10
    assert relative(operator.matvec(operator.inverse(v)), v) < 1e-10
    assert torch.equal(product, operator.matvec(v))
    assert bool(((v * product).sum(-1) >= operator.floor * v.square().sum(-1)).all())
    assert operator.shift == operator.floor == DELTA and operator.nbytes > 0


def test_float32_at_real_size():
    torch.manual_seed(0)
    function = FunctionalModel(OmniglotCNN(5))
    lam = function.parameters
    layout = Layout(lam).keep(lam)
    tasks = [Task((x, torch.arange(5)), (x, torch.arange(5))) for x in randn(1, 2, 5, 1, 28, 28).float()]
    samples = stack(tasks, [0, 1], [1.0, 1.0], layout.ravel(lam)).support
    start = layout.ravel(lam).expand(2, -1)
    objective = Objective(ModelLoss(function, cross_entropy), layout, layout)
    problem = InnerProblem(objective, layout.ravel(lam), samples, start, layout, layout)
    operator, solver = EKFAC()(problem, start, 0.5, 1e-3)
    report = solver.solve(operator, randn(2, 2, layout.size).float()).report
    assert bool(report.converged.all()) and report.dtype == torch.float32
    assert "10 of 18 tensors, 99.5 % of entries" in operator.note


def test_total_gradients_where_it_is_exact():
    """One layer and squared loss: EK-FAC is the Hessian itself, and so is the dense inverse."""
    case = Case(lambda: nn.Linear(4, WAYS), criterion=squared)

    def gradient(inverse):
        problem = BilevelProblem(case.loss, case.loss, Proximal(DELTA, inverse), 0.1)
        return case.layout.ravel(problem.total_gradient(case.lam, case.tasks[0]))

    assert relative(gradient(EKFAC()), gradient("dense")) < 1e-9


def test_the_user_s_module_and_random_state_stay_as_they_were():
    case = Case(cnn)
    before = copy.deepcopy(case.model.state_dict())
    parameters, modes = list(case.model.parameters()), [module.training for module in case.model.modules()]
    random = torch.get_rng_state()
    problem = case.problem()
    inputs = [tensor.clone() for tensor in (problem.lam, problem.start, *problem.samples)]
    EKFAC("mc")(problem, problem.start, DELTA, 1e-8)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert all(a is b and a.grad is None for a, b in zip(parameters, case.model.parameters(), strict=True))
    assert modes == [module.training for module in case.model.modules()]
    after = (problem.lam, problem.start, *problem.samples)
    assert all(torch.equal(a, b) for a, b in zip(inputs, after, strict=True))


# ---- what it refuses -------------------------------------------------------------------------------------------------


class Long(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(4, 205, 1), nn.Linear(205, WAYS)

    def forward(self, x):
        return self.head(self.body(x.unsqueeze(-1)).squeeze(-1))


class Folded(nn.Module):
    """Two rows for each sample along the first dimension, and no telling which are whose."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 500), nn.Linear(1000, WAYS)

    def forward(self, x):
        return self.head(self.body(x.view(-1, 2)).view(len(x), -1))


@pytest.mark.parametrize(("build", "named"), [(Long, "body.weight, body.bias"), (Folded, "body.weight")])
def test_a_large_parameter_that_is_no_layer_s_is_named(build, named):
    with pytest.raises(UncoveredParameterError, match=rf"{named}.*(?s:.)*inner_solver='gram' or 'cg'"):
        Case(build).operator(EKFAC())


def test_a_loss_without_visible_outputs_is_refused():
    case = Case(mlp)
    case.loss = lambda lam, theta, x, y: F.linear(x, theta["0.weight"]).square().sum(-1)
    with pytest.raises(LossStructureError, match="ModelLoss"):
        case.operator(EKFAC())


def test_the_empirical_fisher_of_negative_weights_is_refused():
    with pytest.raises(LossStructureError, match="negative"):
        Case(mlp, weights=torch.linspace(-1, 1, N, dtype=torch.float64)).operator(EKFAC("empirical"))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="fisher"):
        EKFAC("type-2")
    with pytest.raises(ValueError, match="samples"):
        EKFAC("mc", samples=0)
    with pytest.raises(ValueError, match="positive"):
        case = Case(mlp)
        EKFAC()(case.problem(), case.problem().start, 0.0, 1e-8)
