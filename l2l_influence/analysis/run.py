"""A recorded run, and the bilevel problem that it is at one λ."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ..bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task
from ..bilevel.inner import InnerKind, Proximal
from ..bilevel.solved_tasks import SolvedTasks
from ..errors import InfluenceError, LossStructureError
from ..parallel.ranks import ranks_of
from ..recording import RecordedTask, Study
from .latest import Latest
from .learner_view import LearnerView
from .problem.choice import InnerChoice, recorded_statistics, require_separable
from .problem.data import RecordedTasks, Split, read_test_tasks
from .problem.losses import Losses
from .problem.options import ProblemOptions
from .problem.state import State, state_of
from .resources import Resources

StateDict = Mapping[str, Tensor]


class Run:
    """A recorded learner and how it is analysed. :meth:`at` gives the bilevel problem at any λ.

    Args:
        source: the recorded learner, or the study that :func:`~l2l_influence.record` yielded.
        tasks: the training :class:`~l2l_influence.TaskDataset`; None for all tasks that were trained on.
        options: of the bilevel problem.
        resources: that may be used.

    Raises:
        RecordingError: ``source`` is neither a study nor a learner that can be recorded.
    """

    def __init__(
        self,
        source: BaseLearner | Study,
        tasks: Taskset | None = None,
        options: ProblemOptions | None = None,
        resources: Resources | None = None,
    ) -> None:
        self.source, self.tasks = source, tasks
        self.options, self.resources = options or ProblemOptions(), resources or Resources()
        self.view = LearnerView(source, self.options.body)

    def at(self, lam: StateDict | None = None) -> RunAt:
        """The run's bilevel problem at λ.

        Args:
            lam: a state_dict of the learner, such as a checkpoint (with a body, of ``nn.ModuleDict({"body": body,
                **dict(maml.named_children())})``). None for the learner's present parameters.

        Raises:
            InfluenceError: ``lam`` is not a state_dict of this learner.
        """
        return RunAt(self, self._recorded, lam)

    def present(self, kept: Latest[State, RunAt]) -> RunAt:
        """As :meth:`at` for the learner's present parameters, kept there until these, or the recording, change."""
        recorded = self._recorded
        return kept.get(state_of(self.view.owner, recorded), lambda: RunAt(self, recorded))

    @property
    def _recorded(self) -> list[RecordedTask]:
        return self.view.recording.training_tasks(self.tasks)

    def changed(self, **options: Any) -> Run:
        """The same recording under other problem options."""
        return Run(self.source, self.tasks, replace(self.options, **options), self.resources)


