"""The weighted sum of per-sample losses, L(λ, θ) = Σ_j w_j ℓ(z_j; λ, θ), and its derivatives, batched over tasks.

The sum is over the n samples, and over r terms that belong to no sample if the loss returns such terms.

λ is one flat vector ``[P]`` shared by all tasks. θ is ``[B, Q]``, or in low-rank factors where the type says so.
Samples are :class:`Samples` of ``B`` tasks, and vectors that multiply derivatives have a leading ``B`` as well. Each
derivative is written for one task; an :class:`~l2l_influence.bilevel.execution.Execution` evaluates it for the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from ..errors import LossStructureError, TaskShapeError
from .elementary import ElementaryNorms
from .execution import Execution, ExecutionChoice
from .factored import FactoredParameters, Theta
from .layout import Layout, Named, ThetaLayout, Vector
from .loss import PerSampleLoss, SteppedLoss, criterion_of, is_coupled, outputs_of, reads_lam, steps_differ
from .task import Inputs, Samples


class Joint(NamedTuple):
    """A vector in the joint space of λ ``[B, P]``, θ ``[B, Q]`` and the weights w ``[B, n + r]``."""

    lam: Tensor
    theta: Tensor
    w: Tensor


class Objective:
    """L(λ, θ) for one per-sample loss.

    Args:
        loss: ℓ, which returns one value per sample.
        lam_layout, theta_layout: layouts of λ and θ.
        choice: how functions of one task are evaluated for a batch; mapped if None.

    Attributes:
        direct: whether L may depend on λ other than through θ. False only if that is certain.
        steps_differ: whether the loss is another function in each inner step.
    """

    def __init__(
        self,
        loss: PerSampleLoss,
        lam_layout: Layout,
        theta_layout: ThetaLayout,
        choice: ExecutionChoice | None = None,
    ) -> None:
        self._loss, self._choice = loss, choice or ExecutionChoice()
        self._lam_layout, self._theta_layout = lam_layout, theta_layout
        self.direct = reads_lam(loss, lam_layout.shapes, theta_layout.shapes)
        self.steps_differ = steps_differ(loss)

    @property
    def loss(self) -> PerSampleLoss:
        """The loss ℓ(z_j; λ, θ) of single samples z_j, without their weights w_j."""
        return self._loss

    @property
    def execution(self) -> Execution:
        """How functions of one task are evaluated for a batch of tasks, and differentiated."""
        return self._choice.execution

    def with_choice(self, choice: ExecutionChoice) -> Objective:
        """The same objective, computed in another way."""
        return Objective(self._loss, self._lam_layout, self._theta_layout, choice)

    def at_step(self, k: int) -> Objective:
        """The objective of inner step k = 0, 1, …: this one, unless the loss differs from step to step."""
        if not (self.steps_differ and isinstance(self._loss, SteppedLoss)):
            return self
        return Objective(self._loss.at_step(k), self._lam_layout, self._theta_layout, self._choice)

    # ---- values -----------------------------------------------------------------------------------------------

    def value(self, lam: Tensor, theta: Theta, z: Samples) -> Tensor:
        """L of each task, ``[B]``."""
        return self._map(self._value)(lam, theta, *z)

    def losses(self, lam: Tensor, theta: Theta, z: Samples) -> Tensor:
        """ℓ_j of each sample, without its weight, and the terms that belong to no sample: ``[B, n + r]``."""
        return self._map(self._losses)(lam, theta, *z)

    # Methods named ..._by_name and ..._of_one take one task, all arguments without the leading ``B``; the caller maps
    # them over tasks.

    def losses_by_name(self, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
        """ℓ_j of each sample of one task, ``[n + r]``."""
        with self.execution.evaluation():
            return self._loss(lam, theta, x, y)

    def outputs_by_name(self, lam: Named, theta: Named, x: Inputs, y: Tensor) -> Tensor:
        """Model outputs for each sample of one task, ``[n, ...]``.

        Raises:
            LossStructureError: the loss is a function whose model outputs cannot be found.
        """
        with self.execution.evaluation():
            return outputs_of(self._loss, lam, theta, x, y)

    def from_outputs_by_name(self, lam: Named, theta: Named, x: Inputs, y: Tensor, outputs: Tensor) -> Tensor:
        """ℓ_j of each sample of one task for these outputs, ``[n + r]``."""
        with self.execution.evaluation():
            return criterion_of(self._loss, lam, theta, x, y)(outputs)

    def value_of_one(self, lam: Vector, theta: Theta, z: Samples) -> Tensor:
        """L of one task."""
        return self._value(lam, theta, *z)

    def weighted_losses_of_one(self, lam: Vector, theta: Theta, z: Samples) -> Tensor:
        """w_j ℓ_j of each sample of one task, and the weighted terms that belong to no sample: ``[n + r]``."""
        return z.w * self._losses(lam, theta, *z)

    def outputs_of_one(self, lam: Vector, theta: Theta, z: Samples) -> Tensor:
        """Model outputs for each sample of one task, ``[n, ...]``."""
        return self._outputs(lam, theta, *z)

    def outputs_dot_of_one(self, lam: Vector, theta: Theta, z: Samples, c: Tensor) -> Tensor:
        """Σ_j ⟨outputs_j, c_j⟩ of one task, for c ``[n, C]``."""
        return torch.dot(self._outputs(lam, theta, *z).flatten(), c.flatten())

    # ---- first derivatives ------------------------------------------------------------------------------------

    def gradient(self, lam: Tensor, theta: Tensor, z: Samples) -> tuple[Tensor, Tensor]:
        """``(∂_λ L, ∂_θ L)``, ``[B, P]`` and ``[B, Q]``."""
        return self._map(self.execution.gradient(self._value, (0, 1)))(lam, theta, *z)

    def gradient_theta(self, lam: Tensor, theta: Tensor, z: Samples) -> Tensor:
        """∂_θ L, ``[B, Q]``."""
        return self._map(self.execution.gradient(self._value, 1))(lam, theta, *z)

    def gradient_theta_of_one(self, lam: Tensor, theta: Tensor, z: Samples) -> Tensor:
        """∂_θ L of one task, ``[Q]``."""
        by_theta: Tensor = self.execution.gradient(self._value, 1)(lam, theta, *z)
        return by_theta

    def slope_of_one(
        self, lam: Vector, theta: FactoredParameters, z: Samples, rows: Mapping[str, int]
    ) -> FactoredParameters:
        """∂_θ L of one task for a θ in low-rank factors, in the same form.

        Args:
            lam, theta, z: of one task, without the leading ``B``.
            rows: for each weight that is in factors, how many rows pass through its layer.
        """
        by_name = self._lam_layout.unravel(lam)
        initial = self._theta_layout.start_by_name(by_name)

        def value(dense: dict[str, Tensor], taps: Named) -> tuple[Tensor, Named]:
            work = theta._replace(dense=dense).at_work(initial, taps)
            with self.execution.evaluation(), work as (named, inputs):
                losses = _one_each(self._loss(by_name, named, *z[:2]), z.w)
            return (z.w * losses).sum(), inputs

        taps = {name: initial[name].new_zeros(rows[name], len(initial[name])) for name in rows}
        (by_dense, by_outputs), inputs = grad(value, argnums=(0, 1), has_aux=True)(theta.dense, taps)
        return FactoredParameters(by_dense, by_outputs, inputs)

    def losses_along(self, lam: Tensor, theta: Tensor, z: Samples, v_theta: Tensor) -> Tensor:
        """⟨∂_θ w_j ℓ_j, v_θ⟩ of each sample, and of each term that belongs to no sample: ``[B, n + r]``."""
        return self._map(self._losses_along)(lam, theta, *z, v_theta)

    # ---- second derivatives -----------------------------------------------------------------------------------

    def hessian_theta(self, lam: Tensor, theta: Tensor, z: Samples, v: Tensor) -> Tensor:
        """∂_θθ L v, an HVP: ``[B, Q]``."""
        return self._map(self._gradient_along(1, 1))(lam, theta, *z, v)

    def linearise_theta(self, lam: Tensor, theta: Tensor, z: Samples) -> Callable[[Tensor], Tensor]:
        """The function ``v -> ∂_θθ L v``, ``[B, Q] -> [B, Q]``, whose shared forward and backward pass are computed
        once, here.

        Use it for many products at the same θ; it keeps the graph in memory. Normalisation layers are recomposed from
        elementary operations, since torch differentiates the mapped gradient of its own ones wrongly.

        Raises:
            LossStructureError: the model calls a normalisation that cannot be recomposed.
        """
        with ElementaryNorms():
            return self.execution.linearised(self.execution.gradient(self._value, 1), lam, theta, *z)

    def mixed(self, lam: Tensor, theta: Tensor, z: Samples, v: Tensor) -> Tensor:
        """∂_θ∂_λ L v for v in λ-space ``[B, P]``: ``[B, Q]``."""
        if not self.direct:
            return v.new_zeros(theta.shape)
        return self._map(self._gradient_along(0, 1))(lam, theta, *z, v)

    def mixed_transposed(self, lam: Tensor, theta: Tensor, z: Samples, u: Tensor) -> Tensor:
        """∂_λ∂_θ L u for u in θ-space ``[B, Q]``: ``[B, P]``."""
        if not self.direct:
            return u.new_zeros(len(u), lam.numel())
        return self._map(self._gradient_along(1, 0))(lam, theta, *z, u)

    def hessian_lambda(self, lam: Tensor, theta: Tensor, z: Samples, v: Tensor) -> Tensor:
        """∂_λλ L v, ``[B, P]``."""
        if not self.direct:
            return torch.zeros_like(v)
        return self._map(self._gradient_along(0, 0))(lam, theta, *z, v)

    # ---- in λ, θ and w together ----------------------------------------------------------------------------------

    def hessian(self, lam: Tensor, theta: Tensor, z: Samples, along: Joint) -> Joint:
        """∇²_(λ, θ, w) L times ``along``."""
        return Joint(*self._map(_slope_along(self.execution, self._value))(lam, theta, *z, *along))

    def third(self, lam: Tensor, theta: Tensor, z: Samples, x: Tensor, along: Joint) -> Joint:
        """∇²_(λ, θ, w) ⟨∂_θ L, x⟩ times ``along``, with x in θ-space ``[B, Q]`` held fixed."""
        along_theta = _along_theta(self.execution, self._value)
        with ElementaryNorms():
            return Joint(*self._map(_slope_along(self.execution, along_theta))(lam, theta, *z, x, *along))

    # ---- Gauss–Newton -----------------------------------------------------------------------------------------

    def curve(self, lam: Tensor, theta: Theta, z: Samples, outputs: Tensor, along: Tensor) -> Tensor:
        """∂²(w_j ℓ_j)/∂outputs_j² times ``along`` for each sample; ``outputs``, ``along`` and the result are ``[B, n,
        ...]``."""
        return self._map(self._curve)(lam, theta, *z, outputs, along)

    def output_curvature_root(self, lam: Tensor, theta: Theta, z: Samples) -> Tensor:
        """R_j with R_j R_jᵀ = ∂²(w_j ℓ_j)/∂outputs_j²: ``[B, n, C, C]``.

        If the loss is ``coupled``, all N outputs of a task count as those of one sample: ``[B, 1, N, N]``.

        Raises:
            LossStructureError: the criterion is not convex in the outputs, its curvature is not finite, or it couples
                the samples and does not say so.
        """
        curvature, between = self._map(self._output_curvature)(lam, theta, *z)
        _require_apart(between, torch.maximum(curvature.abs().amax(), z.w.abs().amax()))
        return _convex_root(curvature, z.w)

    def output_count(self, lam: Tensor, theta: Tensor, z: Samples) -> int:
        """n·C, the number of outputs per task, which bounds the rank of its Gauss–Newton matrix."""
        return self._map(self._outputs)(lam, theta, *z)[0].numel()

    # ---- one task ---------------------------------------------------------------------------------------------

    def _map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.execution.over(function, shared=1)

    @contextmanager
    def _named(self, lam: Vector, theta: Theta) -> Iterator[tuple[Named, Named]]:
        """λ and θ as the loss takes them, for calls of the loss inside the block."""
        by_name = self._lam_layout.unravel(lam)
        with self.execution.evaluation():
            if isinstance(theta, Tensor):
                yield by_name, self._theta_layout.unravel(theta)
            else:
                with theta.at_work(self._theta_layout.start_by_name(by_name)) as (named, _):
                    yield by_name, named

    def _losses(self, lam: Vector, theta: Theta, x: Inputs, y: Tensor, w: Tensor) -> Tensor:
        with self._named(lam, theta) as named:
            return _one_each(self._loss(*named, x, y), w)

    def _value(self, lam: Vector, theta: Theta, x: Inputs, y: Tensor, w: Tensor) -> Tensor:
        return (w * self._losses(lam, theta, x, y, w)).sum()

    def _outputs(self, lam: Vector, theta: Theta, x: Inputs, y: Tensor, w: Tensor) -> Tensor:
        with self._named(lam, theta) as named:
            return outputs_of(self._loss, *named, x, y)

    def _output_loss(self, lam: Tensor, theta: Theta, x: Inputs, y: Tensor, w: Tensor) -> Callable[[Tensor], Tensor]:
        def weighted(outputs: Tensor) -> Tensor:
            with self._named(lam, theta) as named:
                return (w * criterion_of(self._loss, *named, x, y)(outputs)).sum()

        return weighted

    def _losses_along(self, lam: Tensor, theta: Tensor, x: Inputs, y: Tensor, w: Tensor, v_theta: Tensor) -> Tensor:
        def weighted(theta: Tensor) -> Tensor:
            return w * self._losses(lam, theta, x, y, w)

        along: Tensor = self.execution.jvp(weighted, (theta,), (v_theta,))[1]
        return along

    def _curve(
        self, lam: Tensor, theta: Theta, x: Inputs, y: Tensor, w: Tensor, outputs: Tensor, along: Tensor
    ) -> Tensor:
        return self.execution.hessian_product(self._output_loss(lam, theta, x, y, w), outputs, along)

    def _output_curvature(self, lam: Tensor, theta: Theta, x: Inputs, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The Hessian of the criterion by the outputs of each sample, ``[n, C, C]``; by all outputs if the loss is
        coupled, ``[1, N, N]``. And its terms between samples, times irregular signs, ``[n, C]``."""
        outputs = self._outputs(lam, theta, x, y, w)
        flat = outputs.reshape(1 if is_coupled(self._loss) else len(outputs), -1)
        loss = self._output_loss(lam, theta, x, y, w)

        def product(directions: Tensor) -> Tensor:
            return self.execution.hessian_product(lambda out: loss(out.reshape(outputs.shape)), flat, directions)

        columns = self.execution.by_row(lambda direction: product(direction.expand_as(flat)), out_dim=2)
        curvature = columns(torch.eye(flat.shape[1]).to(flat))
        signs = _irregular_signs(flat)
        return curvature, product(signs) - torch.einsum("jck,jk->jc", curvature, signs)

    def _gradient_along(self, along: int, by: int) -> Callable[..., Tensor]:
        """A product with a block of the Hessian, ``∂_by ⟨∂_along L, v⟩``; the last argument is v."""

        def directional(*arguments: Any) -> Tensor:
            return torch.dot(self.execution.gradient(self._value, along)(*arguments[:-1]), arguments[-1])

        return self.execution.gradient(directional, by)


