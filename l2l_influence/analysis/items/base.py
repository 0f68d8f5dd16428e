"""The interface of items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...bilevel.item_gradients import ItemGradient
from ...errors import InfluenceError, ItemsError
from ...recording import RecordedTask
from ..edits import Edit, Place
from ..results.result import Row, Scores
from ..run import RunAt

Ref = Any
"""How a user names an item: a task's id, (task's id, sample), or a group's name."""


@dataclass(frozen=True)
class Ranked:
    """Scores of a run's items, in the order in which a result shows them.

    Attributes:
        scores, losses: of each item, ``[n]``, in the order of :meth:`Items.names`.
        order: positions of the items, the first of the ranking first.
        test_loss: mean loss of the targets.
        reading, notes: see :class:`~l2l_influence.analysis.results.result.Scores`.
    """

    scores: Sequence[float]
    losses: Sequence[float]
    order: Sequence[int]
    test_loss: float
    reading: str
    notes: Sequence[str]

    @classmethod
    def of(
        cls, scores: Tensor, losses: Tensor, test_loss: float, reading: str, notes: Sequence[str], first: str
    ) -> Ranked:
        """Ranked by ``scores``, ``[n]``, the ``"highest"`` or the ``"lowest"`` first."""
        order = scores.argsort(descending=first == "highest", stable=True)
        return cls(scores.tolist(), losses.tolist(), order.tolist(), test_loss, reading, notes)


class Items(ABC):
    """One kind of items of the training tasks: names, places, and rows of results.

    Attributes:
        what: the name of one item, in messages and files.
    """

    what: ClassVar[str]

    @property
    @abstractmethod
    def members(self) -> SingleItems:
        """The single items that estimators score: these items themselves, or the members of groups."""

    @property
    def gradient(self) -> ItemGradient:
        """The members' derivatives of D_λ L_Total."""
        return self.members.gradient

    @abstractmethod
    def names(self, run: RunAt) -> list[Ref]:
        """Names of all items of a run."""

    @abstractmethod
    def places(self, run: RunAt, items: Ref | Iterable[Ref]) -> list[Place]:
        """Places of all members of the named items, or of rows of a result.

        Raises:
            ItemsError: there is no item, or one is named twice.
        """

    @abstractmethod
    def columns(self, run: RunAt) -> list[dict[str, Any]]:
        """The columns of a row besides rank, loss and score, for each item in the order of :meth:`names`."""

    @abstractmethod
    def result(self, run: RunAt, ranked: Ranked) -> Scores[Any]:
        """Ranked scores as rows."""

    @abstractmethod
    def relabelling(self, run: RunAt, labels: Mapping[Any, Any]) -> Edit:
        """The edit that gives items other labels."""

    def scores(self, run: RunAt, by_task: Sequence[Tensor]) -> Tensor:
        """Scores of all items, ``[n, R]``, in the order of :meth:`names`, from those of each task's members."""
        return torch.cat(list(by_task))

    def losses(self, run: RunAt, by_task: Sequence[Tensor]) -> Tensor:
        """Each item's own loss, ``[n]``, from those of each task's members."""
        return torch.cat(list(by_task))

    def resolved(self) -> Items:
        """The same items, removed by solving their task's inner problem anew.

        Raises:
            ValueError: these items are not support samples.
        """
        raise ValueError(f"removal='resolve' is for support samples: a {self.what} is not part of an inner problem")


class SingleItems(Items):
    """Items that belong to one task each. A training task has ``count`` of them, numbered j."""

    @property
    def members(self) -> SingleItems:
        return self

    @property
    @abstractmethod
    def gradient(self) -> ItemGradient:
        """The items' derivatives of D_λ L_Total."""

    @abstractmethod
    def count(self, task: RecordedTask) -> int:
        """How many items a task has, without reading its data."""

    @staticmethod
    @abstractmethod
    def refs(task: int, count: int) -> list[Ref]:
        """Names of the ``count`` items of the task with that id."""

    @staticmethod
    @abstractmethod
    def parts(ref: Ref) -> Place:
        """(id of the task, j) of a named item.

        Raises:
            InfluenceError: the name has another form.
        """

    @abstractmethod
    def listed(self, items: Ref | Iterable[Ref]) -> list[Ref]:
        """One name, or several, as a list of names."""

    def names(self, run: RunAt) -> list[Ref]:
        return [ref for task in run.recorded for ref in self.refs(task.id, self.count(task))]

    def locate(self, run: RunAt, ref: Ref) -> Place:
        """Place of a named item.

        Raises:
            InfluenceError: there is no such item.
        """
        task, j = self.parts(ref)
        position = run.position(task)
        count = self.count(run.recorded[position])
        if not 0 <= j < count:
            raise InfluenceError(f"task {task} has {count} {self.what}s, 0 to {count - 1}: {j} is out of range")
        return position, j

    def places(self, run: RunAt, items: Ref | Iterable[Ref]) -> list[Place]:
        refs = self.listed(names_of(items))
        found = [self.locate(run, ref) for ref in refs]
        if not found or len(set(found)) < len(found):
            raise ItemsError(f"name at least one {self.what}, each once, got {refs}")
        return found

    def require_labels(self, labels: Mapping[Any, Any]) -> None:
        """Raise an `ItemsError` if there are no labels."""
        if not labels:
            raise ItemsError(f"name at least one {self.what}, with its new label")


def names_of(items: Any) -> Any:
    """Rows of results replaced by the names of their items."""
    if isinstance(items, Row):
        return items.item
    if isinstance(items, (list, tuple, Scores)) and any(isinstance(item, Row) for item in items):
        return [names_of(item) for item in items]
    return items
