"""Tasks computed one by one: the same results as mapped ones, and those of plain autograd for models that cannot be
mapped."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from l2l_influence.bilevel import (
    BilevelProblem,
    FunctionalModel,
    LearnedRates,
    LearnedTransforms,
    ModelLoss,
    NoInner,
    Proximal,
    Sketch,
    Task,
    Unrolled,
    UnrolledWith,
)
from l2l_influence.bilevel.execution import Mapped, OneByOne
from l2l_influence.bilevel.inner.steps.factored import FactoredSteps
from l2l_influence.bilevel.item_gradients import QueryGradient, SupportGradient
from l2l_influence.bilevel.objective import Joint
from l2l_influence.bilevel.solved_tasks import SolvedBatch
from l2l_influence.errors import LossStructureError, TaskShapeError

from ..reference_problems.autograd import Named, classification, classification_tasks, parameters, randn, relative
from .inner.maml_loops import convolutional, headed, mlp

LR, STEPS = 0.1, 2


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


# ---- an ordinary model: the same both ways ---------------------------------------------------------------------------


def both(kind: object, theta_keys: list[str] | None = None, module: nn.Module | None = None) -> list[BilevelProblem]:
    """The same problem, mapped and one by one."""
    if module is None:
        losses = (classification, classification)
    else:
        loss = ModelLoss(FunctionalModel(module), cross_entropy)
        losses = (loss, loss)
    return [BilevelProblem(*losses, kind, 0.5, theta_keys, execution=way) for way in ("mapped", "one-by-one")]


def assert_same(left: object, right: object) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


POINT = {"lam": 28, "theta": 28, "n": 6}


def objective_results(problem: BilevelProblem) -> dict[str, object]:
    """Each derivative of the inner loss of two tasks, at θ that are not λ."""
    solved = next(problem.at(parameters(), classification_tasks(2)).batches())
    objective, lam, z = solved.solution.problem.objective, solved.lam, solved.batch.support
    theta, v, u, w = solved.solution.theta + 0.1 * randn(1, 2, 28), randn(2, 2, 28), randn(3, 2, 28), randn(4, 2, 6)
    outputs, along = randn(5, 2, 6, 3), randn(6, 2, 6, 3)
    return {
        "value": objective.value(lam, theta, z),
        "losses": objective.losses(lam, theta, z),
        "gradient": objective.gradient(lam, theta, z),
        "gradient_theta": objective.gradient_theta(lam, theta, z),
        "losses_along": objective.losses_along(lam, theta, z, v),
        "hessian_theta": objective.hessian_theta(lam, theta, z, v),
        "linearise_theta": objective.linearise_theta(lam, theta, z)(v),
        "mixed": objective.mixed(lam, theta, z, v),
        "mixed_transposed": objective.mixed_transposed(lam, theta, z, v),
        "hessian_lambda": objective.hessian_lambda(lam, theta, z, v),
        "hessian": objective.hessian(lam, theta, z, Joint(v, u, w)),
        "third": objective.third(lam, theta, z, u, Joint(v, u, w)),
        "curve": objective.curve(lam, theta, z, outputs, along),
        "curvature": _squared(objective.output_curvature_root(lam, theta, z)),
        "output_count": objective.output_count(lam, theta, z),
    }


def _squared(root: Tensor) -> Tensor:
    """R Rᵀ: where it has an eigenvalue 0, R has the root of its rounding."""
    return root @ root.mT


def test_derivatives_of_the_loss_are_the_same() -> None:
    mapped, looped = (objective_results(problem) for problem in both(Unrolled(LR, STEPS)))
    for name, value in mapped.items():
        assert_same(looped[name], value)


def map_results(problem: BilevelProblem, lam: Named, tasks: list[Task]) -> dict[str, object]:
    """Each result of an inner map, and of what is built on it."""
    solved_tasks = problem.at(lam, tasks, [1.5, 0.5])
    solved: SolvedBatch = next(solved_tasks.batches())
    solution, size, entries = solved.solution, solved.lam.numel(), solved.solution.theta.shape[1]
    v, u, e = randn(2, 2, size), randn(3, 2, entries), randn(4, *solved.batch.support.w.shape)
    query, outputs = solved.batch.query, solved.outer.outputs_of_one
    return {
        "theta": solution.theta,
        "jvp": solution.jvp(v),
        "vjp": solution.vjp(u),
        "jvp_weights": solution.jvp_weights(e),
        "vjp_weights": solution.vjp_weights(u),
        "total": solved.gradient_and_loss,
        "sum_of_totals": solution.sum_of_totals(solved.batch.weight, solved.outer.value_of_one, query),
        "along": solution.along(outputs, v[0], query),
        "second": solved.second(v, e),
        "query_slopes": solved.query_slopes(v[0]),
        "support_slopes": solved.support_slopes(v),
        "query": QueryGradient().gradient(solved, 1),
        "support": SupportGradient().gradient(solved, 1),
        "stationarity": problem.stationarity(lam, tasks).gradient,
        "sketch": problem.total_hessian(lam, tasks, Sketch(samples=2)) @ v[0],
        **{
            kind: problem.total_hessian(lam, tasks, kind) @ v[0]
            for kind in ("exact", "hessian", "gauss-newton", "gamma", "direct", "direct-first-order")
        },
    }


def assert_alike(left: dict[str, object], right: dict[str, object], tolerance: float) -> None:
    for name, value in left.items():
        exact = tolerance if name != "sketch" else max(tolerance, 1e-5)  # its roots hold roots of rounding
        torch.testing.assert_close(
            right[name], value, rtol=exact, atol=exact / 10, msg=lambda text, name=name: f"{name}: {text}"
        )


KINDS = {
    "unrolled": (Unrolled(LR, STEPS), None),
    "some adapted": (Unrolled(LR, STEPS), ["head"]),
    "first order": (Unrolled(LR, STEPS, first_order=True), ["bias", "head"]),
    "step sizes": (Unrolled([0.2, 0.1], 2), None),
    "no inner steps": (NoInner(), ["head"]),
    "optimiser": (UnrolledWith(partial(torch.optim.SGD, lr=LR, momentum=0.5), 2), ["head"]),
    "cg": (Proximal(6.0, "cg", 1e-12), ["bias", "head"]),
    "dense": (Proximal(6.0, "dense", 1e-12), ["bias", "head"]),
    "gram": (Proximal(6.0, "gram", 1e-10), ["bias", "head"]),
    "ekfac": (Proximal(6.0, "ekfac", 1e-10), ["bias", "head"]),
}


@pytest.mark.parametrize("kind, keys", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore:the exact total Hessian", "ignore:the direct total Hessian")
def test_inner_solutions_are_the_same(kind: object, keys: list[str] | None) -> None:
    mapped, looped = (map_results(problem, parameters(), classification_tasks(2)) for problem in both(kind, keys))
    assert_alike(mapped, looped, 1e-8)


def mean_tasks(*shape: int, rows: int = 5, count: int = 2) -> list[Task]:
    mean, y = torch.full((rows,), 1 / rows, dtype=torch.float64), torch.arange(2 * rows) % 3
    return [Task((x[:rows], y[:rows]), (x[rows:], y[rows:]), mean, mean) for x in randn(3, count, 2 * rows, *shape)]


@pytest.mark.parametrize(
    "build, shape, kind",
    [
        (mlp, (4,), Unrolled(LR, STEPS)),
        (mlp, (4,), Proximal(6.0, "gram", 1e-2)),
        (mlp, (4,), Proximal(6.0, "ekfac", 1e-2)),
        (convolutional, (1, 6, 6), Unrolled(LR, STEPS)),
    ],
    ids=["mlp", "mlp, gram", "mlp, ekfac", "convolutional"],
)
@pytest.mark.filterwarnings("ignore:the exact total Hessian", "ignore:the direct total Hessian")
def test_networks_with_normalisation_are_the_same(
    build: Callable[[], nn.Module], shape: tuple[int, ...], kind: object
) -> None:
    torch.manual_seed(0)
    problems = both(kind, module=build().double())
    lam = problems[0].inner_loss.model.parameters
    mapped, looped = (map_results(problem, lam, mean_tasks(*shape)) for problem in problems)
    assert_alike(mapped, looped, 1e-6)


def test_learned_rules_are_the_same() -> None:
    lam = {**parameters(), "rates": 0.1 * randn(8, 4, 3).exp(), "phi": 0.3 * randn(9, 12, 12)}
    transforms = LearnedTransforms(0.1, lambda phi, g: g + phi["m"] @ g, {"m": "phi"}, adapted=True)
    for rule in (LearnedRates({"head": "rates"}), transforms):
        mapped, looped = (map_results(p, lam, classification_tasks(2)) for p in both(Unrolled(rule, 3), ["head"]))
        assert_alike(mapped, looped, 1e-8)


def test_the_entropy_of_predictions_is_the_same() -> None:
    from l2l_influence.bilevel.hessians.entropy import predictive_entropy

    solved = [next(p.at(parameters(), classification_tasks(2)).batches()) for p in both(Unrolled(LR, 1))]
    assert_same(*map(predictive_entropy, solved))


# ---- which execution is chosen -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, shape", [(mlp, (4,)), (convolutional, (1, 6, 6)), (headed, (4,))], ids=["mlp", "convolutional", "headed"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ordinary_models_are_mapped(build: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    loss = ModelLoss(FunctionalModel(build().to(dtype)), cross_entropy)
    data = [
        Task((task.support[0].to(dtype), task.support[1]), (task.query[0].to(dtype), task.query[1]))
        for task in mean_tasks(*shape)
    ]
    for kind in (Unrolled(LR, 1), NoInner()):
        problem = BilevelProblem(loss, loss, kind, 0.5)
        assert problem.execution_note == ""
        problem.total_gradient(loss.model.parameters, data[0])
        assert isinstance(problem.execution.execution, Mapped)
        assert (problem.execution.settled, problem.execution_note) == (True, "")


def counting() -> tuple[list[int], Callable[..., Tensor]]:
    calls: list[int] = []

    def loss(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return classification(lam, theta, x, y)

    return calls, loss


def test_a_problem_is_probed_once_and_only_if_its_execution_is_open() -> None:
    counts = {}
    for way in ("mapped", "auto"):
        calls, loss = counting()
        problem = BilevelProblem(loss, loss, Unrolled(LR, 1), 0.5, execution=way)
        for _ in range(2):
            before = len(calls)
            problem.total_gradient(parameters(), classification_tasks(1)[0])
            counts.setdefault(way, []).append(len(calls) - before)
    assert counts["mapped"][0] == counts["mapped"][1] == counts["auto"][1]
    assert counts["mapped"][0] < counts["auto"][0] <= counts["mapped"][0] + 8


def test_a_loss_that_cannot_be_computed_at_all_raises_its_own_error_and_leaves_the_choice_open() -> None:
    problem = BilevelProblem(lambda *given: classification(*given).mean(), classification, Unrolled(LR, 1), 0.5)
    with pytest.raises(TaskShapeError, match="one value per sample"):
        problem.total_gradient(parameters(), classification_tasks(1)[0])
    assert not problem.execution.settled


def test_derivatives_that_differ_when_they_are_mapped_are_computed_one_by_one() -> None:
    class Differs(torch.autograd.Function):
        """Doubles its gradient inside of ``torch.func``."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return 2 * g if torch._C._functorch.peek_interpreter_stack() is not None else g

        @staticmethod
        def jvp(ctx: object, t: Tensor) -> Tensor:
            return t

    def loss(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        return classification({}, {name: Differs.apply(value) for name, value in {**lam, **theta}.items()}, x, y)

    problem = BilevelProblem(loss, loss, Unrolled(LR, 1), 0.5)
    problem.total_gradient(parameters(), classification_tasks(1)[0])
    assert problem.execution_note == (
        "derivatives that are mapped over tasks differ from those of plain autograd: tasks are computed one by one, "
        "which takes longer"
    )


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(ValueError, match="execution must be one of"):
        BilevelProblem(classification, classification, 1.0, 0.0, execution="fast")


def test_wide_layers_are_not_factored_one_by_one() -> None:
    lam = {"wide": randn(1, 40, 50) / 7}
    task = Task((randn(2, 2, 50), torch.arange(2)), (randn(3, 2, 50), torch.arange(2)))

    def loss(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(F.linear(x, theta["wide"]), y)

    mapped, looped = (
        BilevelProblem(loss, loss, Unrolled(LR, 1), 0.5, execution=way).at(lam, [task]).one(0)
        for way in ("mapped", "one-by-one")
    )
    assert isinstance(mapped.solution, FactoredSteps)
    assert not isinstance(looped.solution, FactoredSteps)
    assert_same(looped.total_gradient, mapped.total_gradient)


# ---- models that cannot be mapped ------------------------------------------------------------------------------------


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = layer(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
        self.reentrant, self.ignored = reentrant, False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) if self.ignored else checkpoint(self.body, x, use_reentrant=self.reentrant))


class Sign(torch.autograd.Function):
    """Straight-through, in the form that ``torch.func`` refuses."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g


class Once(torch.autograd.Function):
    """tanh without a second derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


def write(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 6, dtype=x.dtype)
    out[:, :5] = x.tanh()
    return out[:, :5]


def leaky(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0.1 * x[x < 0]
    return x


def grows(x: Tensor) -> Tensor:
    while x.norm() < 50:
        x = x * 1.5
    return x.tanh()


def net(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3))


def spectral(old: bool) -> nn.Module:
    norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 3))


UNMAPPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LSTM": (lambda: Recurrent(nn.LSTM), (5, 4)),
    "GRU": (lambda: Recurrent(nn.GRU), (5, 4)),
    "RNN": (lambda: Recurrent(nn.RNN), (5, 4)),
    "write into zeros": (lambda: net(Call(write)), (4,)),
    "boolean indexing": (lambda: net(Call(leaky)), (4,)),
    "control flow": (lambda: net(Call(grows)), (4,)),
    "item": (lambda: net(Call(lambda x: (x * x.norm().item()).tanh())), (4,)),
    "custom function": (lambda: net(Call(Sign.apply)), (4,)),
    "noise": (lambda: net(Call(lambda x: (x + 0.1 * torch.randn_like(x)).tanh())), (4,)),
    "RReLU": (lambda: net(nn.RReLU()), (4,)),
    "spectral norm": (lambda: spectral(old=False), (4,)),
    "old spectral norm": (lambda: spectral(old=True), (4,)),
}
MAPPED_NOW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "checkpoint": (lambda: Checkpointed(reentrant=False), (4,)),
    "reentrant checkpoint": (lambda: Checkpointed(reentrant=True), (4,)),
    "attention": (transformer, (5, 4)),
}
"""Models that fail in torch's own form, and can be mapped in the form that they get here."""

