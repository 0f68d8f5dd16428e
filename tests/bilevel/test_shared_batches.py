"""Support and query rows that go through the model in one batch, as ANIL's features do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l_influence.bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled

from ..reference_problems.autograd import central_difference, relative

LR = 0.2


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def pair(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, dtype=torch.float64), torch.arange(rows) % 2


def test_total_gradient_is_that_of_features_computed_once() -> None:
    """By hand: features of all rows in one batch, one step of the head on the support rows, the query loss."""
    net = model()
    support, query = pair(6), pair(4)
    function = FunctionalModel(net)
    loss = ModelLoss(function, lambda out, y: F.cross_entropy(out, y, reduction="none"))
    problem = BilevelProblem(loss, loss, Unrolled(LR, 1), 0.0, ["3.weight", "3.bias"])
    task = Task(support, query, together=True)
    found = problem.total_gradient(function.parameters, task)

    names, shapes = list(found), [value.shape for value in found.values()]

    def outer(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        body = {name: value for name, value in values.items() if not name.startswith("3.")}
        x = torch.cat([support[0], query[0]])
        hidden = F.linear(x, body["0.weight"], body["0.bias"])
        hidden = F.batch_norm(hidden, None, None, body["1.weight"], body["1.bias"], training=True).tanh()
        weight, bias = (values[name].detach().requires_grad_() for name in ("3.weight", "3.bias"))
        inner = F.cross_entropy(F.linear(hidden[:6], weight, bias), support[1], reduction="sum")
        slopes = torch.autograd.grad(inner, (weight, bias))
        head = F.linear(hidden[6:], weight - LR * slopes[0], bias - LR * slopes[1])
        return F.cross_entropy(head, query[1], reduction="sum").detach()

    flat = torch.cat([value.reshape(-1) for value in function.parameters.values()])
    expected = central_difference(outer, flat)
    assert relative(torch.cat([value.reshape(-1) for value in found.values()]), expected) < 1e-6
    apart = problem.total_gradient(function.parameters, Task(support, query))
    assert relative(torch.cat([value.reshape(-1) for value in apart.values()]), expected) > 1e-2
