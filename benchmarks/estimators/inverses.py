"""What the inverses of the inner Hessian are worth: all held against the dense one, on proximal inner problems."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from l2l_influence.analysis.estimators.implicit import RELATIVE_DAMPING
from l2l_influence.bilevel import Proximal, Sketch, Unrolled
from l2l_influence.bilevel.solvers.neumann import largest_eigenvalue
from l2l_influence.evaluation import pearson

from .fidelity import Row, total_gradients
from .worlds import World

INVERSES = ("dense", "cg", "gram", "ekfac", "identity")


class Found(NamedTuple):
    """Total gradients ``[N, P]``, scores ``[N, T]``, and the processor time of the gradients."""

    gradients: Tensor
    scores: Tensor
    seconds: float


def inverse_rows(world: World, lam: Tensor) -> list[Row]:
    """One row an inverse, at λ* (``lam``)."""
    by_name = {name: _find(world, lam, name) for name in INVERSES}
    return [
        {"table": "inverses", "inverse": name} | _compared(found, by_name["dense"]) for name, found in by_name.items()
    ]


def _compared(found: Found, dense: Found) -> Row:
    """The medians over tasks of the cosine and of the relative error of total gradients; Pearson's r of scores on the
    mean test loss."""
    apart = (found.gradients - dense.gradients).norm(dim=1) / dense.gradients.norm(dim=1)
    return {
        "cosine": float(F.cosine_similarity(found.gradients, dense.gradients, dim=1).median()),
        "error": float(apart.median()),
        "pearson": pearson(found.scores.mean(1).numpy(), dense.scores.mean(1).numpy()),
        "seconds": found.seconds,
    }


def _find(world: World, lam: Tensor, inverse: str) -> Found:
    """What the hooks do by default, but for the inverse: a sketched Hessian, damped."""
    kind = world.kind
    strength = 1 / (kind.lr * kind.steps) if isinstance(kind, Unrolled) else kind.delta
    problem, named = world.problem(Proximal(strength, inverse)), world.layout.unravel(lam)
    start = time.process_time()
    gradients = total_gradients(problem.at(named, world.train.listed()))
    took = time.process_time() - start
    tests = total_gradients(problem.at(named, world.test.listed()))
    hessian = problem.total_hessian(named, world.train.listed(), Sketch(samples=16))
    damping = RELATIVE_DAMPING * float(largest_eigenvalue(hessian.operator, tests[:1], 8))
    return Found(gradients, -gradients @ hessian.solve_rows(tests, damping=damping).value.T, took)
