"""Decides whether the tasks of a problem can be mapped, by trying that with the first task."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .execution import ExecutionChoice, Found, Mapped, OneByOne
from .execution.one_by_one import fixed_noise
from .objective import Objective
from .task import Samples

ROUNDING = 1 / 3
"""Power of the machine precision up to which derivatives may differ."""

NOTHING = 1000
"""Derivatives below this multiple of the machine precision count as 0."""

SLOWER = "tasks are computed one by one, which takes longer"
NOISE = "the loss draws random numbers, which are the same in each of its evaluations"


class Case(NamedTuple):
    """A loss sum at one point: λ ``[P]``, θ ``[Q]``, and the samples of one task, without a leading ``B``.

    Attributes:
        second: whether second derivatives are tried as well.
    """

    objective: Objective
    lam: Tensor
    theta: Tensor
    samples: Samples
    second: bool

    def computed(self, execution: str) -> Case:
        """The same with another execution."""
        return self._replace(objective=self.objective.with_choice(ExecutionChoice(execution)))

    def copies(self, count: int) -> tuple[Any, ...]:
        """``(theta, x, y, w)`` of a batch that holds the task ``count`` times."""
        both: tuple[Any, ...] = tree_map(lambda part: torch.stack([part] * count), (self.theta, *self.samples))
        return both

    def value(self, lam: Tensor, theta: Tensor, *samples: Any) -> Tensor:
        """The loss sum of one task."""
        return self.objective.value_of_one(lam, theta, Samples(*samples))


def probe(cases: list[Case]) -> Found | None:
    """The execution for these losses: mapped, if that works on a batch of two copies of the task and gives the
    derivatives of plain autograd, within rounding.

    Compared are L, ∂_θ L, and for some cases the product of ∂_θθ L with one direction. The result is None if plain
    autograd cannot evaluate a loss either: its error is raised where it is used.
    """
    with warnings.catch_warnings(), fixed_noise():
        warnings.simplefilter("ignore")
        found = [_judged(case) for case in cases]
    if None in found:
        return None
    return next((one for one in found if one is not None and one.note), Found(Mapped()))


def _judged(case: Case) -> Found | None:
    plain, mapped = _attempts(case, *((_second_in_reverse, _second_forward) if case.second else (_first, _first)))
    if plain.error:
        return _without_second_derivative(case, plain.error)
    if mapped.error:
        return _one_by_one(f"the loss cannot be mapped over tasks ({mapped.error})", case)
    if not _agree(mapped.values, plain.values):
        return _one_by_one("derivatives that are mapped over tasks differ from those of plain autograd", case)
    return Found(Mapped())


def _without_second_derivative(case: Case, error: str) -> Found | None:
    """One by one, if only the second derivative is missing: mapped ones could then be wrong, without an error."""
    if not case.second or _attempt(_first, case.computed("one-by-one"), 1).error:
        return None
    return _one_by_one(f"the loss has no second derivative ({error})", case)


def _one_by_one(reason: str, case: Case) -> Found:
    noise = f"; {NOISE}" if _draws_random_numbers(case) else ""
    return Found(OneByOne(), f"{reason}: {SLOWER}{noise}")


class _Attempt(NamedTuple):
    """Results, or the first line of the error that was raised; the error itself would keep its tensors in memory."""

    values: list[Tensor]
    error: str = ""


Derivatives = Callable[[Case, int], list[Tensor]]
"""Derivatives of a batch of so many copies of the task, one row for each."""


def _attempts(case: Case, plain: Derivatives, mapped: Derivatives) -> tuple[_Attempt, _Attempt]:
    return _attempt(plain, case.computed("one-by-one"), 1), _attempt(mapped, case.computed("mapped"), 2)


def _attempt(derivatives: Derivatives, case: Case, copies: int) -> _Attempt:
    try:
        return _Attempt(derivatives(case, copies))
    except Exception as error:  # whatever a user's loss, or torch, may raise
        return _Attempt([], f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")


def _over(case: Case, function: Callable[..., tuple[Tensor, ...]], copies: int) -> list[Tensor]:
    """The values of the loss, which some layers compute in another way if nothing is differentiated, and the results of
    ``function``."""
    over, arguments = case.objective.execution.over, (case.lam, *case.copies(copies))
    return [over(case.value, shared=1)(*arguments).unsqueeze(1), *over(function, shared=1)(*arguments)]


def _first(case: Case, copies: int) -> list[Tensor]:
    """The value, and the gradients by λ and θ."""
    return _over(case, case.objective.execution.gradient(case.value, (0, 1)), copies)


def _second_forward(case: Case, copies: int) -> list[Tensor]:
    """The value, the gradient by θ, and its derivative along a direction, in one pass of forward over reverse mode."""
    execution, v = case.objective.execution, _direction(case.theta)
    slope = execution.gradient(case.value, 1)

    def both(lam: Tensor, theta: Tensor, *samples: Any) -> tuple[Tensor, Tensor]:
        return execution.jvp(lambda theta: slope(lam, theta, *samples), (theta,), (v,))

    return _over(case, both, copies)


def _second_in_reverse(case: Case, copies: int) -> list[Tensor]:
    """The same by two backward passes."""
    execution, v = case.objective.execution, _direction(case.theta)
    slope = execution.gradient(case.value, 1)

    def both(lam: Tensor, theta: Tensor, *samples: Any) -> tuple[Tensor, Tensor]:
        slopes = []

        def along(theta: Tensor) -> Tensor:
            slopes.append(slope(lam, theta, *samples))
            return torch.dot(slopes[0], v)

        product = execution.gradient(along, 0)(theta)
        return slopes[0].detach(), product

    return _over(case, both, copies)


def _direction(theta: Tensor) -> Tensor:
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(theta)
    return v / v.norm()


def _agree(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(_close(a, b) for a, b in zip(left, right, strict=True))


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether results of two copies, ``[2, P]``, are those of one, ``[1, P]``, up to rounding.

    Of results that are not finite, only the places are compared.
    """
    if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
        return bool((a.isfinite() == b.isfinite()).all())
    eps = torch.finfo(a.dtype).eps
    return bool(((a - b).norm(dim=-1) <= eps**ROUNDING * b.norm(dim=-1) + NOTHING * eps).all())


def _draws_random_numbers(case: Case) -> bool:
    """Whether an evaluation of the loss moves the state of a random generator."""
    devices = (torch.get_rng_state, _cuda_state)
    before = [state() for state in devices]
    case.computed("mapped").value(case.lam, case.theta, *case.samples)
    return any(not torch.equal(old, state()) for old, state in zip(before, devices, strict=True))


def _cuda_state() -> Tensor:
    return torch.cuda.get_rng_state() if torch.cuda.is_initialized() else torch.empty(0)
