"""How long an estimator takes to score every training task, as the hooks do it: no matrix is stored."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from l2l_influence.analysis.estimators.implicit import RELATIVE_DAMPING
from l2l_influence.bilevel import HessianOperator
from l2l_influence.bilevel.problem import ITEM_GRADIENTS
from l2l_influence.bilevel.solvers.neumann import largest_eigenvalue
from l2l_influence.errors import NegativeCurvatureError

from .fidelity import Estimator, Row, total_hessian
from .worlds import World

TOLERANCE = 1e-2
"""Of the outer solve, as the hooks have it."""


def seconds(world: World, lam: Tensor, estimator: Estimator, gradient: Tensor) -> Row:
    """Processor time of all tasks' scores on one test gradient, ``[P]``, from the inner solutions on, damped by
    default."""
    row: Row = {"table": "seconds", "estimator": estimator.name}
    score = _leaving_out if estimator.leave_out else _together
    start = time.process_time()
    hessian = total_hessian(world.problem().at(world.layout.unravel(lam), world.train.listed()), world.l2, estimator)
    try:
        more = score(hessian, gradient.unsqueeze(0))
    except NegativeCurvatureError:
        return row | {"verdict": "indefinite"}
    return row | {"verdict": "measured", "seconds": time.process_time() - start + more}


def _together(hessian: HessianOperator, gradient: Tensor) -> float:
    """One solve for all tasks."""
    values = hessian.solve_rows(gradient, damping=_damping(hessian, gradient), tolerance=TOLERANCE).value
    for at in hessian.solved_tasks.microbatches():
        ITEM_GRADIENTS["task"].gradients_along(hessian.curvature.linearised(at), values)
    return 0.0


def _leaving_out(hessian: HessianOperator, gradient: Tensor) -> float:
    """A system a task, all alike: one is solved, and the time that the others would take is returned."""
    damping = _damping(hessian, gradient)
    batches = map(hessian.curvature.linearised, hessian.solved_tasks.microbatches())
    pulls = torch.cat([solved.weighted_gradient() for solved in batches])
    start = time.process_time()
    hessian.solve_rows(pulls[:1], damping=damping, tolerance=TOLERANCE, without=[[0]])
    return (len(pulls) - 1) * (time.process_time() - start)


def _damping(hessian: HessianOperator, like: Tensor) -> float:
    return RELATIVE_DAMPING * float(largest_eigenvalue(hessian.operator, like, 8))
