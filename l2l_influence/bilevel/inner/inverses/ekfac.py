"""EK-FAC as an inverse of the inner Hessian (George et al., 2018), with separate factors for each task."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ....errors import LossStructureError
from ...kfac import Block, PseudoGradients, task_blocks
from ...layout import Named
from ...loss import is_coupled
from ...solvers import ClosedForm, Invertible, LinearOperator, LinearSolver
from ...task import Inputs, Samples
from ..base import InnerProblem

Fisher = Literal["true", "mc", "empirical"]


@dataclass(frozen=True)
class EKFAC:
    """H_in ≈ EK-FAC of the Fisher (Gauss–Newton) matrix of Σ_j w_j ℓ_j, plus δI in its eigenbasis.

    Each weight that is used in one call of ``F.linear`` or ``F.conv2d`` forms a block with its bias, in the eigenbasis
    of the second moments of its inputs and of the gradients by its outputs ("expand": each position of a convolution
    counts). The eigenvalues are the diagonal of the curvature in this basis. All other entries of θ (affine parameters
    of normalisation, biases alone, tied weights) form one dense Gauss–Newton block per module, so that every entry is
    in one block.

    With batch statistics, samples are coupled: a sample's pseudo-gradient then includes its path through the
    activations of the others, and needs a backward pass of its own, as it does if there are dense blocks. One backward
    pass for all samples is cheaper, but mixes coupled ones; it is used if no samples are coupled.

    Args:
        fisher: ``"true"`` uses the whole curvature of the criterion at each sample's outputs; ``"mc"`` samples it with
            random signs, in C/samples times less work for C outputs; ``"empirical"`` uses the gradients of the samples'
            losses, which does not give a Gauss–Newton matrix.
        samples: random samples per task, for ``"mc"``.
        seed: seed of these samples; a task has the same samples in every batch.

    Raises:
        ValueError: ``fisher`` is unknown, or ``samples`` is less than 1.
    """

    fisher: Fisher = "true"
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fisher not in ("true", "mc", "empirical"):
            raise ValueError(f'fisher must be "true", "mc" or "empirical", not {self.fisher!r}')
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def __call__(
        self, problem: InnerProblem, theta: Tensor, delta: float, tolerance: float
    ) -> tuple[LinearOperator, LinearSolver]:
        """The inner Hessian at θ, ``[B, Q]``, and a solver for it.

        Raises:
            LossStructureError: the model outputs cannot be found in the loss, or it is not convex in them.
            UncoveredParameterError: a parameter belongs to no layer and is too large for a dense block.
        """
        positions = problem.theta_layout.unravel(torch.arange(problem.theta_layout.size, device=theta.device))
        residuals = self._residuals(problem, theta)
        # A loop over tasks: the backward pass of batch normalisation cannot be mapped over tasks.
        tasks = [
            _blocks(problem, positions, task, *rest)
            for task, *rest in zip(theta, problem.samples.by_task(), residuals, strict=True)
        ]
        blocks = [Block.stack(same) for same in zip(*tasks, strict=True)]
        return EKFACPlusIdentity(blocks, delta, self._note(blocks)), ClosedForm()

    def _residuals(self, problem: InnerProblem, theta: Tensor) -> Tensor:
        """``[B, K, n, C]``: cotangents whose pull-backs are the pseudo-gradients; ``Σ_k r_jk r_jkᵀ`` is sample j's
        curvature."""
        if self.fisher == "empirical":
            return _loss_gradients(problem, theta).unsqueeze(1)
        root = problem.objective.output_curvature_root(problem.lam, theta, problem.samples)
        if self.fisher == "true":
            return root.permute(0, 3, 1, 2)
        signs = torch.stack([self._signs(z.x, root.shape[1:3]) for z in problem.samples.by_task()]).to(root)
        return torch.einsum("bnck,bmnk->bmnc", root, signs) / self.samples**0.5

    def _signs(self, x: Inputs, shape: torch.Size) -> Tensor:
        """±1, ``[m, n, C]``, from the seed and the task's data alone."""
        content = zlib.crc32(b"".join(leaf.double().cpu().numpy().tobytes() for leaf in tree_leaves(x)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + content)
        return torch.randint(0, 2, (self.samples, *shape), generator=generator) * 2 - 1

    def _note(self, blocks: Sequence[Block]) -> str:
        covered = [block for block in blocks if block.kronecker]
        entries = sum(block.index.numel() for block in covered) / sum(block.index.numel() for block in blocks)
        tensors, among = (sum(len(block.names) for block in some) for some in (covered, blocks))
        kind = f"mc (samples={self.samples})" if self.fisher == "mc" else self.fisher
        rest = "none" if tensors == among else "the rest"
        return (
            f"ekfac, {kind} Fisher: Linear and Conv2d {tensors} of {among} tensors, {100 * entries:.1f} % of entries; "
            f"dense blocks: {rest}"
        )


class EKFACPlusIdentity(Invertible):
    """``U diag(values) Uᵀ + δI`` in blocks, and its inverse in the same basis.

    Args:
        blocks: cover each entry of θ once.
        delta: δ > 0.
        note: which share of θ lies in which kind of block.
    """

    def __init__(self, blocks: Sequence[Block], delta: float, note: str) -> None:
        if not delta > 0:
            raise ValueError(f"delta, the multiple of the identity, must be positive, got {delta}")
        self.blocks, self.note = blocks, note
        self.shift = self.floor = delta

    def matvec(self, v: Tensor) -> Tensor:
        return self.shift * v + self._in_blocks(v, [block.values for block in self.blocks])

    def inverse(self, v: Tensor) -> Tensor:
        shrunk = self._in_blocks(v, [block.values / (block.values + self.shift) for block in self.blocks])
        return (v - shrunk) / self.shift

    def _in_blocks(self, v: Tensor, values: Sequence[Tensor]) -> Tensor:
        """``U diag(values) Uᵀ v``."""
        out = torch.zeros_like(v)
        for block, scale in zip(self.blocks, values, strict=True):
            out[:, block.index] = block.product(v, scale)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes that the blocks take."""
        return sum(block.nbytes for block in self.blocks)


def _blocks(problem: InnerProblem, positions: Named, theta: Tensor, samples: Samples, residuals: Tensor) -> list[Block]:
    """The blocks of one task."""
    lam = problem.layout.unravel(problem.lam)

    def model(named: Named) -> Tensor:
        return problem.objective.outputs_by_name(lam, named, samples.x, samples.y)

    # The weights of a coupled loss are not those of rows.
    coupled = is_coupled(problem.objective.loss)
    weights = torch.ones_like(samples.w[: len(samples.y)]) if coupled else samples.w[: len(samples.y)]
    gradients = PseudoGradients(model, problem.theta_layout.unravel(theta), residuals, problem.execution)
    return task_blocks(gradients, weights, positions)


def _loss_gradients(problem: InnerProblem, theta: Tensor) -> Tensor:
    """√w_j ∂ℓ_j/∂outputs_j, ``[B, n, C]``."""
    if bool((problem.samples.w < 0).any()):
        raise LossStructureError("the empirical Fisher matrix is not defined for negative sample weights")
    if problem.samples.w.shape[1] != problem.samples.rows or is_coupled(problem.objective.loss):
        raise LossStructureError(
            "the empirical Fisher matrix needs a loss that is a sum over samples, but this one has terms that belong "
            "to no sample, or couples its samples: use EKFAC(fisher='true')"
        )
    objective, execution, lam = problem.objective, problem.execution, problem.layout.unravel(problem.lam)

    def of_one(theta: Tensor, x: Inputs, y: Tensor, w: Tensor) -> Tensor:
        task = (lam, problem.theta_layout.unravel(theta), x, y)
        by_outputs = execution.gradient(lambda outputs: objective.from_outputs_by_name(*task, outputs).sum(), 0)
        return w.sqrt().unsqueeze(-1) * by_outputs(objective.outputs_by_name(*task)).reshape(len(w), -1)

    rows: Tensor = execution.over(of_one)(theta, *problem.samples)
    return rows
