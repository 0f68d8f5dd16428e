"""The bilevel problem of a small recorded run, re-optimised from scratch: what hooks are held against.

Flat vectors, ``torch.func``, and Newton's method: :class:`Retraining` shares nothing with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap
from torch.nn.utils import vector_to_parameters

from l2l_influence import MAML, TaskDataset
from l2l_influence.hooks import EstimatorHook, Hook

from ..reference_problems.learn2learn import Batch, labelled_batches, pairs, train

LR, STEPS, L2 = 0.1, 2, 0.3

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, y)``, one value a sample."""

Item = tuple[int, int] | int
"""A sample, (position of its task, j); or a task, by its position."""


class Weights(NamedTuple):
    """What multiplies each task's outer loss ``[T]``, and each sample's term in it or in the inner loss ``[T, n]``."""

    task: Tensor
    query: Tensor
    support: Tensor


class Retraining:
    """min_λ Σ_i c_i L_O^i(λ, θ_i(λ)) + (l2/2) ‖λ‖² for mean losses; tasks are pairs of support and query set.

    Args:
        inner: ``"unrolled"``, K gradient steps; or ``"proximal"``, argmin_θ L_I + ‖θ − λ‖²/(2·lr·K).
        draws: how often each task was drawn, which makes c_i; once each unless given.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[tuple[Batch, Batch]],
        loss: Loss,
        inner: str,
        *,
        lr: float = LR,
        steps: int = STEPS,
        l2: float = L2,
        draws: Sequence[float] | None = None,
    ) -> None:
        self.model, self.loss, self._inner = model, loss, inner
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._lr, self._steps, self.l2 = lr, steps, l2
        self.tasks = tasks
        self.support, self.query = _stacked([pair[0] for pair in tasks]), _stacked([pair[1] for pair in tasks])
        drawn = torch.ones(len(tasks)).double() if draws is None else torch.tensor(draws).double()
        ones = [torch.ones(y.shape[:2], dtype=torch.float64) for _, y in (self.query, self.support)]
        self.weights = Weights(drawn / drawn.mean(), *ones)

    # ---- one task -----------------------------------------------------------------------------------------------

    def sample_losses(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return self.loss(functional_call(self.model, named, (x,)), y)

    def mean_loss(self, theta: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return (w * self.sample_losses(theta, x, y)).mean()

    def _inner_loss(self, theta: Tensor, lam: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return self.mean_loss(theta, x, y, w) + (theta - lam).square().sum() / (2 * self._lr * self._steps)

    def _adapted(self, lam: Tensor, start: Tensor, x: Tensor, y: Tensor, w: Tensor, order: int) -> Tensor:
        """θ(λ), right up to its derivatives of that order: for the proximal kind, where ``start`` is θ already, as many
        Newton steps from there carry them."""
        if self._inner != "proximal":
            return self._stepped(lam, x, y, w)
        theta = start
        for _ in range(order):
            theta = self._newton(theta, lam, x, y, w)
        return theta

    def _stepped(self, lam: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        theta = lam
        for _ in range(self._steps):
            theta = theta - self._lr * grad(self.mean_loss)(theta, x, y, w)
        return theta

    def _newton(self, theta: Tensor, lam: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        slope = grad(self._inner_loss)(theta, lam, x, y, w)
        return theta - torch.linalg.solve(hessian(self._inner_loss)(theta, lam, x, y, w), slope)

    # ---- all tasks ----------------------------------------------------------------------------------------------

    def theta(self, lam: Tensor, weights: Weights) -> Tensor:
        """θ_i(λ), ``[T, Q]``."""
        x, y = self.support
        if self._inner != "proximal":
            return vmap(self._stepped, (None, 0, 0, 0))(lam, x, y, weights.support)
        theta = lam.repeat(len(x), 1)
        for _ in range(4):
            theta = vmap(self._newton, (0, None, 0, 0, 0))(theta, lam, x, y, weights.support)
        return theta

    def losses(self, lam: Tensor) -> Tensor:
        """L_O of each task, ``[T]``."""
        return vmap(self.mean_loss)(self.theta(lam, self.weights), *self.query, self.weights.query)

    def _total(self, lam: Tensor, weights: Weights, start: Tensor, order: int = 0) -> Tensor:
        """L_Total, right up to derivatives by λ of that order where ``start`` is θ."""
        theta = vmap(self._adapted, (None, 0, 0, 0, 0, None))(lam, start, *self.support, weights.support, order)
        losses = vmap(self.mean_loss)(theta, *self.query, weights.query)
        return weights.task @ losses + 0.5 * self.l2 * lam.square().sum()

    def value(self, lam: Tensor, weights: Weights | None = None) -> Tensor:
        """L_Total, by its value alone."""
        weights = weights or self.weights
        return self._total(lam, weights, self.theta(lam, weights))

    def gradient(self, lam: Tensor, weights: Weights | None = None) -> Tensor:
        """D_λ L_Total, ``[P]``."""
        weights = weights or self.weights
        return grad(self._total)(lam, weights, self.theta(lam, weights), 1)

    def hessian(self, lam: Tensor, weights: Weights | None = None) -> Tensor:
        """D²_λ L_Total, ``[P, P]``, l2 included."""
        weights = weights or self.weights
        return hessian(self._total)(lam, weights, self.theta(lam, weights), 2)

    def by_theta(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """∂_θ L_O ``[T, P]`` and ∂_θθ L_O ``[T, P, P]`` of each task at θ(λ), as if θ were λ itself."""
        at = (self.theta(lam, self.weights), *self.query, self.weights.query)
        return vmap(grad(self.mean_loss))(*at), vmap(hessian(self.mean_loss))(*at)

    # ---- re-optimisation ----------------------------------------------------------------------------------------

    def optimum(self, lam: Tensor, weights: Weights | None = None) -> Tensor:
        """λ* to ‖D_λ L_Total‖ ≤ 1e-11, by Newton steps from ``lam`` that go downhill, as far as that lasts."""
        for _ in range(100):
            slope = self.gradient(lam, weights)
            if slope.norm() <= 1e-11:
                return lam
            values, vectors = torch.linalg.eigh(self.hessian(lam, weights))
            step = vectors @ ((vectors.T @ slope) / values.abs().clamp_min(self.l2 / 10))
            while self.value(lam - step, weights) > self.value(lam, weights) + 1e-12:
                step = step / 2
            lam = lam - step
        raise AssertionError("the reference did not converge")

    def without(self, level: str, items: Sequence[Item], scale: float = 0.0) -> Weights:
        """Weights of these items times ``scale``."""
        changed = getattr(self.weights, level).clone()
        for item in items:
            changed[item] *= scale
        return self.weights._replace(**{level: changed})

    def around(self, lam: Tensor, level: str, items: Sequence[Item], step: float = 1e-4) -> tuple[Tensor, Tensor]:
        """λ* re-optimised with each item's weight times 1 + step, and times 1 − step: ``[M, P]`` each.

        By Newton steps with the Hessian at ``lam``, the optimum for the weights as they are.
        """
        inverse = torch.linalg.inv(self.hessian(lam))
        ends = []
        for scale in (1 + step, 1 - step):
            weights = stacked([self.without(level, [item], scale) for item in items])
            moved = lam.expand(len(items), -1)
            for _ in range(3):
                moved = moved - vmap(self.gradient)(moved, weights) @ inverse
            assert vmap(self.gradient)(moved, weights).norm(dim=1).max() <= 1e-11
            ends.append(moved)
        return ends[0], ends[1]

    def derivatives(self, lam: Tensor, level: str, items: Sequence[Item]) -> Tensor:
        """dλ*/dε by each item's relative weight 1 + ε, ``[M, P]``."""
        more, less = self.around(lam, level, items)
        return (more - less) / 2e-4


