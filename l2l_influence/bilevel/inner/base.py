"""What every solution of the inner problem can do, whichever way it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.func import grad, vmap

from ..layout import Layout
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
    """

    objective: Objective
    lam: Tensor
    samples: Samples
    start: Tensor
    layout: Layout
    part: Layout

    @cached_property
    def positions(self) -> slice | Tensor:
        """Where θ lies in λ."""
        return self.layout.positions(self.part)

    @property
    def prior(self) -> Tensor:
        """The entries of λ that θ starts from, ``[Q]``."""
        return self.lam[self.positions]

    def restrict(self, v: Tensor) -> Tensor:
        """The θ entries of λ-space vectors: ``[B, P] -> [B, Q]``."""
        return v[:, self.positions]

    def embed(self, u: Tensor) -> Tensor:
        """θ-space vectors as λ-space vectors, zero elsewhere: ``[B, Q] -> [B, P]``."""
        out = u.new_zeros(len(u), self.layout.size)
        out[:, self.positions] = u
        return out


OfOne = Callable[..., Tensor]
"""A number that one task's λ ``[P]`` and θ ``[Q]``, and whatever else is given, add up to."""

SecondDerivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(v, e) -> (by_lam, by_w)``: the Hessian of a function of (λ, w) times ``v`` ``[B, P]`` and ``e`` ``[B, n]``."""


class InnerMap(ABC):
    """θ_i of ``B`` tasks as a function of λ and of the support samples' weights w, and its derivatives.

    Attributes:
        problem: whose solution this is.
        theta: ``[B, Q]``.
        residual: ``[B]``, how far θ is from what it should be (its kind says in what unit).
        note: what a reader of results should know of how it is differentiated, in a few words.
    """

    problem: InnerProblem
    theta: Tensor
    residual: Tensor
    note: str = ""

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

    def total(self, value: OfOne, *given: Any) -> Tensor:
        """D_λ ``value(λ, θ(λ), *given)`` of each task (Thm 4.1), ``[B, P]``; what is given has a leading ``B``."""
        mapped = vmap(grad(value, argnums=(0, 1)), in_dims=(None, 0) + (0,) * len(given))
        by_lam, by_theta = mapped(self.problem.lam, self.theta, *given)
        total: Tensor = by_lam + self.vjp(by_theta)
        return total

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
        the way, ``lam`` those of λ, ``rows`` its samples. A Gauss–Newton factor has several rows a sample."""
        return 16 * (forward + rows * lam)

    @abstractmethod
    def solve(self, problem: InnerProblem) -> InnerMap:
        """Solve the inner problems of all tasks in the batch."""
