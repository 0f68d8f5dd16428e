"""A weighted sum of per-sample losses, L(λ, θ) = Σ_j w_j ℓ(z_j; λ, θ), and its derivatives, batched over tasks.

λ is one flat vector ``[P]`` shared by all tasks; θ is ``[B, Q]`` (or in factors, where so typed), samples are a
:class:`Samples` of ``B`` tasks, and vectors that multiply derivatives have a leading ``B`` as well. The mathematics is
written for one task and mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from ..errors import LossStructureError, TaskShapeError
from .elementary import ElementaryNorms
from .factored import FactoredParameters, Theta
from .layout import Layout, Named, ThetaLayout, Vector
from .loss import ModelLoss, PerSampleLoss, criterion_of, outputs_of
from .task import Samples


class Joint(NamedTuple):
    """A vector in the joint space of λ ``[B, P]``, θ ``[B, Q]`` and the sample weights w ``[B, n]``."""

    lam: Tensor
    theta: Tensor
    w: Tensor


class Objective:
    """L(λ, θ) for one per-sample loss.

    Attributes:
        direct: whether L may depend on λ other than through θ. False only where that is certain.
    """

    def __init__(self, loss: PerSampleLoss, lam_layout: Layout, theta_layout: ThetaLayout) -> None:
        self._loss = loss
        self._lam_layout, self._theta_layout = lam_layout, theta_layout
        others = set(lam_layout.shapes) - set(theta_layout.shapes)
        self.direct = not isinstance(loss, ModelLoss) or any(map(loss.reads, others))

    @property
    def loss(self) -> PerSampleLoss:
        """ℓ, for what needs more of it than its derivatives."""
        return self._loss

    # ---- values -----------------------------------------------------------------------------------------------

    def value(self, lam: Tensor, theta: Theta, z: Samples) -> Tensor:
        """L per task, shape ``[B]``."""
        return self._map(self._value)(lam, theta, *z)

    def losses(self, lam: Tensor, theta: Theta, z: Samples) -> Tensor:
        """ℓ_j of each sample, without its weight: shape ``[B, n]``."""
        return self._map(self._losses)(lam, theta, *z)

    # Of one task, all arguments without the leading ``B``; the caller maps them over tasks.

    def value_of_one(self, lam: Vector, theta: Theta, z: Samples) -> Tensor:
        """L."""
        return self._value(lam, theta, *z)

    def weighted_losses_of_one(self, lam: Vector, theta: Theta, z: Samples) -> Tensor:
        """w_j ℓ_j of each sample, ``[n]``."""
        return z.w * self._losses(lam, theta, *z)

    def outputs_of_one(self, lam: Vector, theta: Theta, z: Samples) -> Tensor:
        """What the model gives for each sample, ``[n, ...]``."""
        return self._outputs(lam, theta, *z)

    def outputs_dot_of_one(self, lam: Vector, theta: Theta, z: Samples, c: Tensor) -> Tensor:
        """Σ_j ⟨outputs_j, c_j⟩, for c ``[n, C]``."""
        return torch.dot(self._outputs(lam, theta, *z).flatten(), c.flatten())

    # ---- first derivatives ------------------------------------------------------------------------------------

    def gradient(self, lam: Tensor, theta: Tensor, z: Samples) -> tuple[Tensor, Tensor]:
        """``(∂_λ L, ∂_θ L)``, shapes ``[B, P]`` and ``[B, Q]``."""
        return self._map(grad(self._value, argnums=(0, 1)))(lam, theta, *z)

    def gradient_theta(self, lam: Tensor, theta: Tensor, z: Samples) -> Tensor:
        """∂_θ L, shape ``[B, Q]``."""
        return self._map(grad(self._value, argnums=1))(lam, theta, *z)

    def gradient_theta_of_one(self, lam: Tensor, theta: Tensor, z: Samples) -> Tensor:
        """∂_θ L of one task, ``[Q]``, all arguments without the leading ``B``; the caller maps it over tasks."""
        by_theta: Tensor = grad(self._value, argnums=1)(lam, theta, *z)
        return by_theta

    def slope_of_one(
        self, lam: Vector, theta: FactoredParameters, z: Samples, rows: Mapping[str, int]
    ) -> FactoredParameters:
        """∂_θ L of one task for a θ in factors, in factors as well; ``rows`` go through each layer whose weight is."""
        by_name = self._lam_layout.unravel(lam)
        initial = self._theta_layout.start_by_name(by_name)

        def value(own: dict[str, Tensor], taps: Named) -> tuple[Tensor, Named]:
            with theta._replace(own=own).at_work(initial, taps) as (named, inputs):
                losses = _one_each(self._loss(by_name, named, *z[:2]), z.w)
            return (z.w * losses).sum(), inputs

        taps = {name: initial[name].new_zeros(rows[name], len(initial[name])) for name in rows}
        (by_own, by_outputs), inputs = grad(value, argnums=(0, 1), has_aux=True)(theta.own, taps)
        return FactoredParameters(by_own, by_outputs, inputs)

    def losses_along(self, lam: Tensor, theta: Tensor, z: Samples, v_theta: Tensor) -> Tensor:
        """⟨∂_θ w_j ℓ_j, v_θ⟩ of each sample: shape ``[B, n]``."""
        return self._map(self._losses_along, 1)(lam, theta, *z, v_theta)

    # ---- second derivatives -----------------------------------------------------------------------------------

    def hessian_theta(self, lam: Tensor, theta: Tensor, z: Samples, v: Tensor) -> Tensor:
        """∂_θθ L v, shape ``[B, Q]``."""
        return self._map(_gradient_along(self._value, 1, 1), 1)(lam, theta, *z, v)

    def linearise_theta(self, lam: Tensor, theta: Tensor, z: Samples) -> Callable[[Tensor], Tensor]:
        """``v -> ∂_θθ L v``, ``[B, Q] -> [B, Q]``, whose forward and backward pass are done once, here, and kept.

        What is mapped over tasks is differentiated here: normalisation is recomposed, since torch differentiates a
        mapped gradient of its own wrongly.

        Raises:
            LossStructureError: the model calls a normalisation that cannot be recomposed.
        """
        with ElementaryNorms():
            _, pull_back, *_ = vjp(lambda theta: self.gradient_theta(lam, theta, z), theta)
        return lambda v: pull_back(v)[0]

    def mixed(self, lam: Tensor, theta: Tensor, z: Samples, v: Tensor) -> Tensor:
        """∂_θ∂_λ L v for v in λ-space ``[B, P]``: shape ``[B, Q]``."""
        if not self.direct:
            return v.new_zeros(theta.shape)
        return self._map(_gradient_along(self._value, 0, 1), 1)(lam, theta, *z, v)

    def mixed_transposed(self, lam: Tensor, theta: Tensor, z: Samples, u: Tensor) -> Tensor:
        """∂_λ∂_θ L u for u in θ-space ``[B, Q]``: shape ``[B, P]``."""
        if not self.direct:
            return u.new_zeros(len(u), lam.numel())
        return self._map(_gradient_along(self._value, 1, 0), 1)(lam, theta, *z, u)

    def hessian_lambda(self, lam: Tensor, theta: Tensor, z: Samples, v: Tensor) -> Tensor:
        """∂_λλ L v, shape ``[B, P]``."""
        if not self.direct:
            return torch.zeros_like(v)
        return self._map(_gradient_along(self._value, 0, 0), 1)(lam, theta, *z, v)

    # ---- in λ, θ and w together ----------------------------------------------------------------------------------

    def hessian(self, lam: Tensor, theta: Tensor, z: Samples, along: Joint) -> Joint:
        """∇²_(λ, θ, w) L times ``along``."""
        return Joint(*self._map(_slope_along(self._value), 3)(lam, theta, *z, *along))

    def third(self, lam: Tensor, theta: Tensor, z: Samples, x: Tensor, along: Joint) -> Joint:
        """∇²_(λ, θ, w) ⟨∂_θ L, x⟩ times ``along``, for x in θ-space ``[B, Q]``, held fixed."""
        along_theta = _along_theta(self._value)
        with ElementaryNorms():
            mapped = vmap(_slope_along(along_theta), in_dims=(None,) + (0,) * 8)
            return Joint(*mapped(lam, theta, *z, x, *along))

    # ---- Gauss–Newton -----------------------------------------------------------------------------------------

    def curve(self, lam: Tensor, theta: Theta, z: Samples, outputs: Tensor, along: Tensor) -> Tensor:
        """∂²(w_j ℓ_j)/∂outputs_j² times ``along`` of each sample; all of the outputs' shape, ``[B, n, ...]``."""
        return self._map(self._curve, 2)(lam, theta, *z, outputs, along)

    def output_curvature_root(self, lam: Tensor, theta: Theta, z: Samples) -> Tensor:
        """R_j with R_j R_jᵀ = ∂²(w_j ℓ_j)/∂outputs_j²: shape ``[B, n, C, C]``.

        Raises:
            LossStructureError: the criterion is not convex in the outputs, or its curvature is not finite.
        """
        return _convex_root(self._map(self._output_curvature)(lam, theta, *z), z.w)

    def output_count(self, lam: Tensor, theta: Tensor, z: Samples) -> int:
        """n·C: the number of outputs a task has, which bounds the rank of its Gauss–Newton matrix."""
        return self._map(self._outputs)(lam, theta, *z)[0].numel()

    # ---- one task ---------------------------------------------------------------------------------------------

    def _map(self, function: Callable[..., Any], vectors: int = 0) -> Callable[..., Any]:
        return vmap(function, in_dims=(None, 0, 0, 0, 0) + (0,) * vectors)

    @contextmanager
    def _named(self, lam: Vector, theta: Theta) -> Iterator[tuple[Named, Named]]:
        """λ and θ as the loss takes them, for calls of it inside the block."""
        by_name = self._lam_layout.unravel(lam)
        if isinstance(theta, Tensor):
            yield by_name, self._theta_layout.unravel(theta)
        else:
            with theta.at_work(self._theta_layout.start_by_name(by_name)) as (named, _):
                yield by_name, named

    def _losses(self, lam: Vector, theta: Theta, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        with self._named(lam, theta) as named:
            return _one_each(self._loss(*named, x, y), w)

    def _value(self, lam: Vector, theta: Theta, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return (w * self._losses(lam, theta, x, y, w)).sum()

    def _outputs(self, lam: Vector, theta: Theta, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        with self._named(lam, theta) as named:
            return outputs_of(self._loss, *named, x, y)

    def _output_loss(self, lam: Tensor, theta: Theta, x: Tensor, y: Tensor, w: Tensor) -> Callable[[Tensor], Tensor]:
        def weighted(outputs: Tensor) -> Tensor:
            with self._named(lam, theta) as named:
                return (w * criterion_of(self._loss, *named, x, y)(outputs)).sum()

        return weighted

    def _losses_along(self, lam: Tensor, theta: Tensor, x: Tensor, y: Tensor, w: Tensor, v_theta: Tensor) -> Tensor:
        along: Tensor = jvp(lambda theta: w * self._losses(lam, theta, x, y, w), (theta,), (v_theta,))[1]
        return along

    def _curve(
        self, lam: Tensor, theta: Theta, x: Tensor, y: Tensor, w: Tensor, outputs: Tensor, along: Tensor
    ) -> Tensor:
        curved: Tensor = jvp(grad(self._output_loss(lam, theta, x, y, w)), (outputs,), (along,))[1]
        return curved

    def _output_curvature(self, lam: Tensor, theta: Theta, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Hessian of the criterion by the outputs of each sample, ``[n, C, C]``; samples do not interact in it."""
        outputs = self._outputs(lam, theta, x, y, w)
        flat = outputs.reshape(len(outputs), -1)
        loss = self._output_loss(lam, theta, x, y, w)
        slope = grad(lambda out: loss(out.reshape(outputs.shape)))
        directions = torch.eye(flat.shape[1]).to(flat)
        return vmap(lambda e: jvp(slope, (flat,), (e.expand_as(flat),))[1], out_dims=2)(directions)


def _one_each(losses: Tensor, w: Tensor) -> Tensor:
    if losses.shape != w.shape:
        raise TaskShapeError(
            f"the loss must return one value a sample, shape {tuple(w.shape)}, but returned {tuple(losses.shape)}"
        )
    return losses


def _gradient_along(value: Callable[..., Tensor], along: int, by: int) -> Callable[..., Tensor]:
    """``∂_by ⟨∂_along value, v⟩``, v being the last argument: a product with a block of the Hessian."""

    def directional(*arguments: Tensor) -> Tensor:
        return torch.dot(grad(value, argnums=along)(*arguments[:-1]), arguments[-1])

    return grad(directional, argnums=by)


JOINT = (0, 1, 4)
"""Where λ, θ and w stand among the arguments of :meth:`Objective._value`."""


def _slope_along(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """``∇_(λ, θ, w) ⟨∇_(λ, θ, w) function, (v_λ, v_θ, v_w)⟩``, the three v being the last arguments."""

    def directional(*arguments: Tensor) -> Tensor:
        slopes = grad(function, argnums=JOINT)(*arguments[:-3])
        products = [torch.dot(slope, v) for slope, v in zip(slopes, arguments[-3:], strict=True)]
        return products[0] + products[1] + products[2]

    return grad(directional, argnums=JOINT)


def _along_theta(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``⟨∂_θ function, x⟩``, x being the last argument."""
    return lambda *arguments: torch.dot(grad(function, argnums=1)(*arguments[:-1]), arguments[-1])


def _convex_root(curvature: Tensor, w: Tensor) -> Tensor:
    """R with ``R Rᵀ = curvature`` for symmetric positive semi-definite ``[..., C, C]``, in float64 inside."""
    if not bool(curvature.isfinite().all()):
        raise LossStructureError("the criterion's curvature is not finite: look for infinite or NaN outputs and losses")
    values, vectors = torch.linalg.eigh(curvature.double())
    # Confident predictions have next to no curvature; what is left of it is the rounding of terms as large as w.
    rounding = 100 * torch.finfo(curvature.dtype).eps * torch.maximum(values.abs().amax(), w.abs().amax())
    if bool((values < -rounding).any()):
        raise LossStructureError(
            "the criterion is not convex in the model's outputs, so Gauss–Newton curvature is not defined for it: "
            "choose inner_solver='cg' or 'dense'"
        )
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)).to(curvature.dtype)
