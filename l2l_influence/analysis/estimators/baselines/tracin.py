"""TracIn: similarity of gradients, added up along the way that training took."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor, nn

from ....bilevel.solved_tasks import SolvedTasks
from ....errors import InfluenceError
from ....recording import Study
from ....recording.outer_steps.checkpoints import Checkpoint
from ...problem.snapshot import Snapshot
from ...run import Run
from ..scoring import each_test_gradient
from .base import Baseline, LevelName
from .similarity import disagreement


class TracIn(Baseline):
    """−Σ_c η_c ⟨g_t(λ_c), pull(λ_c)⟩ over checkpoints λ_c with learning rates η_c (TracInCP, Pruthi et al., 2020).

    Positive = harmful: steps on the item raised the test loss (the paper's sign is the other one). Each checkpoint
    counts for one step of gradient descent on L_Total; to stand for all steps up to the next one, η_c has to be their
    sum. A factor common to all η_c does not matter to rankings. Unit: the loss.

    Args:
        checkpoints: ``(maml.state_dict(), learning rate)`` pairs, as collected in the loop or by :class:`Checkpoints`.
            Those of Adam have no step size in this sense: take its learning rate as a convention.
        maml, tasks, loss, level, options: see :class:`Baseline`.

    Raises:
        InfluenceError: there is no checkpoint, or one is not the state of such a learner.
    """

    reading = (
        "score = −Σ over checkpoints of learning rate · ⟨test task's gradient, the item's gradient⟩; positive = "
        "harmful; unit: the loss"
    )

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        checkpoints: Sequence[Checkpoint],
        level: LevelName = "task",
        **options: Any,
    ) -> None:
        super().__init__(maml, tasks, loss, level=level, **options)
        self._checkpoints = checkpoints

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        if len(self._checkpoints) == 0:
            raise InfluenceError("TracIn needs at least one checkpoint: (maml.state_dict(), learning rate)")
        parts = [self._at(checkpoint, study, test) for checkpoint in self._checkpoints]
        return [sum(same[1:], start=same[0]) for same in zip(*parts, strict=True)]

    def _at(self, checkpoint: Checkpoint, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        state, lr = checkpoint
        then = Snapshot(_RunAt(self._run, state), study.recorded, self._options)
        tests = each_test_gradient(then.problem.at(then.lam, test.tasks), exact=True)
        return [lr * part for part in disagreement(then.solved_tasks, self._level, tests)]

    def _notes(self) -> list[str]:
        return [f"checkpoints: {len(self._checkpoints)}"]


class _RunAt(Run):
    """A run whose learner stands at a checkpoint; the learner itself stays where it is."""

    def __init__(self, run: Run, state: Mapping[str, Tensor]) -> None:
        super().__init__(run.learner, run.body)
        self._then = copy.deepcopy(run.model)
        prefix = "module." if run.body is None else ""
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        try:
            self._then.load_state_dict(own)
        except RuntimeError as error:
            raise InfluenceError(
                f"a checkpoint does not fit: it has to be maml.state_dict() of this learner ({error})"
            ) from error

    @property
    def model(self) -> nn.Module:
        return self._then
