"""What all hooks ask: the recorded run as a bilevel problem at the learner's present meta-parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from learn2learn.data import Taskset
from torch import Tensor

from ...bilevel import BilevelProblem, FunctionalModel, ModelLoss
from ...bilevel.inner import Proximal
from ...bilevel.solved_tasks import SolvedTasks
from ...bilevel.stationarity import Stationarity, stationarity
from ...errors import InfluenceError, LossStructureError
from ...parallel.ranks import ranks_of
from ...recording import RecordedTask
from ..run import Run
from .choice import InnerChoice, Options, recorded_statistics, require_separable
from .data import RecordedTasks, Split, read_test_tasks
from .losses import Losses


class Snapshot:
    """A recorded run, read at the learner's present parameters λ*.

    Attributes:
        recorded: the training tasks, in order of first draw.
        problem: the bilevel problem; ``local`` is it at λ* on the recorded tasks.
        output_shape: of the model's outputs for one sample.
    """

    def __init__(self, run: Run, recorded: list[RecordedTask], options: Options) -> None:
        self.recorded = recorded
        self.options = options
        statistics = options.batch_norm or recorded_statistics(recorded)
        require_separable(run.learner, recorded, statistics)
        model = FunctionalModel(run.model, statistics)
        self._like = next(iter(model.parameters.values()))
        self.losses = self._read_losses()
        adapted = run.adapted_names(model.parameters)
        self.choice = InnerChoice(run.learner, recorded, adapted, self.losses.inner.reduction, options)
        self.lam = {**model.parameters, **self.choice.parameters}
        kind = self.choice.kind()
        self.problem = BilevelProblem(
            ModelLoss(model, self.losses.inner.criterion, model.parameters),
            ModelLoss(model, self.losses.outer.criterion, model.parameters),
            kind,
            options.l2,
            list(adapted),
            on_indefinite=options.on_indefinite,
            on_unconverged=options.on_unconverged,
            memory=options.memory,
            progress=options.progress,
            ranks=ranks_of(options.group),
        )
        self.problem.ranks.require_same(
            "recorded tasks", ((task.id, task.key, task.times_trained) for task in recorded)
        )
        start = adapted if isinstance(kind, Proximal) else None
        tasks = RecordedTasks(self.recorded, self.losses, self._like, start)
        self.solved_tasks = self.problem.at(self.lam, tasks, self._weights())
        outputs = self._outputs(model)
        self._require_same_loss(outputs)
        self.output_shape = outputs.shape[1:]
        self._stationarity: Stationarity | None = None
        self._position = {task.id: position for position, task in enumerate(self.recorded)}

    def position(self, task: int) -> int:
        """Where the task with that id stands among the recorded training tasks."""
        if task not in self._position:
            raise InfluenceError(
                f"no training task has id {task}: ids are those in the first column of a result's table, "
                f"{min(self._position)} to {max(self._position)} here"
            )
        return self._position[task]

    @property
    def stationarity(self) -> Stationarity:
        """How close λ* is to a minimum, at the cost of a pass over the tasks unless one has left it here."""
        if self._stationarity is None:
            self._stationarity = stationarity(self.solved_tasks, self.problem.l2)
        return self._stationarity

    @stationarity.setter
    def stationarity(self, found: Stationarity) -> None:
        self._stationarity = found

    def test_problem(
        self, source: Taskset | Sequence[Any], num_tasks: int | None, split: Split | None, seed: int
    ) -> SolvedTasks:
        """Test tasks at λ*, under the same losses and inner kind."""
        tasks = read_test_tasks(source, num_tasks, split, self.recorded, self.losses, self._like, seed)
        if not len(tasks):
            raise InfluenceError("there are no test tasks to score against")
        self.problem.ranks.require_same("test tasks", (x for task in tasks for x in (*task.support, *task.query)))
        return self.problem.at(self.lam, tasks)

    def _read_losses(self) -> Losses:
        options = self.options
        if options.loss is None:
            return Losses.recorded(self.recorded, self._like)
        return Losses.given(options.loss, options.reduction)

    def _outputs(self, model: FunctionalModel) -> Tensor:
        """Of the first task's support set, without adaptation."""
        with torch.no_grad():
            return model(model.parameters, self.solved_tasks.tasks[0].support[0].to(self._like.device))

    def _require_same_loss(self, outputs: Tensor) -> None:
        """On a recorded task, the loss taken apart must be the loss that was given."""
        y, parts = self.solved_tasks.tasks[0].support[1], self.losses.inner
        with torch.no_grad():
            whole = parts.scale * parts.whole(outputs, y.to(outputs.device))
            samples = parts.criterion(outputs, y.to(outputs.device))
        found = (parts.weights(y).to(samples) * samples).sum()
        if whole.dim() == 0 and not torch.allclose(whole, found, rtol=1e-3, atol=1e-6):
            raise LossStructureError(
                f"the loss is {float(whole):.6g} on the support set of task {self.recorded[0].id}, but its samples' "
                f"{parts.reduction} is {float(found):.6g}: it weights samples unequally or is reduced otherwise. Pass "
                "a loss that returns one value a sample, and reduction="
            )

    def _weights(self) -> Tensor:
        """c_i: how often each task was trained on, relative to the average."""
        draws = torch.tensor([float(task.times_trained) for task in self.recorded], dtype=torch.float64)
        return draws / draws.mean()