class RunAt:
    """A recorded run at one λ, read as a bilevel problem.

    Attributes:
        run: the run it belongs to.
        recorded: the training tasks, in order of first draw.
        losses: of support and query sets.
        choice: how the inner problem was chosen.
        lam: λ by name.
        problem: the bilevel problem.
        solved_tasks: the training tasks of the problem, with θ_i solved at λ.
        output_shape: of the model's outputs for one sample.
    """

    def __init__(self, run: Run, recorded: list[RecordedTask], state: StateDict | None = None) -> None:
        self.run, self.recorded, self._state = run, recorded, state
        view, options = run.view, run.options
        statistics = options.batch_norm or recorded_statistics(recorded)
        require_separable(view.learner, recorded, statistics)
        model = FunctionalModel(view.model if state is None else view.model_at(state), statistics)
        self._like = next(iter(model.parameters.values()))
        self.losses = self._read_losses()
        adapted = view.adapted_names(model.parameters)
        self.choice = InnerChoice(view.learner, recorded, adapted, self.losses.inner.reduction, options)
        starts = {name: start.to(self._like) for name, start in view.starts(adapted).items()}
        own = {name: value for name, value in model.parameters.items() if name not in starts}
        self.lam = {**own, **self._rule_parameters()}
        kind = self.choice.kind()
        self.problem = self._problem(model, kind, [name for name in adapted if name not in starts], starts)
        ids = ((task.id, task.key, task.times_trained) for task in recorded)
        self.problem.ranks.require_same("recorded tasks", ids)
        start = adapted if isinstance(kind, Proximal) else None
        tasks = RecordedTasks(self.recorded, self.losses, self._like, start)
        self.solved_tasks = self.problem.at(self.lam, tasks, self._weights())
        outputs = self._outputs(model)
        self._require_same_loss(outputs)
        self.output_shape = outputs.shape[1:]
        self._position = {task.id: position for position, task in enumerate(self.recorded)}

    def position(self, task: int) -> int:
        """Position of the task with that id among the training tasks."""
        if task not in self._position:
            raise InfluenceError(
                f"no training task has id {task}: ids are those in the first column of a result's table, "
                f"{min(self._position)} to {max(self._position)} here"
            )
        return self._position[task]

    def test_tasks(
        self, source: Taskset | Sequence[Any], num_tasks: int | None = None, split: Split | None = None, seed: int = 0
    ) -> SolvedTasks:
        """Test tasks at λ, under the same losses and inner kind; see :meth:`~l2l_influence.TaskInfluence.scores`."""
        tasks = read_test_tasks(source, num_tasks, split, self.recorded, self.losses, self._like, seed)
        if not len(tasks):
            raise InfluenceError("there are no test tasks to score against: pass at least one")
        self.problem.ranks.require_same("test tasks", (x for task in tasks for x in (*task.support, *task.query)))
        return self.with_tasks(tasks)

    def with_tasks(self, tasks: Sequence[Task]) -> SolvedTasks:
        """Other tasks at λ, each of weight 1."""
        return self.solved_tasks.with_tasks(tasks, [1.0] * len(tasks))

    def moved(self, lam: Tensor) -> RunAt:
        """The same problem at another λ, ``[P]``, without a progress bar of its own."""
        other, here = copy.copy(self), self.solved_tasks
        other.lam = here.settings.layout.unravel(lam)
        other.solved_tasks = SolvedTasks(replace(here.settings, progress=False), lam, here.tasks, here.weights)
        return other

    def with_inner(self, kind: InnerKind) -> RunAt:
        """The same run at the same λ with another inner kind."""
        return RunAt(self.run.changed(inner=kind, proximal="auto"), self.recorded, self._state)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector of λ's size, ``[P]``, as named tensors."""
        return self.solved_tasks.settings.layout.unravel(flat)

    def edited_state(self, change: Tensor) -> dict[str, Tensor]:
        """The learner's state_dict with λ moved by ``change``, ``[P]``."""
        return self.run.view.edited_state(self.named(self.solved_tasks.lam + change))

    def _read_losses(self) -> Losses:
        options = self.run.options
        if options.loss is None:
            return Losses.recorded(self.recorded, self._like)
        return Losses.given(options.loss, options.reduction)

    def _rule_parameters(self) -> dict[str, Tensor]:
        """Learned rates or transforms, which are meta-parameters beside the model's."""
        known, state = self.choice.parameters, self._state
        if state is None:
            return dict(known)
        missing = [name for name in known if name not in state]
        if missing:
            raise InfluenceError(f"a checkpoint does not fit: it has no {', '.join(missing)}; take maml.state_dict()")
        return {name: state[name].to(value) for name, value in known.items()}

    def _problem(
        self, model: FunctionalModel, kind: InnerKind, adapted: list[str], starts: dict[str, Tensor]
    ) -> BilevelProblem:
        options, resources = self.run.options, self.run.resources
        inner, outer = (
            ModelLoss(model, parts.criterion, model.parameters) for parts in (self.losses.inner, self.losses.outer)
        )
        return BilevelProblem(
            inner,
            outer,
            kind,
            options.l2,
            adapted,
            theta_start=starts or None,
            on_indefinite=options.on_indefinite,
            on_unconverged=options.on_unconverged,
            memory=resources.memory,
            progress=resources.progress,
            ranks=ranks_of(resources.process_group),
        )

    def _outputs(self, model: FunctionalModel) -> Tensor:
        """Outputs for the first task's support set, without adaptation."""
        with torch.no_grad():
            return model(model.parameters, self.solved_tasks.tasks[0].support[0].to(self._like.device))

    def _require_same_loss(self, outputs: Tensor) -> None:
        """On a recorded task, the weighted sum of per-sample losses must equal the loss that was given."""
        y, parts = self.solved_tasks.tasks[0].support[1], self.losses.inner
        with torch.no_grad():
            whole = parts.scale * parts.whole(outputs, y.to(outputs.device))
            samples = parts.criterion(outputs, y.to(outputs.device))
        found = (parts.weights(y).to(samples) * samples).sum()
        if whole.dim() == 0 and not torch.allclose(whole, found, rtol=1e-3, atol=1e-6):
            raise LossStructureError(
                f"the loss is {float(whole):.6g} on the support set of task {self.recorded[0].id}, but its samples' "
                f"{parts.reduction} is {float(found):.6g}: it weights samples unequally or is reduced otherwise. Pass "
                "a loss that returns one value per sample, and reduction="
            )

    def _weights(self) -> Tensor:
        """c_i: how often each task was trained on, relative to the average."""
        times = torch.tensor([float(task.times_trained) for task in self.recorded], dtype=torch.float64)
        return times / times.mean()
