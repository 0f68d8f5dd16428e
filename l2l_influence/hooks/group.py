"""The influence of groups of items: classes, samples of the data set, tasksets."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ..analysis.items import By, Groups
from ..analysis.results.result import GroupScores
from ..recording import Study
from .hook import EstimatorHook
from .influence import Influence

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import ShortForms

Of = Literal["task", "query", "support"]


class GroupInfluence(Influence[Hashable, GroupScores]):
    """The influence of groups of tasks or samples on the meta-parameters: scores, edits and a diagnosis.

    A group's score is the sum of its members' scores, and its removal removes all of them.

    Args:
        maml, tasks, loss: see :class:`~l2l_influence.hooks.hook.EstimatorHook`.
        by: what the groups are: ``"class"`` (the data set's own label), ``"index"`` (a sample of the data set, over all
            tasks that it occurs in), ``"taskset"``, a column of the members' rows such as ``"label"``, or a function
            ``(task, sample) -> group`` of a recorded task and a sample's position (None for tasks).
        of: the members: ``"task"``, ``"query"`` or ``"support"``.
        settings: see :class:`~l2l_influence.hooks.hook.EstimatorHook`.

    Raises:
        ValueError: ``by`` or ``of`` has another value.

    >>> import learn2learn as l2l
    >>> import torch
    >>> from torch import nn
    >>> from l2l_influence import GroupInfluence, record
    >>> _ = torch.manual_seed(0)
    >>> def data():
    ...     x = torch.randn(8, 4)
    ...     return x, (x[:, 0] > 0).long()
    >>> maml, loss = l2l.algorithms.MAML(nn.Linear(4, 2), lr=0.1), nn.CrossEntropyLoss()
    >>> with record() as study:
    ...     for _ in range(3):
    ...         (x, y), (query_x, query_y) = data(), data()
    ...         learner = maml.clone()
    ...         learner.adapt(loss(learner(x), y))
    ...         loss(learner(query_x), query_y).backward()
    >>> def half(task, sample):
    ...     return "first half" if sample < 4 else "second half"
    >>> result = GroupInfluence(study, by=half, of="query").scores([(data(), data())])
    >>> sorted((row.group, row.members) for row in result)
    [('first half', 12), ('second half', 12)]
    """

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        by: By,
        of: Of = "query",
        **settings: Unpack[ShortForms],
    ) -> None:
        self._items = Groups.of(of, by)
        super().__init__(maml, tasks, loss, **settings)

    @classmethod
    def like(cls, hook: EstimatorHook, *, by: By | None = None, of: Of = "query", **changed: Any) -> GroupInfluence:
        """See :meth:`TaskInfluence.like`; ``by`` and ``of`` are those of ``hook`` if it has groups and none are
        given."""
        other = cls._like(hook, changed)
        if by is not None:
            other._items = Groups.of(of, by)
        elif isinstance(hook, GroupInfluence):
            other._items = hook._items
        else:
            raise TypeError(f"say what the groups are: {cls.__name__}.like(influence, by=...)")
        other._check()
        return other
