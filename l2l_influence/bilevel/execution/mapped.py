"""All tasks of a batch at once, by ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp, vmap

from .base import Argnums, Execution, Function, missing_derivatives


class Mapped(Execution):
    """Derivatives by ``torch.func``, mapped over tasks by ``torch.func.vmap``."""

    def over(self, function: Function, shared: int = 0) -> Function:
        def mapped(*arguments: Any) -> Any:
            with missing_derivatives():
                return vmap(function, in_dims=(None,) * shared + (0,) * (len(arguments) - shared))(*arguments)

        return mapped

    def by_row(self, function: Callable[[Tensor], Tensor], out_dim: int = 0) -> Callable[[Tensor], Tensor]:
        mapped: Callable[[Tensor], Tensor] = vmap(function, out_dims=out_dim)
        return mapped

    def gradient_and_value(self, function: Function, argnums: Argnums) -> Function:
        both: Function = grad_and_value(function, argnums=argnums)
        return both

    def gradient(self, function: Function, argnums: Argnums) -> Function:
        gradient: Function = grad(function, argnums=argnums)
        return gradient

    def jvp(self, function: Function, point: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
        value, derivative, *_ = jvp(function, point, along)
        return value, derivative

    def hessian_product(self, function: Callable[[Tensor], Tensor], point: Tensor, v: Tensor) -> Tensor:
        product: Tensor = jvp(grad(function), (point,), (v,))[1]
        return product

    def pull_back(self, function: Function, *point: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        value, gradient, *_ = vjp(function, *point)
        return value, vmap(gradient)

    def linearised(self, function: Function, shared: Tensor, points: Tensor, *given: Any) -> Callable[[Tensor], Tensor]:
        _, gradient, *_ = vjp(lambda points: self.over(function, 1)(shared, points, *given), points)
        return lambda v: gradient(v)[0]
