"""The proximal inner problem θ_i(λ) = argmin_θ L_I (the paper's), differentiated by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import LossStructureError, NotConvergedError
from ..objective import Joint, Objective
from ..solvers import CG, Agreement, Invertible, Policy, SolveReport, agreement
from ..task import Samples
from .base import InnerKind, InnerMap, InnerProblem, SecondDerivative
from .inverses.inverse import InnerHessian, Inverse, pick
from .minimise import Minimum, minimise

BY_PRODUCTS = ("cg", "minres", "neumann", "identity")
"""Inverses that need only products with H_in."""

AGREEMENT_ITERATIONS = 100
"""Iterations of CG for the exact solution that an approximate inverse is compared with."""


@dataclass(frozen=True)
class Proximal(InnerKind):
    """θ_i(λ) minimises L_I = Σ_j w_j ℓ(z_j; λ, θ) + (δ/2) ‖θ − θ_0(λ)‖².

    Args:
        delta: δ > 0.
        inverse: how H_in = ∂_θθ L_I is inverted. ``"gram"``: its Gauss–Newton part, exactly; ``"ekfac"``: an
            approximation of that part; ``"identity"``: δI only. All of H_in: ``"cg"``, ``"minres"``, ``"neumann"`` or
            ``"dense"``, and, preconditioned, ``"cg+gram"``, ``"cg+ekfac"`` or ``"neumann+ekfac"``. ``"auto"``: gram if
            a task has few outputs, else cg. Or an object with settings, such as ``EKFAC(fisher="mc")``.
        tolerance: largest accepted ‖∂_θ L_I(θ)‖ / ‖∂_θ L_I(θ_0)‖; chosen by the dtype if None. The search aims at a
            tenth of it, and ends earlier if it makes no more progress: networks with ReLU or max-pooling often have the
            minimum on a kink, where a few per cent is the best that can be reached.
        max_iterations: of the Newton search.
        policy: what to do if H_in is not positive definite, or its inverse misses its tolerance.

    Raises:
        ValueError: δ is not positive.

    >>> Proximal(2.0, "gram").delta
    2.0
    >>> Proximal(0.0)
    Traceback (most recent call last):
    ValueError: proximal, the strength of the inner proximal term, must be positive, got 0.0
    """

    delta: float
    inverse: str | Inverse = "auto"
    tolerance: float | None = None
    max_iterations: int = 100
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"proximal, the strength of the inner proximal term, must be positive, got {self.delta}")

    def work(self, forward: int, lam: int, rows: int) -> int:
        """Solvers that need only products take a few vectors, and no rows."""
        return super().work(forward, lam, 1 if self.inverse in BY_PRODUCTS else rows)

    def solve(self, problem: InnerProblem) -> ProximalMap:
        if problem.objective.steps_differ:
            raise LossStructureError(
                "the inner loss differs from step to step, so it has no single minimiser: use the unrolled inner kind "
                "(inner='unrolled', or Unrolled(lr, steps)), or a loss whose steps are the same"
            )
        finest = torch.finfo(problem.lam.dtype).eps ** 0.6
        accepted = self.tolerance or finest
        aim = min(accepted, max(finest, accepted / 10))
        minimum = self._search(problem, aim)
        _require_minimum(minimum, accepted)
        return ProximalMap(problem, minimum, self, min(aim, 1e-4))

    def _search(self, problem: InnerProblem, tolerance: float) -> Minimum:
        objective, lam, samples, initial = problem.objective, problem.lam, problem.samples, problem.initial

        def value(theta: Tensor) -> Tensor:
            return objective.value(lam, theta, samples) + 0.5 * self.delta * (theta - initial).square().sum(-1)

        def gradient(theta: Tensor) -> Tensor:
            return objective.gradient_theta(lam, theta, samples) + self.delta * (theta - initial)

        def direction(theta: Tensor, slope: Tensor) -> Tensor:
            # A loose tolerance is enough far from the minimum; at negative curvature CG stops with a descent direction.
            hessian = InnerHessian(problem, theta, self.delta).for_many_products()
            return -CG(tolerance=0.1, max_iterations=30).solve(hessian, slope).value

        scale = gradient(initial.expand_as(problem.start)).norm(dim=-1)
        # θ_0 may already be the minimiser: a gradient that moves θ by less than its rounding counts as 0.
        scale = scale.clamp_min(torch.finfo(lam.dtype).eps / tolerance * self.delta * float(initial.norm()))
        return minimise(value, gradient, direction, problem.start, scale, tolerance, self.max_iterations)


class ProximalMap(InnerMap):
    """The minimiser and its Jacobian dθ/dλ = −H_in⁻¹ (∂_θ∂_λ Σℓ − δ E) (Thm 4.1), with E = dθ_0/dλ.

    Attributes:
        residual: ‖∂_θ L_I(θ)‖ / ‖∂_θ L_I(θ_0)‖.
        report: report of the last solve with H_in; None before the first.
        note: how H_in is inverted.
    """

    def __init__(self, problem: InnerProblem, minimum: Minimum, kind: Proximal, tolerance: float) -> None:
        self._theta, self.residual = minimum.point, minimum.residual
        self.report: SolveReport | None = None
        self.problem, self._delta, self._policy = problem, kind.delta, kind.policy
        inverse = pick(kind.inverse, problem)
        self._operator, self._solver = inverse(problem, self.theta, kind.delta, tolerance)
        self.note = self._operator.note

    @property
    def theta(self) -> Tensor:
        return self._theta

    def inverse(self, v: Tensor) -> Tensor:
        """Solve H_in x = v for each task: ``[B, Q] -> [B, Q]``, for B tasks with Q entries of θ each.

        H_in = ∂_θθ L_I is the second derivative of a task's inner loss.

        Raises:
            NegativeCurvatureError: H_in is not positive definite, and the policy did not resolve it.
            NotConvergedError: the tolerance was missed, and ``on_unconverged`` is ``"raise"``.
        """
        operator = self._operator.for_many_products()
        solution = self._policy.solve(operator, self._solver, v, "the inner system H_in x = v")
        self.report = solution.report
        return solution.value

    def agreement(self, b: Tensor) -> Agreement | None:
        """Compare a closed-form inverse with the inverse of all of H_in, for ``b`` ``[B, Q]``; None for other
        inverses."""
        if not isinstance(self._operator, Invertible):
            return None
        exact = InnerHessian(self.problem, self.theta, self._delta)
        return agreement(self._operator, exact, b, max_iterations=AGREEMENT_ITERATIONS)

    def jvp(self, v: Tensor) -> Tensor:
        problem = self.problem
        mixed = problem.objective.mixed(problem.lam, self.theta, problem.samples, v)
        return self.inverse(self._delta * problem.theta_layout.jvp(v) - mixed)

    def vjp(self, u: Tensor) -> Tensor:
        return self._through_lam(self.inverse(u))

    def jvp_weights(self, e: Tensor) -> Tensor:
        return -self.inverse(self._slope(e))

    def vjp_weights(self, u: Tensor) -> Tensor:
        return self._through_weights(self.inverse(u))

    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """The total Hessian (Def. 4.2) as products.

        With x = H_in⁻¹ ∂_θ L_O held fixed it is ∇²(L_O − ⟨x, ∂_θ L_I⟩) between [I; dθ/d(λ, w)] and its transpose.
        """
        problem = self.problem
        x = self.inverse(outer.gradient_theta(problem.lam, self.theta, query))
        zero = torch.zeros_like(query.w)

        def product(v: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            mixed = problem.objective.mixed(problem.lam, self.theta, problem.samples, v)
            theta_v = self.inverse(self._delta * problem.theta_layout.jvp(v) - mixed - self._slope(e))
            upper = outer.hessian(problem.lam, self.theta, query, Joint(v, theta_v, zero))
            lower = problem.objective.third(problem.lam, self.theta, problem.samples, x, Joint(v, theta_v, e))
            back = self.inverse(upper.theta - lower.theta)
            return upper.lam - lower.lam + self._through_lam(back), self._through_weights(back) - lower.w

        return product

    def _slope(self, e: Tensor) -> Tensor:
        """∂_θ Σ_j e_j ℓ_j."""
        problem = self.problem
        return problem.objective.gradient_theta(problem.lam, self.theta, problem.samples._replace(w=e))

    def _through_lam(self, x: Tensor) -> Tensor:
        """−(∂_θ∂_λ L_I)ᵀ x."""
        problem = self.problem
        mixed = problem.objective.mixed_transposed(problem.lam, self.theta, problem.samples, x)
        return problem.theta_layout.vjp(self._delta * x) - mixed

    def _through_weights(self, x: Tensor) -> Tensor:
        """−⟨∂_θ ℓ_j, x⟩ of each sample."""
        problem, plain = self.problem, self.problem.samples._replace(w=torch.ones_like(self.problem.samples.w))
        return -problem.objective.losses_along(problem.lam, self.theta, plain, x)

    @property
    def nbytes(self) -> int:
        return self.theta.nbytes + self._operator.nbytes + self._solver.nbytes


def _require_minimum(minimum: Minimum, tolerance: float) -> None:
    missed = ~(minimum.residual <= tolerance)  # NaN counts as missed
    if bool(missed.any()):
        raise NotConvergedError(
            f"the inner problem of {int(missed.sum())} of {len(missed)} tasks was not solved: the relative gradient is "
            f"{float(minimum.residual.max()):.1e} after {minimum.iterations} iterations, and the tolerance is "
            f"{tolerance:.1e}. Use a larger proximal strength or inner_tolerance, or unrolled steps as the inner kind "
            "(networks with ReLU or max-pooling may have their minimum on a kink, where no gradient vanishes)"
        )
