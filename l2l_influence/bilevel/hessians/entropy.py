"""How unsure adapted models are of their query samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from ...errors import LossStructureError
from ..loss import criterion_of, outputs_of
from ..solved_tasks import SolvedBatch


def predictive_entropy(solved: SolvedBatch) -> Tensor:
    """Σ_j w_j × the entropy of softmax(outputs_j) over a task's query samples, in nats, ``[B]``.

    Raises:
        LossStructureError: the outputs are not class scores.
    """
    entropy = torch.special.entr(_class_scores(solved).softmax(-1)).sum(-1)
    return (solved.batch.query.w * entropy).sum(-1)


def _class_scores(solved: SolvedBatch) -> Tensor:
    """The outputs of the query samples, ``[B, n, C]``, once the loss has shown that it is taken of their softmax."""
    loss, problem, query = solved.outer.loss, solved.solution.problem, solved.batch.query
    lam = problem.layout.unravel(solved.lam)

    def raised(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        task = (loss, lam, problem.theta_layout.unravel(theta), x, y)
        outputs, criterion = outputs_of(*task), criterion_of(*task)
        return outputs, criterion(outputs), criterion(outputs + 1)

    try:
        outputs, before, after = vmap(raised)(solved.solution.theta, query.x, query.y)
    except LossStructureError as error:
        raise _no_scores("they could not be found in this loss") from error
    if outputs.dim() != 3:
        raise _no_scores(f"this model's have shape {tuple(outputs.shape[1:])}")
    # A softmax stays as it is when all of a sample's outputs rise alike, and so does every loss that is taken of one.
    rounding = torch.finfo(outputs.dtype).eps ** 0.5
    if not torch.allclose(before, after, rtol=rounding, atol=rounding, equal_nan=True):
        raise _no_scores("this loss changes when all of them rise alike, as a regression's does")
    return outputs


def _no_scores(found: str) -> LossStructureError:
    return LossStructureError(
        "drawing tasks by 'uncertainty' needs outputs that are class scores, of shape (samples, classes), in a loss "
        f"that is taken of their softmax, such as cross-entropy: {found}. Use by='difficulty' or by='random'"
    )