def _one_each(losses: Tensor, w: Tensor) -> Tensor:
    if losses.shape != w.shape:
        raise TaskShapeError(
            f"the loss must return one value per sample, and one for each further weight, shape {tuple(w.shape)}, but "
            f"returned shape {tuple(losses.shape)}: use reduction='none'"
        )
    return losses


JOINT = (0, 1, 4)
"""Positions of λ, θ and w among the arguments of :meth:`Objective._value`."""


def _slope_along(execution: Execution, function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """``∇_(λ, θ, w) ⟨∇_(λ, θ, w) function, (v_λ, v_θ, v_w)⟩``; the last three arguments are v."""

    def directional(*arguments: Any) -> Tensor:
        slopes = execution.gradient(function, JOINT)(*arguments[:-3])
        products = [torch.dot(slope, v) for slope, v in zip(slopes, arguments[-3:], strict=True)]
        return products[0] + products[1] + products[2]

    return execution.gradient(directional, JOINT)


def _along_theta(execution: Execution, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``⟨∂_θ function, x⟩``; the last argument is x."""
    return lambda *arguments: torch.dot(execution.gradient(function, 1)(*arguments[:-1]), arguments[-1])


def _irregular_signs(like: Tensor) -> Tensor:
    """±1 without a pattern, in the shape of ``like``; not drawn, since random numbers cannot be mapped over tasks."""
    return (torch.arange(1, like.numel() + 1).square().double().sin() > 0).to(like).view(like.shape) * 2 - 1


def _require_apart(between: Tensor, scale: Tensor) -> None:
    """Refuse terms between samples in the curvature of a criterion, if they are more than rounding at this scale."""
    if bool((between.abs() > 1000 * torch.finfo(between.dtype).eps * scale).any()):
        raise LossStructureError(
            "the criterion couples the samples: its second derivative by the model outputs has terms between them. "
            "Make the loss an OutputLoss with coupled = True, or use methods that do not need outputs: "
            "inner_solver='cg' or 'dense', and the Hessian kinds 'exact' or 'hessian'"
        )


def _convex_root(curvature: Tensor, w: Tensor) -> Tensor:
    """R with ``R Rᵀ = curvature`` for symmetric positive semi-definite ``[..., C, C]``, computed in float64."""
    if not bool(curvature.isfinite().all()):
        raise LossStructureError(
            "the second derivative of the criterion by the model outputs is infinite or NaN: check the outputs and "
            "losses of the tasks for such values"
        )
    values, vectors = torch.linalg.eigh(curvature.double())
    # Confident predictions have almost no curvature: what is computed is the rounding of terms as large as w.
    rounding = 100 * torch.finfo(curvature.dtype).eps * torch.maximum(values.abs().amax(), w.abs().amax())
    if bool((values < -rounding).any()):
        raise LossStructureError(
            f"the criterion is not convex in the model outputs (smallest curvature {float(values.min()):.3g}), so it "
            "has no Gauss–Newton matrix: use inner_solver='cg' or 'dense', and the Hessian kinds 'exact' or 'hessian'"
        )
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)).to(curvature.dtype)
