"""Inner inverse products: (GGN + δI)⁻¹ ∇L_O at θ_i, GGN being the Gauss–Newton matrix of the support set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from l2l_influence.bilevel import Proximal, Task

from .contest import Contest, Contestant
from .implicit import RESIDUAL, Placed, Product, query_gradient, residual
from .worlds import World, flat, like

PACKAGE = "curvlinops"


def contest(world: World) -> Contest:
    return Contest(
        "inner Gauss–Newton inverse",
        [
            Contestant("l2l_influence, gram", lambda: ours(world, "gram")),
            Contestant("l2l_influence, ekfac alone", lambda: ours(world, "ekfac"), stops=False),
            Contestant("curvlinops, EK-FAC alone", lambda: by_ekfac(world), PACKAGE, stops=False),
            Contestant("curvlinops, GGN by SciPy's cg", lambda: by_cg(world, preconditioned=False), PACKAGE),
            Contestant("curvlinops, GGN by SciPy's cg with EK-FAC", lambda: by_cg(world, preconditioned=True), PACKAGE),
        ],
        lambda solutions: residual(world, solutions, gauss_newton),
        RESIDUAL,
    )


def ours(world: World, inverse: str) -> Tensor:
    return world.gradients(Placed(Proximal(world.delta, inverse))) / world.delta


def by_ekfac(world: World) -> Tensor:
    return torch.stack(
        [
            torch.from_numpy(ekfac_inverse(world.delta, module, task) @ query_gradient(module, task).numpy())
            for module, task in world.placed()
        ]
    )


def by_cg(world: World, preconditioned: bool) -> Tensor:
    return torch.stack([_by_cg(world.delta, preconditioned, *placed) for placed in world.placed()])


def _by_cg(delta: float, preconditioned: bool, module: nn.Module, task: Task) -> Tensor:
    from curvlinops import GGNLinearOperator

    ggn = GGNLinearOperator(*_of(module, task), **QUICK).to_scipy()
    b = query_gradient(module, task).numpy()
    operator = LinearOperator(ggn.shape, lambda v: ggn @ v + delta * v, dtype=np.float32)
    close = ekfac_inverse(delta, module, task) if preconditioned else None
    return torch.from_numpy(cg(operator, b, rtol=RESIDUAL, M=close)[0])


def ekfac_inverse(delta: float, module: nn.Module, task: Task) -> LinearOperator:
    """On weights and biases of the layers that curvlinops' EK-FAC covers, and 1/δ on others."""
    from curvlinops import EKFACLinearOperator, FisherType, KFACInverseLinearOperator

    covered = _covered(module)
    chosen = [parameter for parameter, inside in zip(module.parameters(), covered, strict=True) if inside]
    model, loss, _, data = _of(module, task)
    options = {"fisher_type": FisherType.TYPE2, "num_per_example_loss_terms": 1}
    ekfac = EKFACLinearOperator(model, loss, chosen, data, **QUICK, **options)
    inverse = KFACInverseLinearOperator(ekfac, damping=delta, use_exact_damping=True).to_scipy()
    mask = np.concatenate(
        [np.full(parameter.numel(), inside) for parameter, inside in zip(module.parameters(), covered, strict=True)]
    )

    def matvec(v: np.ndarray) -> np.ndarray:
        out = v.ravel() / delta
        out[mask] = inverse @ v.ravel()[mask]
        return out

    return LinearOperator((len(mask), len(mask)), matvec, dtype=np.float32)


def _covered(module: nn.Module) -> list[bool]:
    layers = (layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return [id(parameter) in inside for parameter in module.parameters()]


QUICK: dict[str, Any] = {"check_deterministic": False, "num_data": 5}
"""Without checks, and without counting what it can be told."""


def _of(module: nn.Module, task: Task) -> tuple[Any, ...]:
    return module, nn.CrossEntropyLoss(), list(module.parameters()), [task.support]


def gauss_newton(module: nn.Module, task: Task) -> Product:
    """Products with Jᵀ ∂²L/∂outputs² J of the support set."""
    inputs, labels = task.support
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (inputs,))

    def product(v: Tensor) -> Tensor:
        along = dict(zip(parameters, like(v, parameters.values()), strict=True))
        at, moved = jvp(outputs, (parameters,), (along,))
        slope = torch.func.grad(lambda out: F.cross_entropy(out, labels))
        curved = jvp(slope, (at,), (moved,))[1]
        return flat(vjp(outputs, parameters)[1](curved)[0].values())

    return product