SMOOTH = ["LSTM", "GRU", "RNN", "write into zeros", "boolean indexing", "control flow", "noise", "attention"]
"""Models whose gradients of plain autograd are derivatives that central differences can see."""


class Loop:
    """The user's own loop with plain autograd, in float64, without the package."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        if isinstance(module, Checkpointed):
            self.module.ignored = True
        self.names = list(dict(module.named_parameters()))
        self.shapes = [parameter.shape for parameter in module.parameters()]

    def loss(self, flat: Tensor, pair: tuple[Tensor, Tensor], w: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in self.shapes])
        named = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with torch.random.fork_rng(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            torch.manual_seed(0)
            outputs = torch.func.functional_call(self.module, {**buffers, **named}, (pair[0],))
        return (w * cross_entropy(outputs, pair[1])).sum()

    def value(self, lam: Tensor, task: Task, w: Tensor | None = None) -> Tensor:
        w, theta = task.support_weights if w is None else w, lam
        for _ in range(STEPS):
            (slope,) = torch.autograd.grad(self.loss(theta, task.support, w), theta, create_graph=True)
            theta = theta - LR * slope
        return self.loss(theta, task.query, task.query_weights)

    def gradient(self, lam: Tensor, task: Task) -> Tensor:
        lam = lam.detach().requires_grad_()
        return torch.autograd.grad(self.value(lam, task), lam)[0]

    def second(self, lam: Tensor, task: Task, v: Tensor) -> tuple[Tensor, Tensor]:
        """H v, and ∂⟨g, v⟩/∂w."""
        lam, w = lam.detach().requires_grad_(), task.support_weights.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.value(lam, task, w), lam, create_graph=True)
        by_lam, by_w = torch.autograd.grad(slope @ v, (lam, w))
        return by_lam, by_w


class Unmapped:
    """A model of the table, its problem, its tasks, and the loop to compare with."""

    def __init__(self, name: str, kind: object = None) -> None:
        torch.manual_seed(1)
        build, shape = {**UNMAPPED, **MAPPED_NOW}[name]
        self.module, self.tasks = build().double(), mean_tasks(*shape)
        self.loop, self.loss = Loop(self.module), ModelLoss(FunctionalModel(self.module), cross_entropy)
        self.lam = self.loss.model.parameters
        self.problem = BilevelProblem(self.loss, self.loss, kind or Unrolled(LR, STEPS), 0.5)
        self.flat = torch.cat([value.flatten() for value in self.lam.values()])
        self.v = randn(7, len(self.flat))


@pytest.mark.parametrize("name", [*UNMAPPED, *MAPPED_NOW])
def test_total_gradients_are_those_of_a_plain_loop(name: str) -> None:
    model = Unmapped(name)
    solved = next(model.problem.at(model.lam, model.tasks).batches())
    for row, task in zip(solved.total_gradient, model.tasks, strict=True):
        assert relative(row, model.loop.gradient(model.flat, task)) < 1e-10
    one_by_one = isinstance(model.problem.execution.execution, OneByOne)
    assert one_by_one is (name in UNMAPPED)
    assert model.problem.execution_note.startswith("the loss cannot be mapped over tasks (") is one_by_one
    assert ("tasks are computed one by one, which takes longer" in model.problem.execution_note) is one_by_one
    assert ("draws random numbers" in model.problem.execution_note) is (name in ("noise", "RReLU"))


@pytest.mark.parametrize("name", [*UNMAPPED, "checkpoint", "reentrant checkpoint"])
def test_second_derivatives_are_those_of_a_plain_loop(name: str) -> None:
    model = Unmapped(name)
    v, truth = model.v, [model.loop.second(model.flat, task, model.v) for task in model.tasks]
    product = model.problem.total_hessian(model.lam, model.tasks, "exact") @ v
    assert relative(product, truth[0][0] + truth[1][0]) < 1e-8
    solved = next(model.problem.at(model.lam, model.tasks).batches())
    slopes = solved.support_slopes(v.expand(2, -1))
    for row, task, (_, by_w) in zip(slopes, model.tasks, truth, strict=True):
        assert relative(row, task.support_weights * by_w) < 1e-8
    assert relative(solved.query_slopes(v).sum(1), solved.total_gradient @ v) < 1e-8


@pytest.mark.parametrize("name", SMOOTH)
def test_hessian_products_are_central_differences_of_gradients(name: str) -> None:
    model, step = Unmapped(name), 1e-6
    ends = [sum(model.loop.gradient(model.flat + s * step * model.v, task) for task in model.tasks) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    assert relative(model.problem.total_hessian(model.lam, model.tasks, "exact") @ model.v, expected) < 2e-5


@pytest.mark.parametrize("name", ["LSTM", "boolean indexing", "noise"])
def test_gauss_newton_matrices_of_unmapped_models(name: str) -> None:
    model, task = Unmapped(name), Unmapped(name).tasks[0]

    def outputs(lam: Tensor) -> Tensor:
        theta = lam
        for _ in range(STEPS):
            loss = model.loop.loss(theta, task.support, task.support_weights)
            theta = theta - LR * torch.autograd.grad(loss, theta, create_graph=True)[0]
        named = model.problem.at(model.lam, [task]).settings.layout.unravel(theta)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.func.functional_call(model.loop.module, named, (task.query[0],))

    jacobian = torch.autograd.functional.jacobian(outputs, model.flat)
    probabilities = outputs(model.flat.requires_grad_()).detach().softmax(-1)
    curvature = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    moved = torch.einsum("jcp,p->jc", jacobian, model.v)
    expected = torch.einsum("jcp,jcd,jd->p", jacobian, curvature, moved) / 5
    product = model.problem.total_hessian(model.lam, [task], "gauss-newton") @ model.v
    assert relative(product, expected) < 1e-8
    sketch = model.problem.total_hessian(model.lam, [task], Sketch(samples=200)) @ model.v
    assert relative(sketch, expected) < 0.5


@pytest.mark.parametrize("inverse", ["gram", "ekfac", "cg", "dense"])
def test_the_proximal_kind_solves_unmapped_models(inverse: str) -> None:
    model = Unmapped("LSTM", Proximal(8.0, inverse, 1e-8))
    solved = next(model.problem.at(model.lam, model.tasks).batches())
    assert "one by one" in model.problem.execution_note
    for theta, task in zip(solved.solution.theta, model.tasks, strict=True):
        theta = theta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model.loop.loss(theta, task.support, task.support_weights), theta)
        assert float((slope + 8.0 * (theta - model.flat)).norm()) < 1e-7
    assert solved.solution.vjp(randn(1, 2, len(model.flat))).isfinite().all()


# ---- derivatives that do not exist, and random numbers ---------------------------------------------------------------


class MappableOnce(torch.autograd.Function):
    """The same in a form that ``torch.func`` maps, and whose second derivative it gets wrong without an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


