"""Chooses the inner problem and the batch statistics: by the user's options, else by the recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...bilevel import Unrolled
from ...bilevel.functional import BatchNormMode
from ...bilevel.inner import InnerKind, Proximal
from ...bilevel.layout import Named
from ...bilevel.solvers import Policy
from ...errors import BatchNormError, InfluenceError, UncoveredParameterError
from ...recording import RecordedTask
from ...recording.learners.base import LearnedRule
from ...recording.learners.registry import adapter_named
from .criterion import Reduction
from .options import ProblemOptions


class InnerChoice:
    """Defines θ_i(λ) by the options, and by how the recorded tasks were adapted.

    Attributes:
        learned: the loop's own rule of inner steps, if it is learned and the inner kind is unrolled; else None.
    """

    def __init__(
        self,
        learner: nn.Module,
        recorded: Sequence[RecordedTask],
        adapted: Mapping[str, str],
        reduction: Reduction,
        options: ProblemOptions,
    ) -> None:
        self._recorded, self._reduction, self._options = recorded, reduction, options
        self.learned = self._learned(learner, adapted) if options.inner == "unrolled" else None

    @property
    def parameters(self) -> Named:
        """The meta-parameters that belong to the step rule and not to the model."""
        return {} if self.learned is None else self.learned.parameters

    def kind(self) -> InnerKind:
        """The inner kind."""
        options = self._options
        if isinstance(options.inner, InnerKind):
            return options.inner
        if options.inner == "unrolled":
            return self._unrolled()
        policy = Policy(options.on_indefinite, options.on_unconverged)
        return Proximal(self._strength(), options.inner_solver, options.inner_tolerance, policy=policy)

    def _unrolled(self) -> Unrolled:
        learned = self.learned
        if learned is None:
            return Unrolled(*self.adaptation(), first_order=self._first_order())
        first_order = self._first_order() and not learned.through_steps
        return Unrolled(learned.steps, self._steps(), first_order)

    def _learned(self, learner: nn.Module, adapted: Mapping[str, str]) -> LearnedRule | None:
        rules = {task.rule for task in self._recorded}
        return adapter_named(rules.pop())(learner).step_rule(adapted) if len(rules) == 1 else None

    def _strength(self) -> float:
        """δ: K gradient steps of size lr reach about as far as a proximal term of 1/(lr·K) lets θ go."""
        if self._options.proximal != "auto":
            return float(self._options.proximal)
        lr, steps = self.adaptation()
        if self._reduction == "mean":
            return 1 / (lr * steps)
        sizes = {len(task.support_rows) for task in self._recorded}
        if len(sizes) > 1:
            raise InfluenceError(f"support sets have different sizes ({sorted(sizes)}): pass proximal=, a number")
        return sizes.pop() / (lr * steps)

    def _first_order(self) -> bool:
        """Whether the loop's meta-gradients left second derivatives out."""
        orders = {task.first_order for task in self._recorded}
        if len(orders) > 1:
            raise InfluenceError("some tasks were adapted with first_order=True, others without: pass inner='proximal'")
        return orders.pop()

    def adaptation(self) -> tuple[float, int]:
        """lr and K of plain gradient steps, which must be the same for all tasks.

        Raises:
            UncoveredParameterError: the steps were not plain gradient steps.
            InfluenceError: tasks differ, or there were no steps.
        """
        rules = {task.rule for task in self._recorded if not adapter_named(task.rule).plain_steps}
        if rules:
            raise UncoveredParameterError(
                f"the inner steps were not plain gradient steps (rule: {', '.join(sorted(rules))}). Either learning "
                "rates or transforms were learned, or the learner took steps of its own, steps by several rules, or "
                "steps with other settings in a clone. To attribute the initialisation alone, pass inner='proximal' "
                "and proximal=, a number"
            )
        lr, steps = self._same("(lr, steps)", {(task.lr, task.steps) for task in self._recorded})
        return lr, _require_some(steps)

    def _steps(self) -> int:
        """K of any rule, which must be the same for all tasks."""
        return _require_some(self._same("numbers of steps", {task.steps for task in self._recorded}))

    def _same(self, what: str, found: set[Any]) -> Any:
        if len(found) > 1:
            raise InfluenceError(
                f"tasks were adapted with different {what}: {sorted(found)}. "
                "Pass inner='proximal' and proximal=, a number"
            )
        return found.pop()

    @property
    def strength_note(self) -> str:
        """Where δ comes from, for the notes of a result."""
        if self._options.proximal != "auto":
            return ""
        return " (auto: 1/(lr·K), for a mean loss)" if self._reduction == "mean" else " (auto: n/(lr·K), for a sum)"


def recorded_statistics(recorded: Sequence[RecordedTask]) -> BatchNormMode:
    """The statistics that batch normalisation used in the loop; batch statistics, MAML's convention, if unknown.

    Raises:
        BatchNormError: the loop used both kinds.
    """
    known = {task.batch_norm: task.id for task in recorded if task.batch_norm is not None}
    if "mixed" in known:
        raise _mixed(f"task {known['mixed']} used both, in different layers or forward calls")
    if len(known) > 1:
        raise _mixed(f"task {known['batch']} used the first, task {known['running']} the second")
    return "running" if "running" in known else "batch"


def require_separable(head: nn.Module, recorded: Sequence[RecordedTask], statistics: BatchNormMode) -> None:
    """Raise a `BatchNormError` if the features of a task's sets were computed in one batch, and normalised in two."""
    together = [task.id for task in recorded if task.together]
    layers = [layer for layer in head.modules() if isinstance(layer, _BatchNorm)]
    if together and any(statistics == "batch" or layer.running_mean is None for layer in layers):
        raise BatchNormError(
            f"the body computed the features of both sets of task {together[0]} in one batch, and the learner then "
            "normalised them set by set with batch statistics. The analysis runs body and learner as one model on one "
            "batch: compute the features of each set by itself, or normalise in the body alone"
        )


def _mixed(found: str) -> BatchNormError:
    return BatchNormError(
        "the loop's batch normalisation used batch statistics (training mode) and running statistics (evaluation "
        f'mode): {found}. Pass batch_norm="batch" or batch_norm="running" to use one of them for all tasks'
    )


def _require_some(steps: int) -> int:
    if steps == 0:
        raise InfluenceError("the loop never called adapt(): there is no inner problem to differentiate")
    return steps
