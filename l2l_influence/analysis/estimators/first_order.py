"""First-order influence functions: dθ/dλ = I throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...bilevel.inner import ApproximateJacobian, IdentityJacobian
from ..run import RunAt
from .implicit import Implicit, ImplicitFit


@dataclass(frozen=True)
class FirstOrder(Implicit):
    """:class:`Implicit` with dθ/dλ = I throughout, as in first-order MAML, whatever the loop did.

    The adapted parameters stay those of the run's inner problem. (``hessian="direct-first-order"`` also takes dθ/dλ = I
    for the training tasks; there, the test tasks' gradients stay total.)

    Args:
        hessian, damping, tolerance, solver, removal, leave_one_out: see :class:`Implicit`.
    """

    name = "first-order"

    def at(self, run: RunAt) -> ImplicitFit[Any]:
        return ImplicitFit(self, run.with_inner(ApproximateJacobian(run.problem.kind, IdentityJacobian)))