ONCE = pytest.mark.parametrize("function", [Once, MappableOnce])


def once_problem(function: type, first_order: bool) -> tuple[BilevelProblem, Named, Task, Loop]:
    torch.manual_seed(0)
    module = net(Call(function.apply)).double()
    loss = ModelLoss(FunctionalModel(module), cross_entropy)
    kind = Unrolled(LR, STEPS, first_order=first_order)
    return BilevelProblem(loss, loss, kind, 0.5), loss.model.parameters, mean_tasks(4)[0], Loop(module)


@ONCE
def test_first_order_answers_need_no_second_derivative(function: type) -> None:
    problem, lam, task, loop = once_problem(function, first_order=True)
    theta = torch.cat([value.flatten() for value in lam.values()])
    for _ in range(STEPS):
        theta = theta.detach().requires_grad_()
        theta = theta - LR * torch.autograd.grad(loop.loss(theta, task.support, task.support_weights), theta)[0]
    theta = theta.detach().requires_grad_()
    (expected,) = torch.autograd.grad(loop.loss(theta, task.query, task.query_weights), theta)
    assert relative(problem.at(lam, [task]).one(0).total_gradient[0], expected) < 1e-10
    solved, v = problem.at(lam, [task]).one(0), randn(8, len(theta))
    assert relative(solved.query_slopes(v).sum(1), solved.total_gradient @ v) < 1e-10
    influence = problem.task_influence(lam, [task], 0, "identity")
    assert all(value.isfinite().all() for value in influence.values())
    assert problem.execution_note.startswith("the loss has no second derivative (LossStructureError: ")


