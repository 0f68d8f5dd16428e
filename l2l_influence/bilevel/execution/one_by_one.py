"""One task after another, by plain autograd, for models that ``torch.func`` cannot map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..elementary import ElementaryNorms
from .base import Argnums, Execution, Function, differentiable_attention, missing_derivatives, no_derivative

ONCE = "it calls a function whose backward pass is marked with @once_differentiable"

SEED = 0
"""Seed of the random numbers that a model draws in its forward pass."""


class OneByOne(Execution):
    """A loop over tasks, with derivatives by ``torch.autograd.grad``.

    It takes longer than mapping, and works for whatever autograd can differentiate: recurrent layers, boolean indexing,
    control flow that depends on data, custom functions, writes into buffers. Each call of a loss starts from the same
    seed, so that a model that draws random numbers is a function of its arguments. The state of torch's generators is
    left as it was.

    A derivative that is not nested in another one keeps no graph: at the top, gradients are switched off.
    """

    def over(self, function: Function, shared: int = 0) -> Function:
        def mapped(*arguments: Any) -> Any:
            same, batched = arguments[:shared], arguments[shared:]
            with torch.no_grad(), fixed_noise():
                results = [function(*same, *_task(batched, i)) for i in range(len(tree_leaves(batched)[0]))]
                return tree_map(lambda *parts: torch.stack(parts).detach(), *results)

        return mapped

    def by_row(self, function: Callable[[Tensor], Tensor], out_dim: int = 0) -> Callable[[Tensor], Tensor]:
        return lambda rows: torch.stack([function(row) for row in rows], dim=out_dim)

    def gradient_and_value(self, function: Function, argnums: Argnums) -> Function:
        places = (argnums,) if isinstance(argnums, int) else argnums

        def both(*arguments: Any) -> tuple[Any, Tensor]:
            nested, given = torch.is_grad_enabled(), list(arguments)
            with torch.enable_grad():
                for place in places:
                    given[place] = _variables(given[place])
                value = function(*given)
            found = _slopes(value, tuple(given[place] for place in places), create_graph=nested)
            if nested and _undifferentiable(found, value):
                raise no_derivative(ONCE)
            return found[0] if isinstance(argnums, int) else found, value if nested else value.detach()

        return both

    def jvp(self, function: Function, point: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
        """By two backward passes: ``⟨Jᵀ u, along⟩`` is linear in u, and its gradient by u is ``J along``.

        These differentiate a backward pass, which torch's own normalisation does not support at higher orders. If the
        backward pass cannot be differentiated, there is one pass for each entry of the value.
        """
        nested = torch.is_grad_enabled()
        with torch.enable_grad():
            variables = _variables(point)
            with ElementaryNorms():
                value = function(*variables)
            u = torch.zeros_like(value).requires_grad_()
            pulled = _slopes(value, variables, u, create_graph=True)
            if _undifferentiable(pulled, value):
                if nested:
                    raise no_derivative(ONCE)
                entries = [_dot(_slopes(e, variables, retain_graph=True), along) for e in value.flatten()]
                return value.detach(), torch.stack(entries).view(value.shape)
            product = _slopes(_dot(pulled, along), u, create_graph=nested)
        return value if nested else value.detach(), product

    def hessian_product(self, function: Callable[[Tensor], Tensor], point: Tensor, v: Tensor) -> Tensor:
        product: Tensor = self.gradient(lambda at: (self.gradient(function, 0)(at) * v).sum(), 0)(point)
        return product

    def pull_back(self, function: Function, *point: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        with torch.enable_grad(), fixed_noise():
            variables = _variables(point)
            value = function(*variables)

        def gradients(cotangents: Tensor) -> Any:
            with fixed_noise():
                rows = [_slopes(value, variables, cotangent, retain_graph=True) for cotangent in cotangents]
            return tree_map(lambda *parts: torch.stack(parts), *rows)

        return value.detach(), gradients

    def linearised(self, function: Function, shared: Tensor, points: Tensor, *given: Any) -> Callable[[Tensor], Tensor]:
        graphs = []
        with torch.enable_grad(), fixed_noise():
            for i, point in enumerate(_variables(points).unbind()):
                graphs.append((function(shared, point, *_task(given, i)), point))

        def product(v: Tensor) -> Tensor:
            with fixed_noise():
                return torch.stack(
                    [_slopes(value, at, row, retain_graph=True) for (value, at), row in zip(graphs, v, strict=True)]
                )

        return product

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """The context in which a loss or a model is called: from the same state of the random generators."""
        with differentiable_attention(), fixed_noise():
            yield


@contextmanager
def fixed_noise() -> Iterator[None]:
    """Seeds torch's generators inside the block, and restores their state after it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed would seed other devices as well, whose state is not restored.
        torch.default_generator.manual_seed(SEED)
        if devices:
            torch.cuda.manual_seed(SEED)
        yield


def _task(batched: Any, i: int) -> Any:
    return tree_map(lambda part: part[i], batched)


def _variables(tree: Any) -> Any:
    """The same tensors as variables to differentiate by, still connected to the graph that they are part of."""

    def variable(part: Tensor) -> Tensor:
        return part.view_as(part) if part.requires_grad else part.detach().requires_grad_()

    return tree_map(variable, tree)


def _slopes(value: Tensor, variables: Any, along: Tensor | None = None, **graph: bool) -> Any:
    """The gradient of ``value`` (along ``along``, if it has several entries), in the form of ``variables``.

    Raises:
        LossStructureError: an operation has no derivative of this order.
    """
    if not value.requires_grad:
        return tree_map(torch.zeros_like, variables)
    leaves = tree_leaves(variables)
    with missing_derivatives():
        found = iter(torch.autograd.grad(value, leaves, along, allow_unused=True, materialize_grads=True, **graph))
    return tree_map(lambda leaf: next(found), variables)


def _undifferentiable(slopes: Any, value: Tensor) -> bool:
    """Whether the backward pass that led from ``value`` to ``slopes`` holds a step that has no derivative.

    torch marks such a step by a node that would raise, but never visits it when it looks for the derivative by given
    tensors: the term would silently be missing.
    """
    if value.grad_fn is None:
        return False
    forward, waiting = value.grad_fn._sequence_nr(), [slope.grad_fn for slope in tree_leaves(slopes)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node._sequence_nr() <= forward:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        waiting += [further for further, _ in node.next_functions]
    return False


def _dot(left: Any, right: Any) -> Tensor:
    products = [(a * b).sum() for a, b in zip(tree_leaves(left), tree_leaves(right), strict=True)]
    return torch.stack(products).sum()
