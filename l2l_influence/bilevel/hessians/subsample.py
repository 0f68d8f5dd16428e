"""A total Hessian estimated from a subset of the tasks, the paper's I_S.

Every estimate is unbiased: its mean over the draws is Σ_i c_i H_i.

- At random: m of the N tasks are drawn without replacement, and each stands for N/m tasks.
- By a score s_i ≥ 0 of the tasks: m are drawn with replacement, and each draw of task i counts 1/(m p_i), with ``p_i =
  c_i (1/Σ_j c_j + s_i/Σ_j c_j s_j) / 2``.

The variance would be smallest with p_i ∝ c_i ‖H_i‖: s_i stands in for the size of H_i. The factor c_i belongs there
because a task that was trained on twice should be drawn as two tasks would be, and no task should be drawn rarely and
weigh much. The half of p_i that follows c_i alone bounds the weight c_i/(m p_i) of any draw by 2 Σ_j c_j/m: a score
that misjudges H_i at most doubles the mean square of a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ...errors import InfluenceError
from ..solved_tasks import SolvedBatch, SolvedTasks
from ..solvers import LinearOperator
from .base import Curvature, Subsets, TaskSum
from .entropy import predictive_entropy
from .kinds import curvature

By = Literal["random", "difficulty", "uncertainty"]

SCORES: dict[str, Callable[[SolvedBatch], Tensor]] = {
    "difficulty": SolvedBatch.outer_loss,
    "uncertainty": predictive_entropy,
}
"""Scores of the tasks of a batch, by the name that ``by`` takes."""

STREAM = 1_618_033_989
"""Added to the seed: a sketch with the same seed that draws a subset of these tasks must do so independently."""


class Drawn(NamedTuple):
    """Tasks that stand for all.

    Attributes:
        positions: of the distinct tasks drawn, ascending.
        weights: of each of them, in place of c_i.
    """

    positions: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Subsample(Curvature):
    """``Σ_i c_i H_i`` estimated from ``tasks`` draws; all tasks with their weights c_i if there are no more than that.

    Drawing by a score takes one pass over all tasks, to compute the scores; drawing at random takes no pass. A score
    can pay off with few draws if it reflects the size of H_i (or the weights c_i do). Random draws are distinct, and
    had the smallest error among tasks of equal weight from half of the tasks on.

    Args:
        kind: the Hessian to estimate.
        tasks: m = |I_S|.
        by: ``"random"``: uniformly. ``"difficulty"``: in proportion to the outer loss L_O^i (above 0, or above the
            smallest one if that is negative). ``"uncertainty"``: in proportion to the entropy of the softmax of the
            query outputs, summed with the weights of the outer loss (their mean if that is a mean).
        seed: seed of the draws; the same seed draws the same tasks, whatever the batches.

    Raises:
        ValueError: ``tasks`` is not a positive integer, or ``kind`` or ``by`` is unknown.
        LossStructureError: ``"uncertainty"`` for a loss whose outputs are not class scores.
        InfluenceError: the scores are not finite, or all weights c_i are 0.

    >>> Subsample("gauss-newton", tasks=32, by="difficulty").tasks
    32
    >>> Subsample("gauss-newton", tasks=0)
    Traceback (most recent call last):
    ValueError: tasks, the number of tasks to draw, must be a positive integer, got 0
    """

    kind: str | Curvature
    tasks: int
    by: By = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        curvature(self.kind)
        if not isinstance(self.tasks, int) or self.tasks < 1:
            raise ValueError(f"tasks, the number of tasks to draw, must be a positive integer, got {self.tasks!r}")
        if self.by not in get_args(By):
            raise ValueError(f"by must be one of {list(get_args(By))}, got {self.by!r}")

    @property
    def needs_exact_inverse(self) -> bool:
        """As for the kind that is estimated."""
        return curvature(self.kind).needs_exact_inverse

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        return curvature(self.kind).linearised(solved)

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        drawn, count = self.draw(solved_tasks), len(solved_tasks.tasks)
        chosen = solved_tasks if self.tasks >= count else solved_tasks.subset(drawn.positions, drawn.weights)
        inner = curvature(self.kind).operator(chosen)
        name = self.kind if isinstance(self.kind, str) else type(self.kind).__name__
        return SomeTasks(inner, drawn.positions, count, f"{inner.note or name} from {self._described(drawn, count)}")

    def draw(self, solved_tasks: SolvedTasks) -> Drawn:
        """The tasks drawn, and the weights with which they stand for all."""
        count = len(solved_tasks.tasks)
        if self.tasks >= count:
            return Drawn(list(range(count)), solved_tasks.weights)
        generator = torch.Generator().manual_seed(self.seed + STREAM)
        if self.by == "random":
            chosen = torch.randperm(count, generator=generator)[: self.tasks]
            return _drawn(solved_tasks.weights, chosen, torch.full((count,), self.tasks / count, dtype=torch.float64))
        p = probabilities(solved_tasks.weights, _scores(solved_tasks, self.by))
        return _drawn(solved_tasks.weights, torch.multinomial(p, self.tasks, True, generator=generator), self.tasks * p)

    def _described(self, drawn: Drawn, count: int) -> str:
        if self.tasks >= count:
            return f"all {count} tasks"
        how = "at random" if self.by == "random" else f"by {self.by}, {len(drawn.positions)} distinct"
        return f"{self.tasks} of {count} tasks ({how})"


class SomeTasks(TaskSum):
    """A sum over some tasks that stands for the sum over all ``count``.

    Without task k, its term is omitted with its weight, and the others keep theirs: the mean of this over the draws is
    Σ_{i≠k} c_i H_i. It varies much from draw to draw: if k was drawn, more than c_k H_k is omitted (N/m times as much
    at random), else nothing is. Leave-one-out corrections of single tasks vary as much.
    """

    def __init__(self, inner: TaskSum, positions: Sequence[int], count: int, note: str) -> None:
        self.note, self._inner, self._count = note, inner, count
        self._place = {position: place for place, position in enumerate(positions)}

    def matvec(self, v: Tensor) -> Tensor:
        return self._inner.matvec(v)

    def largest_eigenvalue(self, like: Tensor, iterations: int) -> Tensor:
        return self._inner.largest_eigenvalue(like, iterations)

    def plus_identity(self, shift: float) -> LinearOperator:
        return self._inner.plus_identity(shift)

    def without(self, subsets: Subsets) -> LinearOperator:
        return self._inner.without([self._places(subset) for subset in subsets])

    def _places(self, subset: Sequence[int]) -> list[int]:
        """Where those of the subset that were drawn are among the drawn tasks."""
        positions = [range(self._count)[k] for k in subset]
        return [self._place[position] for position in positions if position in self._place]


def probabilities(weights: Sequence[float], scores: Tensor) -> Tensor:
    """``p_i = c_i (1/Σ_j c_j + s_i/Σ_j c_j s_j) / 2``, ``[N]``; by c_i alone if all scores s_i, ``[N]``, are 0.

    Of negative weights the size counts.

    Raises:
        InfluenceError: the scores are not finite, or all c_i are 0.
    """
    size = torch.tensor(weights, dtype=torch.float64).abs()
    scored = size * scores
    p = _shares(size) if not bool(scored.any()) else (_shares(size) + _shares(scored)) / 2
    if not bool(p.isfinite().all()):
        raise InfluenceError(
            "tasks cannot be drawn by these scores: a loss or an output is infinite or NaN, or all task weights are 0. "
            "Use by='random', or find the task whose loss is not finite"
        )
    return p


def _shares(values: Tensor) -> Tensor:
    return values / values.sum()


def _drawn(weights: Sequence[float], draws: Tensor, expected: Tensor) -> Drawn:
    """The tasks at ``draws``, with weights c_i times how often each was drawn, relative to how often that was
    ``expected``."""
    times = draws.bincount(minlength=len(weights))
    positions = times.nonzero()[:, 0].tolist()
    return Drawn(positions, [weights[i] * float(times[i] / expected[i]) for i in positions])


def _scores(solved_tasks: SolvedTasks, by: str) -> Tensor:
    """s_i ≥ 0 of all tasks, ``[N]``."""
    scores = torch.zeros(len(solved_tasks.tasks), dtype=torch.float64)
    for solved in solved_tasks.microbatches(f"task {by}"):
        scores[solved.batch.index] = SCORES[by](solved).double().cpu()
    scores = solved_tasks.settings.ranks.sum(scores)
    return scores - scores.min().clamp(max=0)
