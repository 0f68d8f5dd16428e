"""Losses that are programs of any inputs: nested inputs, terms of the whole set, and episodes without inner steps.

Compared with dense matrices by plain autograd, and with central differences in the weights.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l_influence.bilevel import BilevelProblem, NoInner, Proximal, Task, Unrolled
from l2l_influence.bilevel.item_gradients import QueryGradient, SupportGradient, TaskGradient
from l2l_influence.bilevel.task import TaskBatch, equal_shape_batches, stack
from l2l_influence.errors import TaskShapeError

from ..reference_problems.autograd import (
    Named,
    Reference,
    UnrolledReference,
    central_difference,
    generator,
    parameters,
    randn,
    relative,
)

DELTA, LR, STEPS, KEYS = 6.0, 0.1, 3, ["bias", "head"]


def program(lam: Named, theta: Named, x: dict[str, object], y: Tensor) -> Tensor:
    """Cross-entropy of half of the rows at a time, then a penalty and a term that couples the rows: n + 2 values."""
    p = {**lam, **theta}
    first, (second, scale) = x["first"], x["others"]
    images = torch.cat([first, second])
    outputs = torch.tanh(images @ p["body"] + p["bias"] + x["shift"]) @ p["head"] * scale
    shared = outputs.mean(0)
    further = torch.stack([p["head"].square().sum() + (p["bias"] * lam["bias"]).sum(), shared.square().sum()])
    return torch.cat([F.cross_entropy(outputs, y, reduction="none"), further])


def nested(seed: int, n: int) -> tuple[dict[str, object], Tensor]:
    x = {
        "first": randn(seed, 2, 3),
        "others": (randn(seed + 1, n - 2, 3), randn(seed + 2, 1)[0].exp()),
        "shift": 0.1 * randn(seed + 3, 4),
    }
    return x, torch.randint(0, 3, (n,), generator=generator(seed + 4))


def weights(seed: int, n: int) -> Tensor:
    return torch.rand(n + 2, generator=generator(seed), dtype=torch.float64) + 0.3


def program_tasks(count: int = 2) -> list[Task]:
    return [
        Task(nested(seed, 5), nested(seed + 5, 4), weights(seed, 5), weights(seed + 1, 4))
        for seed in range(10, 10 * count + 10, 10)
    ]


def reference(inner: str) -> Reference:
    if inner == "proximal":
        return Reference(program, parameters(), KEYS, DELTA)
    return UnrolledReference(program, parameters(), KEYS, LR, STEPS)


def problem(inner: str) -> BilevelProblem:
    kind = Proximal(DELTA, "cg", 1e-12) if inner == "proximal" else Unrolled(LR, STEPS)
    return BilevelProblem(program, program, kind, 0.5, KEYS)


INNER = pytest.mark.parametrize("inner", ["proximal", "unrolled"])


@INNER
def test_total_gradients_of_a_program(inner: str) -> None:
    solved = next(problem(inner).at(parameters(), program_tasks()).microbatches())
    assert solved.batch.index == [0, 1]
    for row, task in zip(solved.total_gradient, program_tasks(), strict=True):
        assert relative(row, reference(inner).total_gradient(task)) < 1e-9


@INNER
@pytest.mark.parametrize("kind", ["exact", "hessian"])
def test_hessians_of_a_program(inner: str, kind: str) -> None:
    tasks, truth = program_tasks(), reference(inner)
    v = randn(3, truth.layout.size)
    dense = [truth.total_hessian(task) if kind == "exact" else truth.projected_hessian(task) for task in tasks]
    product = problem(inner).total_hessian(parameters(), tasks, kind, weights=[2.0, 0.5]) @ v
    assert relative(product, (2.0 * dense[0] + 0.5 * dense[1]) @ v) < 1e-8


@INNER
def test_items_are_the_samples_and_not_the_further_terms(inner: str) -> None:
    solved = next(problem(inner).at(parameters(), program_tasks()).microbatches())
    assert [kind.count(solved) for kind in (TaskGradient(), QueryGradient(), SupportGradient())] == [1, 4, 5]
    assert solved.query_losses().shape == (2, 4)
    assert solved.support_losses().shape == (2, 5)
    v = randn(4, solved.lam.numel())
    assert solved.query_slopes(v).shape == (2, 4)
    assert solved.support_slopes(solved.expanded(v)).shape == (2, 5)


@INNER
@pytest.mark.parametrize("which", ["query", "support"])
def test_gradients_of_items_are_derivatives_by_their_weights(inner: str, which: str) -> None:
    tasks, truth = program_tasks(1), reference(inner)
    item = QueryGradient() if which == "query" else SupportGradient()
    name = f"{which}_weights"
    solved = next(problem(inner).at(parameters(), tasks).microbatches())
    v = randn(5, 2, truth.layout.size)
    along = item.gradients_along(solved, v)[0]
    for j in range(item.count(solved)):

        def gradient(scale: Tensor, j: int = j) -> Tensor:
            changed = getattr(tasks[0], name).clone()
            changed[j] *= float(scale)
            return truth.total_gradient(replace(tasks[0], **{name: changed}))

        expected = central_difference(gradient, torch.ones(1, dtype=torch.float64))[:, 0]
        assert relative(item.gradient(solved, j)[0], expected) < 1e-6
        assert relative(along[j], v @ expected) < 1e-6


@INNER
def test_the_own_loss_of_a_sample_has_no_further_terms(inner: str) -> None:
    task, truth = program_tasks(1)[0], reference(inner)
    solved = next(problem(inner).at(parameters(), [task]).microbatches())
    only = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = QueryGradient().with_own_loss(solved, 1).total_gradient[0]
    assert relative(found, truth.total_gradient(replace(task, query_weights=only))) < 1e-9


def test_terms_of_the_set_have_no_weight_unless_weights_are_given() -> None:
    task = replace(program_tasks(1)[0], query_weights=None)
    with pytest.raises(TaskShapeError, match="one for each further weight"):
        problem("unrolled").total_gradient(parameters(), task)


# ---- stacking --------------------------------------------------------------------------------------------------


def stacked(tasks: list[Task]) -> TaskBatch:
    return stack(tasks, list(range(len(tasks))), [1.0] * len(tasks), torch.zeros(1, dtype=torch.float64))


def test_each_tensor_of_nested_inputs_has_a_leading_dimension() -> None:
    batch = stacked(program_tasks(3))
    assert batch.support.x["others"][0].shape == (3, 3, 3)
    assert batch.support.x["shift"].shape == (3, 4)
    assert (batch.support.rows, batch.support.w.shape) == (5, (3, 7))
    part = batch.select(slice(1, 3)).support
    assert torch.equal(part.x["others"][1][0], program_tasks(3)[1].support[0]["others"][1])
    assert torch.equal(batch.support.of_task(2).x["first"], program_tasks(3)[2].support[0]["first"])
    assert len(list(batch.support.by_task())) == 3


def test_bytes_count_all_tensors() -> None:
    batch = stacked(program_tasks(2))
    numbers = 2 * (2 * 3 + 3 * 3 + 1 + 4 + 7)
    assert batch.support.nbytes == 8 * numbers + 2 * 5 * 8


def different(task: Task) -> dict[str, Task]:
    x, y = task.query
    return {
        "another key": replace(task, query=({**x, "more": torch.zeros(1)}, y)),
        "another nesting": replace(task, query=({**x, "others": list(x["others"])}, y)),
        "another shape": replace(task, query=({**x, "shift": torch.zeros(5)}, y)),
        "another dtype": replace(task, query=({**x, "shift": x["shift"].float()}, y)),
        "another number of weights": replace(task, query_weights=torch.ones(5)),
        "no weights": replace(task, query_weights=None),
    }


@pytest.mark.parametrize("what", different(program_tasks(1)[0]))
def test_tasks_of_different_structure_are_not_stacked(what: str) -> None:
    task = program_tasks(1)[0]
    tasks = [task, different(task)[what], task]
    assert [index for index, _ in equal_shape_batches(tasks, range(3), 3)] == [[0, 2], [1]]


def test_wrong_inputs_are_refused() -> None:
    task = program_tasks(1)[0]
    x, y = task.query
    with pytest.raises(TaskShapeError, match="holds int, str"):
        replace(task, query=({**x, "k": 3, "name": "a"}, y))
    with pytest.raises(TaskShapeError, match="together=True needs x to be one tensor"):
        replace(task, together=True)
    with pytest.raises(TaskShapeError, match="y has 0"):
        replace(task, query=(x, y[:0]))
    with pytest.raises(TaskShapeError, match="or be longer"):
        replace(task, query_weights=torch.ones(3))


# ---- no inner steps ----------------------------------------------------------------------------------------------


def prototypical(lam: Named, theta: Named, x: dict[str, Tensor], y: Tensor) -> Tensor:
    """The loss of a prototypical network, whose support set is a part of x."""
    p = {**lam, **theta}
    embed = lambda images: torch.tanh(images @ p["body"] + p["bias"]) @ p["head"]  # noqa: E731
    prototypes = torch.stack([embed(x["support"])[x["labels"] == c].mean(0) for c in range(3)])
    return F.cross_entropy(-torch.cdist(embed(x["query"]), prototypes), y, reduction="none")


def masked(lam: Named, theta: Named, x: dict[str, Tensor], y: Tensor) -> Tensor:
    """The same with a mask for each class in place of boolean indexing."""
    p = {**lam, **theta}
    embedded = torch.tanh(torch.cat([x["support"], x["query"]]) @ p["body"] + p["bias"]) @ p["head"]
    members = (x["labels"].unsqueeze(1) == torch.arange(3)).to(embedded)
    prototypes = members.T @ embedded[:6] / members.sum(0).unsqueeze(1)
    squares = (embedded[6:].unsqueeze(1) - prototypes).square().sum(-1)
    return F.cross_entropy(-squares.sqrt(), y, reduction="none")


def nothing(lam: Named, theta: Named, x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(len(y), dtype=torch.float64)


def prototypical_task(seed: int) -> Task:
    labels = torch.arange(6) % 3
    x = {"support": randn(seed, 6, 3), "labels": labels, "query": randn(seed + 1, 4, 3)}
    return Task((x["support"], labels), (x, torch.arange(4) % 3))


def test_without_inner_steps_the_total_gradient_is_the_gradient_by_lambda() -> None:
    tasks = [prototypical_task(seed) for seed in (1, 3)]
    solved = next(BilevelProblem(nothing, masked, NoInner(), 0.1).at(parameters(), tasks).microbatches())
    layout = Reference(prototypical, parameters(), None, 0.0).layout
    for row, task in zip(solved.total_gradient, tasks, strict=True):
        lam = layout.ravel(parameters()).requires_grad_()
        named = layout.unravel(lam)
        (expected,) = torch.autograd.grad(prototypical(named, named, *task.query).sum(), lam)
        assert relative(row, expected) < 1e-10


@pytest.mark.parametrize("keys", [None, ["head"]], ids=["all adapted", "head adapted"])
def test_without_inner_steps_the_derivatives_are_those_of_the_start(keys: list[str] | None) -> None:
    tasks = [prototypical_task(seed) for seed in (1, 3)]
    problem = BilevelProblem(nothing, masked, NoInner(), 0.1, keys)
    solved = next(problem.at(parameters(), tasks).microbatches())
    solution, truth = solved.solution, UnrolledReference(masked, parameters(), keys, 0.1, 0)
    v, u = randn(7, 2, 28), randn(8, 2, solved.solution.theta.shape[1])
    picked = torch.eye(28, dtype=torch.float64)[truth.where]
    assert torch.equal(solution.theta, truth.start(truth.lam).expand(2, -1))
    assert torch.equal(solution.jvp(v), v @ picked.T)
    assert torch.equal(solution.vjp(u), u @ picked)
    assert not solution.jvp_weights(torch.ones(2, 6, dtype=torch.float64)).any()
    assert not solution.vjp_weights(u).any()
    hessian = sum(truth.total_hessian(task) for task in tasks)
    for kind in ("exact", "hessian"):
        assert relative(problem.total_hessian(parameters(), tasks, kind) @ v[0], hessian @ v[0]) < 1e-9
    along = solution.along(solved.outer.weighted_losses_of_one, v[0], solved.batch.query)[1]
    assert relative(along.sum(1), solved.total_gradient @ v[0]) < 1e-9
    assert not solved.support_slopes(v).any()
    assert solved.microbatches[0].solution.residual.tolist() == [0.0, 0.0]
