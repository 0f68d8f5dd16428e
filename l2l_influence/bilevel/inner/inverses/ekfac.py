"""EK-FAC as an inverse of the inner Hessian (George et al., 2018), each task with factors of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from ....errors import LossStructureError
from ...kfac import Block, PseudoGradients, task_blocks
from ...layout import Named
from ...loss import criterion_of, outputs_of
from ...solvers import ClosedForm, Invertible, LinearOperator, LinearSolver
from ..base import InnerProblem

Fisher = Literal["true", "mc", "empirical"]


@dataclass(frozen=True)
class EKFAC:
    """H_in ≈ EK-FAC of the Fisher (Gauss–Newton) matrix of Σ_j w_j ℓ_j, plus δI in its eigenbasis.

    Each weight that goes into one call of ``F.linear`` or ``F.conv2d`` makes a block with its bias, in the eigenbasis
    of the second moments of its inputs and of the gradients by its outputs ("expand": each position of a convolution
    counts). The eigenvalues there are the curvature's own diagonal. Everything else (affine parameters of
    normalisation, biases alone, tied weights) makes a dense Gauss–Newton block for each module; every entry of θ is in
    one block.

    With batch statistics, samples are coupled: a sample's pseudo-gradient then includes its way through the others'
    activations, and takes a backward pass of its own, as it does where there are dense blocks. To pull back all samples
    at once is as many times cheaper, but mixes those that are coupled; it is done here where none are.

    Args:
        fisher: ``"true"`` takes the whole curvature of the criterion at each sample's outputs; ``"mc"`` samples it with
            random signs, in C/samples times less work for C outputs; ``"empirical"`` takes the gradients of the
            samples' own losses, which is no Gauss–Newton matrix.
        samples: samples a task, for ``"mc"``.
        seed: of the samples; the same task has the same samples, whatever the batch.
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
        """The inner Hessian at θ, ``[B, Q]``, and what to solve with.

        Raises:
            LossStructureError: the loss shows no outputs, or is not convex in them.
            UncoveredParameterError: a parameter is no layer's and too large for a dense block.
        """
        positions = problem.theta_layout.unravel(torch.arange(problem.theta_layout.size, device=theta.device))
        residuals = self._residuals(problem, theta)
        # A loop over tasks: batch normalisation cannot be pulled back under vmap.
        tasks = [
            _blocks(problem, positions, task, *rest)
            for task, *rest in zip(theta, *problem.samples, residuals, strict=True)
        ]
        blocks = [Block.stack(same) for same in zip(*tasks, strict=True)]
        return EKFACPlusIdentity(blocks, delta, self._note(blocks)), ClosedForm()

    def _residuals(self, problem: InnerProblem, theta: Tensor) -> Tensor:
        """``[B, K, n, C]``: what is pulled back to pseudo-gradients, ``Σ_k r_jk r_jkᵀ`` being sample j's curvature."""
        if self.fisher == "empirical":
            return _own_gradients(problem, theta).unsqueeze(1)
        root = problem.objective.output_curvature_root(problem.lam, theta, problem.samples)
        if self.fisher == "true":
            return root.permute(0, 3, 1, 2)
        signs = torch.stack([self._signs(x, root.shape[1:3]) for x in problem.samples.x]).to(root)
        return torch.einsum("bnck,bmnk->bmnc", root, signs) / self.samples**0.5

    def _signs(self, x: Tensor, shape: torch.Size) -> Tensor:
        """±1, ``[m, n, C]``, from the seed and the task's data alone."""
        content = zlib.crc32(x.double().cpu().numpy().tobytes())
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
        blocks: together all entries of θ, each in one block.
        delta: δ > 0.
        note: how much of θ lies in which kind of block.
    """

    def __init__(self, blocks: Sequence[Block], delta: float, note: str) -> None:
        if not delta > 0:
            raise ValueError(f"the multiple of the identity must be positive, got {delta}")
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
        """Memory that the blocks take."""
        return sum(block.nbytes for block in self.blocks)


def _blocks(
    problem: InnerProblem, positions: Named, theta: Tensor, x: Tensor, y: Tensor, w: Tensor, residuals: Tensor
) -> list[Block]:
    """One task's blocks."""
    lam = problem.layout.unravel(problem.lam)

    def model(named: Named) -> Tensor:
        return outputs_of(problem.objective.loss, lam, named, x, y)

    return task_blocks(PseudoGradients(model, problem.theta_layout.unravel(theta), residuals), w, positions)


def _own_gradients(problem: InnerProblem, theta: Tensor) -> Tensor:
    """√w_j ∂ℓ_j/∂outputs_j, ``[B, n, C]``."""
    if bool((problem.samples.w < 0).any()):
        raise LossStructureError("the empirical Fisher matrix is not defined for negative sample weights")
    loss, lam = problem.objective.loss, problem.layout.unravel(problem.lam)

    def of_one(theta: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        named = problem.theta_layout.unravel(theta)
        criterion = criterion_of(loss, lam, named, x, y)
        by_outputs = grad(lambda outputs: criterion(outputs).sum())(outputs_of(loss, lam, named, x, y))
        return w.sqrt().unsqueeze(-1) * by_outputs.reshape(len(w), -1)

    return vmap(of_one)(theta, *problem.samples)