@ONCE
def test_second_order_answers_say_that_there_is_no_second_derivative(function: type) -> None:
    problem, lam, task, _ = once_problem(function, first_order=False)
    with pytest.raises(LossStructureError, match="no derivative of the order.*first_order=True"):
        problem.total_gradient(lam, task)
    problem, lam, task, _ = once_problem(function, first_order=True)
    with pytest.raises(LossStructureError, match="no derivative of the order"):
        problem.total_hessian(lam, [task], "hessian") @ torch.ones(43, dtype=torch.float64)


@pytest.mark.parametrize("name", ["noise", "RReLU"])
def test_random_models_are_deterministic_and_leave_the_users_generator_alone(name: str) -> None:
    results = []
    for seed in (3, 4):
        model = Unmapped(name)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(model.problem.total_hessian(model.lam, model.tasks, "exact") @ model.v)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)


def test_results_hold_no_graph() -> None:
    model = Unmapped("LSTM")
    solved = next(model.problem.at(model.lam, model.tasks).batches())
    v = model.v.expand(2, -1)
    tensors = [
        solved.solution.theta,
        solved.total_gradient,
        solved.outer_loss(),
        solved.solution.jvp(v),
        solved.solution.vjp(v),
        *solved.second(v, torch.ones(2, 5, dtype=torch.float64)),
        *solved.outer_gradient,
    ]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_note_is_known_to_the_solved_tasks_and_no_warning_is_given() -> None:
    model = Unmapped("boolean indexing")
    solved_tasks = model.problem.at(model.lam, model.tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(solved_tasks.batches())
    assert solved_tasks.execution_note == model.problem.execution_note
    assert "boolean mask" in solved_tasks.execution_note
