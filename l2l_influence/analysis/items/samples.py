"""The influence of single samples: of query sets (Thm 4.5) and of support sets (Thm 4.6–4.8)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from operator import index
from typing import Any

import torch
from learn2learn.data import Taskset
from torch import Tensor

from ...bilevel.item_gradients import ItemGradient, QueryGradient
from ...bilevel.problem import REMOVALS
from ...bilevel.task import Pair
from ...errors import InfluenceError
from ...recording import RecordedTask
from ..estimators.outer import Outer
from ..estimators.scoring import Found, score
from ..problem.data import Split
from ..problem.snapshot import Snapshot
from ..results.result import SampleScore, SampleScores
from .items import ItemInfluence, Labels

Sample = tuple[int, int]
"""(task's id, position in its query or support set)."""


class SampleInfluence(ItemInfluence[Sample, SampleScores]):
    """What query and support samples share: names, rows of results, what-if labels."""

    @abstractmethod
    def _rows(self, task: RecordedTask) -> tuple[int, ...]:
        """The rows in the batch of the set that the samples are of."""

    @abstractmethod
    def _set(self, task: RecordedTask) -> Pair:
        """The data of that set."""

    @abstractmethod
    def _relabelled_set(self, outer: Outer, position: int, labels: Labels) -> Tensor:
        """The change of c_i g_i under new labels by sample, ``[1, P]``."""

    def relabel(self, labels: Mapping[Sample, Any]) -> dict[str, Tensor]:
        """The learner's state_dict if these samples had had other labels.

        Args:
            labels: the new label of each ``(task, sample)``.

        Raises:
            TaskShapeError: a label is of another kind than those served, or no class of the model.
            ItemsError: there is no sample.
        """
        self._require_labels(labels)
        outer = self._outer()
        by_task: dict[int, dict[int, Any]] = {}
        for sample, label in labels.items():
            position, j = self._locate(outer.study, sample)
            by_task.setdefault(position, {})[j] = label
        change = torch.zeros_like(outer.study.solved_tasks.lam).unsqueeze(0)
        for position, some in by_task.items():
            change += self._relabelled_set(outer, position, some)
        return self._moved(outer, change)

    def _refs(self, study: Snapshot, position: int, count: int) -> list[Sample]:
        return [(study.recorded[position].id, j) for j in range(count)]

    def _count(self, task: RecordedTask) -> int:
        return len(self._rows(task))

    def _locate(self, study: Snapshot, ref: Sample) -> tuple[int, int]:
        task, j = _pair(ref)
        position = study.position(task)
        count = self._count(study.recorded[position])
        if not 0 <= j < count:
            raise InfluenceError(f"task {task} has {count} {self._level.item_name}s, 0 to {count - 1}: there is no {j}")
        return position, j

    def _listed(self, items: Sample | Iterable[Sample]) -> list[Sample]:
        return [items] if _is_one(items) else list(items)  # type: ignore[list-item, arg-type]

    def _result(
        self, study: Snapshot, found: Found, order: list[int], loss: float, notes: list[str], reading: str | None = None
    ) -> SampleScores:
        places = [(position, j) for position, losses in enumerate(found.losses) for j in range(len(losses))]
        labels = [self._set(task)[1] for task in study.recorded]
        rows = []
        for rank, at in enumerate(order, start=1):
            position, j = places[at]
            task, label = study.recorded[position], _label(labels[position][j])
            row = self._rows(task)[j]
            source = None if task.indices is None else task.indices[row]
            own, value = float(found.losses[position][j]), float(found.scores[position][j, 0])
            rows.append(SampleScore(rank, task.id, j, row, source, label, task.times_trained, own, value))
        return SampleScores(f"{self._level.item_name}s", rows, loss, notes, reading)


class QueryInfluence(SampleInfluence):
    """Which query samples of the training tasks made the meta-parameters what they are, and which of them hurt: the
    paper's instance-IF for validation data (Thm 4.5).

    Samples are named ``(task, sample)``: the task's id, and the position in its query set. See
    :class:`~l2l_influence.hooks.hook.Hook` and :class:`~l2l_influence.analysis.estimators.curved.CurvedHook` for the
    arguments. A sample's removal takes its term out of the loss; in the mean of the others' losses these keep their
    weights, and in batch statistics the sample stays.
    """

    _level = QueryGradient()

    def _rows(self, task: RecordedTask) -> tuple[int, ...]:
        return task.query_rows

    def _set(self, task: RecordedTask) -> Pair:
        return task.query

    def _relabelled_set(self, outer: Outer, position: int, labels: Labels) -> Tensor:
        return self._relabelled(outer, position, {}, labels)


class SupportInfluence(SampleInfluence):
    """Which support samples of the training tasks made the meta-parameters what they are, and which of them hurt: the
    paper's instance-IF for training data (Thm 4.6–4.8), with all of D_λ P.

    Samples are named ``(task, sample)``: the task's id, and the position in its support set. See
    :class:`~l2l_influence.hooks.hook.Hook` and :class:`~l2l_influence.analysis.estimators.curved.CurvedHook` for the
    arguments. What is said of removal in :class:`QueryInfluence` holds here too.

    Each question is answered in one of two ways: ``inner="closed-form"``, the paper's derivative by the sample's
    weight; or ``inner="resolve"``, the difference that adapting the task anew without the sample makes. The second
    costs an inner solve a sample, and is much closer to removal on small support sets.
    """

    _level = REMOVALS["closed-form"]

    def scores(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
        exact: bool = True,
        inner: str = "closed-form",
    ) -> SampleScores:
        """As in :class:`QueryInfluence`, for support samples, by either way; positive = harmful here too."""
        return self._scores(score, _removal(inner), test_tasks, num_tasks, split, seed, exact)

    def influence(self, items: Sample | Iterable[Sample], *, inner: str = "closed-form") -> dict[str, Tensor]:
        """The paper's influence function of a sample or a group: removal **adds** it (Prop. 4.8, corrected)."""
        outer = self._outer()
        return self._unravel(outer, self._level.influence(self._solved_gradient(outer, _removal(inner), items)))

    def remove(
        self, items: Sample | Iterable[Sample], *, correct_residual: bool = False, inner: str = "closed-form"
    ) -> dict[str, Tensor]:
        """The learner's state_dict with λ* + Σ IF; see :meth:`TaskInfluence.remove`."""
        outer = self._outer()
        gradient = outer.gradient(_removal(inner), self._located(outer.study, items))
        return self._moved(outer, -gradient, correct_residual)

    def _rows(self, task: RecordedTask) -> tuple[int, ...]:
        return task.support_rows

    def _set(self, task: RecordedTask) -> Pair:
        return task.support

    def _relabelled_set(self, outer: Outer, position: int, labels: Labels) -> Tensor:
        return self._relabelled(outer, position, labels, {})


def _removal(inner: str) -> ItemGradient:
    if inner not in REMOVALS:
        raise ValueError(f"inner must be one of {sorted(REMOVALS)}, not {inner!r}")
    return REMOVALS[inner]


def _is_one(items: Sample | Iterable[Sample]) -> bool:
    """Whether it names one sample. A list names several: ``[3, 17]`` are two tasks, and no sample."""
    return not isinstance(items, Iterable) or (isinstance(items, tuple) and isinstance(next(iter(items), ()), Integral))


def _pair(ref: Sample) -> Sample:
    try:
        task, j = (index(part) for part in ref)
    except (TypeError, ValueError):
        raise InfluenceError(f"a sample is named by a pair of whole numbers, (task, sample); got {ref!r}") from None
    return task, j


def _label(y: Tensor) -> Any:
    return y.item() if y.numel() == 1 else tuple(y.flatten().tolist())
