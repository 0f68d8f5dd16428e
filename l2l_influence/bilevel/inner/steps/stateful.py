"""K steps of an optimiser with a state (momentum, Adam's moments), differentiated by ``higher``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import higher
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from ....errors import UncoveredParameterError
from ...execution import Execution, OneByOne
from ...layout import Named
from ...task import Samples
from ..base import InnerKind, InnerProblem, OfOne
from .steps import OfBoth, Pair, StepsMap

LEFT_OUT = ("maximize", "decoupled_weight_decay")
"""Settings of torch's optimisers that ``higher``'s versions would silently ignore."""


@dataclass(frozen=True)
class UnrolledWith(InnerKind):
    """K steps of an optimiser on Σ_j w_j ℓ(z_j; λ, θ), from θ_0(λ) and a fresh state for each task.

    The steps are those of ``higher``'s differentiable version of the optimiser, as in a loop under
    ``higher.innerloop_ctx``. They equal torch's own except for Adam's ε: ``higher`` adds it before the bias correction
    (where it counts 30 times as much in the first step), torch after it.

    Args:
        optimizer: makes the optimiser from a list of tensors, such as ``partial(torch.optim.Adam, lr=0.01)``.
            ``higher`` must know it: Adadelta, Adagrad, Adam, Adamax, ASGD, RMSprop, Rprop, SGD, or one registered with
            it.
        steps: K ≥ 1.

    Raises:
        ValueError: ``higher`` has no such optimiser, or would ignore some of its settings.
        TypeError: ``optimizer`` is an optimiser and does not make one.

    >>> import torch
    >>> from functools import partial
    >>> UnrolledWith(partial(torch.optim.SGD, lr=0.1, momentum=0.9), steps=3).steps
    3
    """

    optimizer: Callable[[list[Tensor]], Optimizer]
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps, the number of inner steps, must be 1 or more, got {self.steps}")
        if not callable(self.optimizer):
            raise TypeError(
                "optimizer must be a function that makes an optimiser from a list of tensors, such as "
                f"partial(torch.optim.Adam, lr=0.01), got an object of type {type(self.optimizer).__name__}"
            )
        _check_supported(self.optimizer([torch.zeros(1, requires_grad=True)]))

    def solve(self, problem: InnerProblem) -> StatefulMap:
        return StatefulMap(problem, self)


def _check_supported(optimizer: Optimizer) -> None:
    name, known = type(optimizer).__name__, higher.optim._opt_mapping
    if type(optimizer) not in known:
        names = ", ".join(sorted(supported.__name__ for supported in known))
        raise ValueError(
            f"higher has no differentiable version of {name}: use one of {names}, or add one by higher.register_optim"
        )
    ignored = [setting for setting in LEFT_OUT if optimizer.param_groups[0].get(setting)]
    if ignored:
        raise ValueError(
            f"higher's {name} ignores {' and '.join(ignored)}, so its steps would differ from those of training: "
            "unset it, in training as well"
        )


class StatefulMap(StepsMap):
    """The end of an optimiser's steps. ``higher`` needs plain autograd: tasks are computed one by one.

    Raises:
        UncoveredParameterError: a derivative is not finite.
    """

    def __init__(self, problem: InnerProblem, kind: UnrolledWith) -> None:
        self._kind = kind
        super().__init__(problem)

    @property
    def execution(self) -> Execution:
        return OneByOne()

    def along(self, function: OfOne, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        value, along = super().along(function, v, *given)
        self._require_finite({"the result": along})
        return value, along

    def _along(self, v: Tensor, e: Tensor) -> Tensor:
        rows = super()._along(v, e)
        for row in rows:
            self._require_finite(self.problem.theta_layout.unravel(row))
        return rows

    def _steps(self, samples: Samples) -> OfBoth:
        def steps(lam: Tensor, w: Tensor) -> Tensor:
            problem = self.problem
            theta, tracked = problem.theta_layout.start(lam), lam.requires_grad
            leaf = theta.detach().requires_grad_()
            optimizer = higher.get_diff_optim(self._kind.optimizer([leaf]), [leaf], track_higher_grads=tracked)
            theta = theta if tracked else leaf
            for k in range(self._kind.steps):
                with torch.enable_grad():
                    loss = problem.objective.at_step(k).value_of_one(lam, theta, samples._replace(w=w))
                    with _FlatRoots():
                        (theta,) = optimizer.step(loss, params=[theta])
            return theta

        return steps

    def _slopes(self, value: OfBoth, point: Pair) -> tuple[Pair, Tensor]:
        slopes, found = super()._slopes(value, point)
        return self._finite(slopes), found

    def _curve(self, value: OfBoth, point: Pair, v: Pair) -> Pair:
        return self._finite(super()._curve(value, point, v))

    def _finite(self, by_both: Pair) -> Pair:
        by_lam, by_w = by_both
        self._require_finite({**self.problem.layout.unravel(by_lam), "the support weights": by_w})
        return by_both

    def _require_finite(self, derivatives: Named) -> None:
        counts = {name: int((~value.isfinite()).sum()) for name, value in derivatives.items()}
        broken = ", ".join(f"{count} of {name}" for name, count in counts.items() if count)
        if broken:
            raise UncoveredParameterError(
                f"the derivative through the inner optimiser's steps is not finite (entries: {broken}): the steps "
                "diverge, or an inner gradient is so small that the optimiser's division by its size has no usable "
                "derivative. Use a smaller lr, a larger eps, float64, or SGD"
            )


class _FlatRoots(TorchFunctionMode):
    """Square roots with derivative 0 at 0, of any order.

    Adam and similar optimisers divide by √v + ε, and v is 0 where a gradient is 0 (at a dead unit). There ``higher``
    removes the infinite slope of the root from first derivatives, which makes them right, but not from those by double
    backward.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.sqrt:
            return func(*args, **(kwargs or {}))
        zero = args[0] == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, args[0]).sqrt())
