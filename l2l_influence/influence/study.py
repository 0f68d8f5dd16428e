"""What all hooks share: the recorded run as a bilevel problem at the learner's present meta-parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor, nn

from ..bilevel import BilevelProblem, FunctionalModel, ModelLoss, Task, Unrolled
from ..bilevel.functional import BatchNormMode
from ..bilevel.inner import InnerKind, Inverse, Proximal
from ..bilevel.local import GIB, LocalProblem
from ..bilevel.loss import Criterion
from ..bilevel.solvers import OnIndefinite, OnUnconverged, Policy
from ..bilevel.stationarity import Stationarity, stationarity
from ..errors import InfluenceError, LossStructureError, UncoveredParameterError
from ..recording import RecordedTask
from .criterion import Reduction, take_apart
from .data import RecordedTasks, Split, read_test_tasks
from .model import adapted_names, model_of

Inner = Literal["proximal", "unrolled"] | InnerKind
"""How θ_i(λ) is defined: as the loop's own steps, as the paper's proximal problem, or by a kind with its settings."""


@dataclass(frozen=True)
class Options:
    """How a hook reads the recorded run; see :class:`~l2l_influence.influence.hook.Hook` for what each means."""

    loss: Callable[..., Tensor]
    body: nn.Module | None = None
    reduction: Reduction | None = None
    inner: Inner = "unrolled"
    proximal: float | Literal["auto"] = "auto"
    inner_solver: str | Inverse = "auto"
    inner_tolerance: float = 0.1
    l2: float = 1e-3
    batch_norm: BatchNormMode = "batch"
    on_indefinite: OnIndefinite = "raise"
    on_unconverged: OnUnconverged = "raise"
    memory: int = GIB
    progress: bool | None = None


class Study:
    """A recorded run, read at the learner's present parameters λ*.

    Attributes:
        recorded: the training tasks, in order of first draw.
        problem: the bilevel problem; ``local`` is it at λ* on the recorded tasks.
    """

    def __init__(self, maml: BaseLearner, recorded: list[RecordedTask], options: Options) -> None:
        self.recorded = recorded
        self.options = options
        criterion, self.reduction = take_apart(options.loss, options.reduction)
        model = FunctionalModel(model_of(maml, options.body), batch_norm=options.batch_norm)
        self.lam = model.parameters
        self._like = next(iter(self.lam.values()))
        kind = self._inner_kind()
        adapted = adapted_names(self.lam, options.body)
        loss = ModelLoss(model, criterion)
        self.problem = BilevelProblem(
            loss,
            loss,
            kind,
            options.l2,
            list(adapted),
            on_indefinite=options.on_indefinite,
            on_unconverged=options.on_unconverged,
            memory=options.memory,
            progress=options.progress,
        )
        start = adapted if isinstance(kind, Proximal) else None
        tasks = RecordedTasks(self.recorded, self.reduction, self._like, start)
        self.local = self.problem.at(self.lam, tasks, self._weights())
        self._require_same_loss(model, criterion)
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
            self._stationarity = stationarity(self.local, self.problem.l2)
        return self._stationarity

    @stationarity.setter
    def stationarity(self, found: Stationarity) -> None:
        self._stationarity = found

    @property
    def first_order(self) -> bool:
        """Whether dθ/dλ is taken as I, as the loop took it."""
        return isinstance(self.problem.kind, Unrolled) and self.problem.kind.first_order

    @property
    def strength_note(self) -> str:
        """Where δ comes from."""
        if self.options.proximal != "auto":
            return ""
        return " (auto: 1/(lr·K), for a mean loss)" if self.reduction == "mean" else " (auto: n/(lr·K), for a sum)"

    def test_problem(
        self, source: Taskset | Sequence[Any], num_tasks: int | None, split: Split | None, seed: int
    ) -> LocalProblem:
        """Test tasks at λ*, under the same losses and inner kind."""
        tasks: list[Task] = read_test_tasks(source, num_tasks, split, self.recorded, self.reduction, self._like, seed)
        if not tasks:
            raise InfluenceError("there are no test tasks to score against")
        return self.problem.at(self.lam, tasks)

    def _require_same_loss(self, model: FunctionalModel, criterion: Criterion) -> None:
        """On a recorded task, the loss taken apart must be the loss that was given."""
        task = self.local.tasks[0]
        x, y = task.support
        with torch.no_grad():
            outputs = model(self.lam, x.to(self._like.device))
            whole = self.options.loss(outputs, y.to(outputs.device))
            samples = criterion(outputs, y.to(outputs.device))
        found = samples.mean() if self.reduction == "mean" else samples.sum()
        if whole.dim() == 0 and not torch.allclose(whole, found, rtol=1e-3, atol=1e-6):
            raise LossStructureError(
                f"the loss is {float(whole):.6g} on the support set of task {self.recorded[0].id}, but its samples' "
                f"{self.reduction} is {float(found):.6g}: it weights samples unequally (class weights, ignore_index) "
                "or is reduced otherwise. Pass a loss that returns one value a sample, and reduction="
            )

    def _weights(self) -> Tensor:
        """c_i: how often each task was trained on, relative to the average."""
        draws = torch.tensor([float(task.trained) for task in self.recorded], dtype=torch.float64)
        return draws / draws.mean()

    def _inner_kind(self) -> InnerKind:
        options = self.options
        if isinstance(options.inner, InnerKind):
            return options.inner
        if options.inner == "unrolled":
            if options.proximal != "auto":
                raise ValueError("proximal= is the strength of the proximal inner problem: pass inner='proximal' too")
            return Unrolled(*self.adaptation(), first_order=self._first_order())
        if options.inner != "proximal":
            raise ValueError(f"inner must be 'proximal', 'unrolled' or an inner kind, not {options.inner!r}")
        policy = Policy(options.on_indefinite, options.on_unconverged)
        return Proximal(self._strength(), options.inner_solver, options.inner_tolerance, policy=policy)

    def _strength(self) -> float:
        """δ: K gradient steps of size lr reach about as far as a proximal term of 1/(lr·K) lets θ go."""
        if self.options.proximal != "auto":
            return float(self.options.proximal)
        lr, steps = self.adaptation()
        if self.reduction == "mean":
            return 1 / (lr * steps)
        sizes = {len(task.support_rows) for task in self.recorded}
        if len(sizes) > 1:
            raise InfluenceError(f"support sets have different sizes ({sorted(sizes)}): pass proximal=, a number")
        return sizes.pop() / (lr * steps)

    def _first_order(self) -> bool:
        """Whether the loop's meta-gradients left out second derivatives."""
        orders = {task.first_order for task in self.recorded}
        if len(orders) > 1:
            raise InfluenceError("some tasks were adapted with first_order=True, others without: pass inner='proximal'")
        return orders.pop()

    def adaptation(self) -> tuple[float, int]:
        """lr and K, which must be the same for all tasks, and say all of what the loop's steps did."""
        rules = {task.rule for task in self.recorded} - {"sgd"}
        if rules:
            raise UncoveredParameterError(
                f"the inner steps were not plain gradient steps (rule: {', '.join(sorted(rules))}): learning rates or "
                "transforms were learned, or the steps were the learner's own. Pass inner='proximal' and proximal=, a "
                "number, to attribute the initialisation"
            )
        found = {(task.lr, task.steps) for task in self.recorded}
        if len(found) > 1:
            raise InfluenceError(
                f"tasks were adapted with different (lr, steps): {sorted(found)}. "
                "Pass inner='proximal' and proximal=, a number"
            )
        lr, steps = found.pop()
        if steps == 0:
            raise InfluenceError("the loop never adapted its learners: there is no inner problem to differentiate")
        return lr, steps
