"""The interface of inner solutions θ_i(λ), however they are found and differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..execution import Execution
from ..factored import Theta
from ..layout import Layout, ThetaLayout
from ..objective import Objective
from ..task import Samples


@dataclass(frozen=True)
class InnerProblem:
    """The inner problems of ``B`` tasks at one λ.

    Attributes:
        objective: Σ_j w_j ℓ(z_j; λ, θ) over the support set, without the proximal term.
        lam: λ, ``[P]``.
        samples: support samples of the ``B`` tasks.
        start: where the search for θ starts, ``[B, Q]``.
        layout: layout of λ.
        theta_layout: layout of θ, and where θ starts as a function of λ.
        outer: the outer losses of the first task as a function of its θ; None if solutions serve no outer loss.
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
        """θ_0(λ), the start of unrolled steps and the centre of the proximal term: ``[Q]``, shared by all tasks."""
        return self.theta_layout.start(self.lam)

    @property
    def execution(self) -> Execution:
        """How functions of one task are evaluated for the batch."""
        return self.objective.execution

    @property
    def entries(self) -> int:
        """How many numbers λ and θ consist of, counting the adapted entries of λ once."""
        return self.layout.size + self.theta_layout.size - self.theta_layout.from_lam

    def select(self, span: slice) -> InnerProblem:
        """The inner problems of a part of the batch: of the tasks at the batch positions ``span``."""
        return replace(self, samples=self.samples.select(span), start=self.start[span])


OfOne = Callable[..., Tensor]
"""A function of one task's λ ``[P]``, its θ (in either form), and further arguments; scalar unless said otherwise."""

SecondDerivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(v, e) -> (by_lam, by_w)``: the Hessian of a function of (λ, w) times ``v`` ``[B, P]`` and ``e`` ``[B, n + r]``."""


class InnerMap(ABC):
    """θ_i of ``B`` tasks as a function of λ and of the weights w of the inner loss, with its derivatives.

    Shapes: B is the number of tasks, P the size of λ, Q the size of θ, n the number of support samples of a task, r the
    number of terms of the inner loss that belong to no sample.

    Attributes:
        problem: the inner problems.
        residual: ``[B]``, the distance of θ from an exact solution, in a unit that depends on the kind.
        note: how θ is differentiated, in a few words, for the notes of results.
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
        """θ in the form that takes least memory in losses."""
        return self.theta

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        """Multiply the Jacobian dθ/dλ of each task by its row of v: ``[B, P] -> [B, Q]``.

        For the proximal kind this is the paper's formula (Thm 4.1).
        """

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        """Multiply the transpose of the Jacobian dθ/dλ of each task by its row of u: ``[B, Q] -> [B, P]``."""

    @abstractmethod
    def jvp_weights(self, e: Tensor) -> Tensor:
        """(dθ/dw) e: ``[B, n + r] -> [B, Q]``. With e = −w_j at sample j, the change of θ when the sample is removed
        (Thm 4.6)."""

    @abstractmethod
    def vjp_weights(self, u: Tensor) -> Tensor:
        """(dθ/dw)ᵀ u: ``[B, Q] -> [B, n + r]``."""

    def total(self, value: OfOne, *given: Any) -> tuple[Tensor, Tensor]:
        """D_λ ``value(λ, θ(λ), *given)`` of each task (Thm 4.1), ``[B, P]``, and the values, ``[B]``.

        Further arguments have a leading ``B``.
        """
        execution = self.problem.execution
        mapped = execution.over(execution.gradient_and_value(value, (0, 1)), shared=1)
        (by_lam, by_theta), values = mapped(self.problem.lam, self.theta, *given)
        return by_lam + self.vjp(by_theta), values

    def sum_of_totals(self, weight: Tensor, value: OfOne, *given: Any) -> Tensor:
        """Σ_i w_i D_λ ``value(λ, θ_i(λ), *given)``, ``[P]``, for ``weight`` ``[B]``."""
        return weight @ self.total(value, *given)[0]

    def along(self, function: OfOne, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """``function(λ, θ(λ), *given)`` of each task, a tensor of any shape, and its derivative along v, ``[P]``."""

        execution, lam = self.problem.execution, self.problem.lam

        def one(theta: Tensor, theta_v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
            return execution.jvp(lambda *point: function(*point, *given), (lam, theta), (v, theta_v))

        value, along = execution.over(one)(self.theta, self.jvp(v.expand(len(self.theta), -1)), *given)
        return value, along

    @abstractmethod
    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """The Hessian of ``L_O(λ, θ(λ, w))`` as products, with the second derivatives of θ included."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that caching this solution takes."""


class InnerKind(ABC):
    """A way to define θ_i(λ), and to find it."""

    def work(self, forward: int, lam: int, rows: int) -> int:
        """Bytes that the derivatives of one task may take.

        Args:
            forward: bytes that a forward pass over one of its sets computes.
            lam: bytes of λ, or of the part of it that is computed for each task.
            rows: number of samples. A Gauss–Newton factor has several rows per sample.
        """
        return 16 * (forward + rows * lam)

    def written_out(self, problem: InnerProblem) -> int:
        """Bytes of the entries of λ and θ that are computed anew for each task, in a pass over tasks."""
        return problem.entries * problem.lam.element_size()

    @abstractmethod
    def solve(self, problem: InnerProblem) -> InnerMap:
        """Solve the inner problems of all tasks of the batch."""
