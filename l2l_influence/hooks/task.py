"""The influence of whole training tasks (task-IF, Thm 4.3)."""

from __future__ import annotations

from ..analysis.estimators import Implicit
from ..analysis.items import Tasks
from ..analysis.results.result import TaskScores
from .influence import Influence


class TaskInfluence(Influence[int, TaskScores]):
    """The influence of training tasks on the meta-parameters: scores, edits and a diagnosis (the paper's task-IF).

    Tasks are named by their ids. See :class:`~l2l_influence.hooks.hook.EstimatorHook` for the arguments.

    >>> import learn2learn as l2l
    >>> import torch
    >>> from torch import nn
    >>> from l2l_influence import TaskInfluence, record
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
    >>> influence = TaskInfluence(study, hessian="gauss-newton", damping=0.1)
    >>> result = influence.scores([(data(), data()), (data(), data())])
    >>> [row.rank for row in result], sorted(row.task for row in result)
    ([1, 2, 3], [0, 1, 2])
    >>> edited = influence.remove(result.top(1))
    >>> list(edited)
    ['module.weight', 'module.bias']
    """

    _items = Tasks()


class DirectInfluence(TaskInfluence):
    """Direct IF (Eq. 6, 7), which takes no account of dθ/dλ: a baseline for :class:`TaskInfluence`.

    It is ``TaskInfluence(study, hessian="direct-first-order")``, which reads dθ/dλ as I: ∂_θ L_O and ∂_θθ L_O at θ_i
    stand in for λ's. ``hessian="direct"`` is the literal reading, ∂_λ L_O and ∂_λλ L_O at fixed θ_i; in plain MAML both
    are identically zero, and a warning says so. Test tasks' gradients stay total unless ``test_gradient="partial"`` is
    asked for.
    """

    _default = Implicit(hessian="direct-first-order")
