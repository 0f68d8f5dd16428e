"""Unlearning by gradient ascent on the item, and its effect on the test loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import NotConvergedError
from ..edits import Edit, Place, Removal
from ..items import Items
from ..passes import Pass, Targets, walk
from ..problem.options import require_count, require_number
from .base import Estimator, FittedEstimator


class AscentFit(FittedEstimator["AscentSteps"]):
    """Moves λ for each item by itself."""

    def scores(self, items: Items, targets: Targets) -> Pass:
        own = walk(self.run, items.gradient, items.gradient.losses, total_gradients=False)
        now = targets.losses()
        here, progress = targets.at(self.run), self.run.problem.progress
        hidden = None if progress is None else not progress
        with tqdm(enumerate(own.losses), "ascent", len(own.losses), leave=False, unit="task", disable=hidden) as bar:
            scores = [
                torch.stack([now - self._after(items, here, (position, j)) for j in range(len(losses))])
                for position, losses in bar
            ]
        return Pass.of(replace(own, scores=scores), now, self._note)

    def change(self, edit: Edit, residual: Tensor | None = None) -> Tensor:
        """The K steps down the edit's change of L_Total: for a removal, up the items' own part."""
        if residual is not None:
            raise self.refusal("correct_residual=True", "takes_residual")
        start = self.run.solved_tasks.lam
        lam, how = start, self.estimator
        for _ in range(how.steps):
            lam = lam - how.lr * edit.gradient_change(self.run.moved(lam))[0]
        if not bool(lam.isfinite().all()):
            raise NotConvergedError(f"{how.steps} ascent steps of size {how.lr:g} left the finite numbers: lower lr")
        return lam - start

    def _after(self, items: Items, targets: Targets, place: Place) -> Tensor:
        """Losses of the targets after the steps for one item, ``[R]``."""
        lam = self.run.solved_tasks.lam + self.change(Removal(items.gradient, [place]))
        return targets.at(self.run.moved(lam)).losses()

    @property
    def _note(self) -> str:
        return f"estimator: {self.estimator.name}, {self.estimator.steps} steps of size {self.estimator.lr:g}"


@dataclass(frozen=True)
class AscentSteps(Estimator):
    """L_test(λ*) − L_test(λ_K), where λ_{k+1} = λ_k + lr · g_item(λ_k) from λ_0 = λ*: K gradient steps *up* the item's
    part of L_Total (for a support sample, up the part of its task's loss that its weight made).

    Positive = harmful: unlearning the item lowers the test loss. Nothing holds the other tasks' losses in place, so
    only a few steps make sense; for lr → 0 scores are lr·K times those of :class:`GradientSimilarity`. Unit: the loss.

    Each item costs K gradients and the losses of all test tasks, which makes this the most expensive estimator. In
    float32 a change below about 1e-7 of the test loss is noise: do not choose lr too small.

    Args:
        steps: K.
        lr: size of a step, in units of λ per unit of gradient, where the average task counts as 1.

    Raises:
        ValueError: a setting is not one of those above.
    """

    name = "ascent"
    fitted = AscentFit

    steps: int = 3
    lr: float = 0.01

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_number("lr", self.lr, above=True)

    def reading(self, what: str, test_loss: float) -> str:
        return (
            "score = loss of the test tasks now − their loss after a few gradient steps up the item's part of the "
            "training loss; positive = harmful; unit: the loss"
        )
