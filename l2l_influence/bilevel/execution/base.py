"""The interface of executions, and settings of torch that all of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import LossStructureError

Function = Callable[..., Any]
"""A function of tensors, or of nestings of tensors."""

Argnums = int | tuple[int, ...]
"""Positions of the arguments by which a function is differentiated."""


class Execution(ABC):
    """A way to evaluate functions of one task for a batch of tasks, and to differentiate them.

    Derivatives can be nested: a function that is differentiated may compute derivatives itself. Functions of one task
    must not depend on the batch.
    """

    @abstractmethod
    def over(self, function: Function, shared: int = 0) -> Function:
        """``function`` for a batch of tasks: arguments and results have a leading ``B``, except for the first
        ``shared`` arguments, which are the same for all tasks. Results hold no graph."""

    @abstractmethod
    def by_row(self, function: Callable[[Tensor], Tensor], out_dim: int = 0) -> Callable[[Tensor], Tensor]:
        """``function`` of each row of its argument, with the results along dimension ``out_dim``; for use inside a
        function of one task."""

    @abstractmethod
    def gradient_and_value(self, function: Function, argnums: Argnums) -> Function:
        """``(gradient, value)`` of a scalar function."""

    def gradient(self, function: Function, argnums: Argnums) -> Function:
        """The gradient of a scalar function."""
        both = self.gradient_and_value(function, argnums)
        return lambda *arguments: both(*arguments)[0]

    @abstractmethod
    def jvp(self, function: Function, point: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
        """The value of a function, one tensor, and its derivative along a direction."""

    @abstractmethod
    def hessian_product(self, function: Callable[[Tensor], Tensor], point: Tensor, v: Tensor) -> Tensor:
        """The Hessian of a scalar function of one tensor, times ``v``."""

    @abstractmethod
    def pull_back(self, function: Function, *point: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        """The value of a function, and ``cotangents [r, ...] -> gradients`` by each argument, with a leading ``r``."""

    @abstractmethod
    def linearised(self, function: Function, shared: Tensor, points: Tensor, *given: Any) -> Callable[[Tensor], Tensor]:
        """``v [B, Q] -> Jᵀ v`` with the Jacobian J of ``function(shared, point, *given)`` by its point, for each task.

        The forward passes are computed once, here.
        """

    def evaluation(self) -> AbstractContextManager[None]:
        """The context in which a loss or a model is called."""
        return differentiable_attention()


NO_DERIVATIVE = ("derivative for", "differentiate twice")
"""Parts of torch's messages that say that an operation has no derivative of the order asked for."""


@contextmanager
def missing_derivatives() -> Iterator[None]:
    """Names the error of torch if an operation has no derivative of the order that is computed inside the block.

    Raises:
        LossStructureError: this happened.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(part in str(error) for part in NO_DERIVATIVE):
            raise
        raise no_derivative(str(error).splitlines()[0]) from error


def no_derivative(reason: str) -> LossStructureError:
    """The error for a loss that cannot be differentiated as often as needed."""
    return LossStructureError(
        f"the loss has no derivative of the order that is needed here ({reason}): answers that need first derivatives "
        "only still work, such as the Hessian kind 'identity' with Unrolled(lr, steps, first_order=True)"
    )


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Computes attention from elementary operations, since torch's fused kernels have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
