"""What every solution of the inner problem can do, whichever way it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.func import grad_and_value, jvp, vmap

from ..factored import Theta
from ..layout import Layout, ThetaLayout
from ..objective import Objective
from ..task import Samples


@dataclass(frozen=True)
class InnerProblem:
    """The inner problems of ``B`` tasks at one λ: what an inner kind is given to solve.

    Attributes:
        objective: Σ_j w_j ℓ(z_j; λ, θ) over the support set, without the proximal term.
        lam: λ, ``[P]``.
        samples: support samples of the ``B`` tasks.
        start: where to start, ``[B, Q]``.
        layout: λ's layout; ``part`` is θ's.
        outer: the first task's outer losses at a θ of its; None where solutions are for nothing else.
    """

    objective: Objective
    lam: Tensor
    samples: Samples
    start: Tensor
    layout: Layout
    theta_layout: ThetaLayout
    outer: Callable[[Theta], Tensor] | None = None

    @property
    def initial(self) -> Tensor:
        """θ_0(λ), where steps begin and what the proximal term pulls θ to: ``[Q]``, the same for all tasks."""
        return self.theta_layout.start(self.lam)

    @property
    def entries(self) -> int:
        """How many numbers λ and θ have between them, those of λ that are adapted counted once."""
        return self.layout.size + self.theta_layout.size - self.theta_layout.from_lam

    def select(self, span: slice) -> InnerProblem:
        """Those of some of the tasks."""
        return replace(self, samples=self.samples.select(span), start=self.start[span])


OfOne = Callable[..., Tensor]
"""What comes of one task's λ ``[P]`` and θ (in either form), and whatever else is given; a number unless said."""

SecondDerivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(v, e) -> (by_lam, by_w)``: the Hessian of a function of (λ, w) times ``v`` ``[B, P]`` and ``e`` ``[B, n]``."""


class InnerMap(ABC):
    """θ_i of ``B`` tasks as a function of λ and of the support samples' weights w, and its derivatives.

    Attributes:
        problem: whose solution this is.
        residual: ``[B]``, how far θ is from what it should be (its kind says in what unit).
        note: what a reader of results should know of how it is differentiated, in a few words.
    """

    problem: InnerProblem
    residual: Tensor
    note: str = ""

    @property
    @abstractmethod
    def theta(self) -> Tensor:
        """θ, ``[B, Q]``."""

    @property
    def point(self) -> Theta:
        """θ in the form in which losses at it take least."""
        return self.theta

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        """(dθ/dλ) v: ``[B, P] -> [B, Q]`` (Thm 4.1 for the proximal kind)."""

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        """(dθ/dλ)ᵀ u: ``[B, Q] -> [B, P]``."""

    @abstractmethod
    def jvp_weights(self, e: Tensor) -> Tensor:
        """(dθ/dw) e: ``[B, n] -> [B, Q]``. With e = −w_j at sample j, the change of θ without it (Thm 4.6)."""

    @abstractmethod
    def vjp_weights(self, u: Tensor) -> Tensor:
        """(dθ/dw)ᵀ u: ``[B, Q] -> [B, n]``."""

    def total(self, value: OfOne, *given: Any) -> tuple[Tensor, Tensor]:
        """D_λ ``value(λ, θ(λ), *given)`` of each task (Thm 4.1), ``[B, P]``, and the values, ``[B]``; what is given has
        a leading ``B``."""
        mapped = vmap(grad_and_value(value, argnums=(0, 1)), in_dims=(None, 0) + (0,) * len(given))
        (by_lam, by_theta), values = mapped(self.problem.lam, self.theta, *given)
        return by_lam + self.vjp(by_theta), values

    def sum_of_totals(self, weight: Tensor, value: OfOne, *given: Any) -> Tensor:
        """Σ_i w_i D_λ ``value(λ, θ_i(λ), *given)``, ``[P]``, for ``weight`` ``[B]``."""
        return weight @ self.total(value, *given)[0]

    def along(self, function: OfOne, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """``function(λ, θ(λ), *given)`` of each task, which may be any tensor, and its derivative along v, ``[P]``."""

        def one(theta: Tensor, moved: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
            value, along, *_ = jvp(lambda *at: function(*at, *given), (self.problem.lam, theta), (v, moved))
            return value, along

        value, along = vmap(one)(self.theta, self.jvp(v.expand(len(self.theta), -1)), *given)
        return value, along

    @abstractmethod
    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """The Hessian, as products, of ``L_O(λ, θ(λ, w))``, θ's own second derivatives included."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that keeping this solution takes."""


class InnerKind(ABC):
    """A way to define and find θ_i(λ)."""

    def work(self, forward: int, lam: int, rows: int) -> int:
        """Bytes that one task's derivatives may take: ``forward`` are those that the losses of one of its sets make on
        the way, ``lam`` those of λ or of what is written out of it, ``rows`` its samples. A Gauss–Newton factor has
        several rows a sample."""
        return 16 * (forward + rows * lam)

    def written_out(self, problem: InnerProblem) -> int:
        """Bytes of λ's or θ's entries that are made anew for each task on the way to what is asked for."""
        return problem.entries * problem.lam.element_size()

    @abstractmethod
    def solve(self, problem: InnerProblem) -> InnerMap:
        """Solve the inner problems of all tasks in the batch."""
