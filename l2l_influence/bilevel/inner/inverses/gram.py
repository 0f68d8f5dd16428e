"""Rows of the inner Gauss–Newton matrix, in low-rank factors where these take less memory.

There is one row for each of a task's n·C outputs: the derivative by θ of the outputs along a column of the root of the
criterion's curvature. Its part by the weight of a linear layer is ``Σ_m δ_m ⊗ a_m`` over the N positions of all
samples, where δ_m is the derivative by the layer's output at the position and a_m its input, which is the same for all
rows. Few-shot tasks have few positions, and wide layers many weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ...execution import Execution
from ...kfac import Model, apart, linear_layers, pull_back
from ...layout import Named
from ...objective import Objective
from ...solvers import LowRank, LowRankOperator, OuterProducts, SideBySide
from ...task import Inputs
from ..base import InnerProblem


def gauss_newton_rows(problem: InnerProblem, theta: Tensor) -> LowRankOperator:
    """``AᵀA = GGN_θθ`` of each task at its θ, ``[B, Q]``, with n·C rows A.

    Raises:
        LossStructureError: the model outputs cannot be found in the loss, or it is not convex in them.
    """
    root = problem.objective.output_curvature_root(problem.lam, theta, problem.samples)
    models = _models(problem)
    # A loop over tasks, mapped over rows: mapping both makes convolutions' weight gradients twice as slow.
    tasks = [
        _columns(model, problem.theta_layout.unravel(at), residuals, problem.execution)
        for model, at, residuals in zip(models, theta, root.permute(0, 3, 1, 2), strict=True)
    ]
    parts = [_stack(same) for same in zip(*tasks, strict=True)]
    return parts[0] if len(parts) == 1 else SideBySide(parts)


def rows_nbytes(problem: InnerProblem, count: int) -> int:
    """Bytes that ``count`` rows of one task take."""
    theta = problem.theta_layout.unravel(problem.start[0])
    layers = linear_layers(_models(problem)[0], theta, problem.samples.rows, _pays)
    factors = sum(count * layer.shape.numel() + layer.inputs.numel() for layer in layers.values())
    written = sum(tensor.numel() for name, tensor in theta.items() if name not in layers)
    return (factors + count * written) * problem.start.element_size()


class _Columns(NamedTuple):
    """Some columns of one task's rows: tensors that, stacked over tasks, make an operator of this kind."""

    kind: Callable[..., LowRankOperator]
    tensors: tuple[Tensor, ...]


def _stack(columns: Sequence[_Columns]) -> LowRankOperator:
    return columns[0].kind(*(torch.stack(same) for same in zip(*(part.tensors for part in columns), strict=True)))


def _models(problem: InnerProblem) -> list[Model]:
    """The outputs of each task as a function of its named θ."""
    lam = problem.layout.unravel(problem.lam)
    return [partial(_outputs, problem.objective, lam, x, y) for x, y, _ in problem.samples.by_task()]


def _outputs(objective: Objective, lam: Named, x: Inputs, y: Tensor, theta: Named) -> Tensor:
    return objective.outputs_by_name(lam, theta, x, y)


def _columns(model: Model, theta: Named, residuals: Tensor, execution: Execution) -> list[_Columns]:
    """The rows of one task in the order of θ, from the columns of the roots of its curvature, ``[C, n, C]``."""
    layers = linear_layers(model, theta, residuals.shape[1], _pays)
    rest = {name: tensor for name, tensor in theta.items() if name not in layers}
    by_layer, by_rest = pull_back(model, theta, list(layers.values()), rest, apart(residuals), execution)
    columns = []
    for layer, names in groupby(theta, layers.get):
        if layer is None:
            rows = torch.cat([by_rest[name].flatten(1) for name in names], dim=1)
            columns.append(_Columns(LowRank, (rows,)))
        else:
            slopes = layer.by_position(by_layer[layer.weight])
            columns.append(_Columns(OuterProducts, (slopes.flatten(1, 3), layer.inputs.flatten(0, 2))))
    return columns


def _pays(positions: int, weight: Tensor) -> bool:
    """Whether both factors of a row, ``[N, e]`` and ``[N, d]``, take less memory than the row, ``[e, d]``."""
    return positions * sum(weight.shape) < weight.numel()