def stacked(weights: Sequence[Weights]) -> Weights:
    return Weights(*(torch.stack(parts) for parts in zip(*weights, strict=True)))


def _stacked(pairs: Sequence[Batch]) -> Batch:
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


# ---- a run to ask about -----------------------------------------------------------------------------------------

ORDER = [3, 1, 4, 0, 2, 1, 1]
"""The draws of :func:`optimal_run`, by key: ids go by first draw, and one task counts three times."""


@dataclass(frozen=True)
class Run:
    """A small network that was recorded on five tasks, at λ* of the whole problem.

    Attributes:
        reference: the training problem; it knows tasks by their keys.
        test: three more tasks, ``pairs``, and the same problem on them.
    """

    maml: MAML
    tasks: TaskDataset
    reference: Retraining
    test: Retraining
    lam: Tensor
    inner: str
    loss: nn.Module = nn.CrossEntropyLoss()

    @property
    def ids(self) -> list[int]:
        """Each task's id, by key."""
        first = list(dict.fromkeys(ORDER))
        return [first.index(key) for key in range(len(first))]

    @cached_property
    def hessian(self) -> Tensor:
        """δ_o I + H at λ*."""
        return self.reference.hessian(self.lam)

    @cached_property
    def test_gradient(self) -> Tensor:
        """D_λ of the test tasks' mean loss."""
        return (self.test.gradient(self.lam) - self.test.l2 * self.lam) / len(self.test.tasks)

    def hook(self, kind: type[Hook], **options: Any) -> Any:
        """A hook that solves everything exactly, unless told otherwise."""
        inner = {"inner": self.inner, "l2": L2, "inner_solver": "dense", "inner_tolerance": 1e-12}
        outer = {"hessian": "exact", "damping": 0.0, "tolerance": 1e-12} if issubclass(kind, EstimatorHook) else {}
        return kind(self.maml, self.tasks, self.loss, **{**inner, **outer, **options})


@cache
def optimal_run(inner: str) -> Run:
    """To be left as it is: it is shared."""
    model = network()
    batches, test = labelled_batches(5, seed=0), pairs(labelled_batches(3, seed=1))
    maml, tasks = train(model, batches, nn.CrossEntropyLoss(), lr=LR, steps=STEPS, order=ORDER)
    draws = [ORDER.count(key) for key in range(5)]
    reference = Retraining(model, pairs(batches), cross_entropies, inner, draws=draws)
    lam = reference.optimum(flat(dict(model.named_parameters())))
    vector_to_parameters(lam, model.parameters())
    return Run(maml, tasks, reference, Retraining(model, test, cross_entropies, inner), lam, inner)


def network(seed: int = 0) -> nn.Module:
    """Its outputs are not linear in its 14 parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()


def cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


def flat(named: Mapping[str, Tensor]) -> Tensor:
    """A hook's vector, or a model's parameters, as the reference has them."""
    return torch.cat([value.detach().flatten() for value in named.values()])


def changes(edited: Mapping[str, Tensor], maml: MAML) -> Tensor:
    """What an edited state_dict does to the learner's λ."""
    return flat({name: edited[name] - value for name, value in maml.state_dict().items()})


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
