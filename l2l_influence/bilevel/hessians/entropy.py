"""The predictive entropy of adapted models on their query samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import LossStructureError
from ..loss import is_coupled
from ..solved_tasks import SolvedBatch
from ..task import Inputs


def predictive_entropy(solved: SolvedBatch) -> Tensor:
    """Σ_j w_j × the entropy of softmax(outputs_j) over a task's query samples, in nats, ``[B]``.

    Raises:
        LossStructureError: the outputs are not class scores.
    """
    entropy = torch.special.entr(_class_scores(solved).softmax(-1)).sum(-1)
    return (solved.batch.query.w[:, : solved.batch.query.rows] * entropy).sum(-1)


def _class_scores(solved: SolvedBatch) -> Tensor:
    """The outputs of the query samples, ``[B, n, C]``, if the loss depends on their softmax alone."""
    outer, problem, query = solved.outer, solved.solution.problem, solved.batch.query
    lam = problem.layout.unravel(solved.lam)
    if is_coupled(outer.loss):
        raise _no_scores("this loss couples its samples")

    def shifted(theta: Tensor, x: Inputs, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        task = (lam, problem.theta_layout.unravel(theta), x, y)
        outputs = outer.outputs_by_name(*task)
        before, after = (outer.from_outputs_by_name(*task, moved) for moved in (outputs, outputs + 1))
        return outputs, before, after

    try:
        outputs, before, after = outer.execution.over(shifted)(solved.solution.theta, query.x, query.y)
    except LossStructureError as error:
        raise _no_scores("the outputs could not be found in this loss") from error
    if outputs.dim() != 3:
        raise _no_scores(f"the outputs of this model have shape {tuple(outputs.shape[1:])}")
    # A softmax does not change if all outputs of a sample grow by the same number; neither does a loss of it.
    rounding = torch.finfo(outputs.dtype).eps ** 0.5
    if not torch.allclose(before, after, rtol=rounding, atol=rounding, equal_nan=True):
        raise _no_scores("this loss changes if the same number is added to all outputs, as in regression")
    return outputs


def _no_scores(found: str) -> LossStructureError:
    return LossStructureError(
        "by='uncertainty' needs class scores as outputs, of shape (samples, classes), and a loss of their softmax, "
        f"such as cross-entropy; {found}. Use by='difficulty' or by='random'"
    )
