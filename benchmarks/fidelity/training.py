"""Meta-training on stacked tasks, with any weights of tasks and samples: what retraining is done by.

Nothing here is the package's but :class:`FunctionalModel`: θ is a function of λ in plain ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vmap

from l2l_influence.bilevel import FunctionalModel, Layout
from l2l_influence.evaluation.metrics import Floats

from ..estimators.retraining import Weights
from ..estimators.worlds import Named, Stacked

Begun = Callable[[Tensor, torch.optim.Optimizer], None]
"""Is given λ ``[P]``, which the optimizer will change in place."""

HELD = 2**23
"""Numbers in the gradients of tasks that are held side by side."""
REST = 1e-5
"""The largest entry of the gradient at which training has come to rest."""


@dataclass(frozen=True)
class Schedule:
    """Adam's way through training, its step size falling linearly to zero; and from there towards rest, where asked.

    Attributes:
        lr, steps, weight_decay: of Adam.
        batch: tasks a step, drawn with replacement as ``taskset.sample()`` does; None for all of them.
        settle: steps of L-BFGS, at most, that follow on all tasks, until the gradient is nearly nothing.
    """

    lr: float
    steps: int
    batch: int | None = None
    weight_decay: float = 1e-4
    settle: int = 0


@dataclass(frozen=True)
class MetaTraining:
    """MAML with the mean cross-entropy, or ANIL, where only some parameters are adapted.

    Attributes:
        network: makes the network, with torch's random numbers.
        lr, steps: of the adaptation.
        adapted: what names of adapted parameters begin with.
    """

    network: Callable[[], nn.Module]
    lr: float
    steps: int
    adapted: str = ""

    @property
    def layout(self) -> Layout:
        return Layout(_function(self.network).parameters)

    def fresh(self, seed: int) -> Tensor:
        """λ before training, ``[P]``."""
        torch.manual_seed(seed)
        np.random.seed(seed)  # OmniglotFC draws from SciPy
        model = self.network()
        return self.layout.ravel({name: value.detach() for name, value in model.named_parameters()})

    def train(
        self,
        tasks: Stacked,
        weights: Weights,
        start: Tensor,
        schedule: Schedule,
        seed: int = 0,
        begun: Begun = lambda lam, optimiser: None,
    ) -> Tensor:
        """λ ``[P]`` after ``schedule`` from ``start``: the objective is ``(1/N) Σ_i c_i L_O^i + (decay/2) ‖λ‖²``, N
        counting tasks of weight 0 too; with batches the mean over tasks drawn in proportion to c_i. ``begun`` is
        given what Adam moves, and Adam, before the first step."""
        lam = self._by_adam(tasks, weights, start, schedule, seed, begun) if schedule.steps else start
        return self._settled(tasks, weights, lam, schedule) if schedule.settle else lam

    def _by_adam(
        self, tasks: Stacked, weights: Weights, start: Tensor, schedule: Schedule, seed: int, begun: Begun
    ) -> Tensor:
        lam = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([lam], schedule.lr, weight_decay=schedule.weight_decay)
        cooling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / schedule.steps)
        generator = torch.Generator().manual_seed(seed)
        begun(lam.detach(), optimiser)
        for _ in range(schedule.steps):
            rows, shares = _chosen(weights.task, schedule.batch, generator)
            part = Weights(shares, *_samples(weights, rows))
            lam.grad = self._objective(lam.detach(), _rows(tasks, rows), part)[1]
            optimiser.step()
            cooling.step()
        return lam.detach()

    def _settled(self, tasks: Stacked, weights: Weights, lam: Tensor, schedule: Schedule) -> Tensor:
        rows, shares = _chosen(weights.task, None, torch.Generator())
        kept, part, decay = _rows(tasks, rows), Weights(shares, *_samples(weights, rows)), schedule.weight_decay

        def objective(x: Floats) -> tuple[float, Floats]:
            at = torch.as_tensor(x).to(lam)
            value, gradient = self._objective(at, kept, part)
            return float(value + decay / 2 * at @ at), (gradient + decay * at).double().numpy()

        options = {"maxiter": schedule.settle, "maxfun": 3 * schedule.settle, "maxcor": 20, "gtol": REST, "ftol": 1e-12}
        found = minimize(objective, lam.double().numpy(), jac=True, method="L-BFGS-B", options=options)
        return torch.as_tensor(found.x).to(lam)

    def losses(self, lam: Tensor, tasks: Stacked) -> Floats:
        """Query loss of each task after adaptation, ``[N]``."""
        weights = Weights.of(tasks)
        named, function = self.layout.unravel(lam), _function(self.network)

        def one(sx: Tensor, sy: Tensor, sw: Tensor, qx: Tensor, qy: Tensor, qw: Tensor) -> Tensor:
            return self._outer(function, named, sx, sy, sw, qx, qy, qw)

        with torch.no_grad():
            found: Tensor = vmap(one, chunk_size=_together(lam))(*_interleaved(tasks, weights, lam))
        return found.double().numpy()

    def _objective(self, lam: Tensor, tasks: Stacked, weights: Weights) -> tuple[Tensor, Tensor]:
        """Σ_i c_i L_O^i, and its gradient ``[P]``, by task inside vmap: torch gets normalisation layers wrong from
        outside."""
        layout, function = self.layout, _function(self.network)

        def one(
            c: Tensor, sx: Tensor, sy: Tensor, sw: Tensor, qx: Tensor, qy: Tensor, qw: Tensor
        ) -> tuple[Tensor, Tensor]:
            def loss(flat: Tensor) -> Tensor:
                return self._outer(function, layout.unravel(flat), sx, sy, sw, qx, qy, qw)

            gradient, value = grad_and_value(loss)(lam)
            return c * value, c * gradient

        total, gradients = lam.new_zeros(()), torch.zeros_like(lam)
        shares = weights.task.to(lam)
        parts = _interleaved(tasks, weights, lam)
        for begin in range(0, len(shares), _together(lam)):
            piece = slice(begin, begin + _together(lam))
            values, each = vmap(one)(shares[piece], *(part[piece] for part in parts))
            total, gradients = total + values.sum(0), gradients + each.sum(0)
        return total, gradients

    def _outer(
        self,
        function: FunctionalModel,
        named: Named,
        sx: Tensor,
        sy: Tensor,
        sw: Tensor,
        qx: Tensor,
        qy: Tensor,
        qw: Tensor,
    ) -> Tensor:
        """L_O of one task as a function of λ."""
        theta = {name: value for name, value in named.items() if name.startswith(self.adapted)}
        for _ in range(self.steps):
            slopes = grad(lambda now: _loss(function(named | now, sx), sy, sw))(theta)
            theta = {name: theta[name] - self.lr * slopes[name] for name in theta}
        return _loss(function(named | theta, qx), qy, qw)


@cache
def _function(network: Callable[[], nn.Module]) -> FunctionalModel:
    return FunctionalModel(network())


def _together(lam: Tensor) -> int:
    return max(1, HELD // len(lam))


def _loss(outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (w * F.cross_entropy(outputs, y, reduction="none")).sum()


def _chosen(c: Tensor, batch: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which tasks a step is about, and what each counts."""
    if batch is None:
        kept = c.nonzero().squeeze(1)
        return kept, c[kept] / len(c)
    return torch.multinomial(c, batch, replacement=True, generator=generator), torch.full((batch,), 1 / batch)


def _rows(tasks: Stacked, rows: Tensor) -> Stacked:
    return Stacked(*(part[rows] for part in vars(tasks).values()))


def _samples(weights: Weights, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights.support[rows], weights.query[rows]


def _interleaved(tasks: Stacked, weights: Weights, like: Tensor) -> tuple[Tensor, ...]:
    """As ``_outer`` takes them."""
    support, query = (part.to(like) for part in _samples(weights, torch.arange(len(tasks))))
    return tasks.support_x, tasks.support_y, support, tasks.query_x, tasks.query_y, query
