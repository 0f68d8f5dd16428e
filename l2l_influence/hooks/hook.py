"""Base classes of hooks, which answer questions about a recorded run at the learner's present meta-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ..analysis.estimators import Estimator, FittedEstimator, Implicit
from ..analysis.latest import Latest
from ..analysis.problem.state import State, same
from ..analysis.resources import Resources
from ..analysis.run import Run, RunAt
from ..bilevel.stationarity import Stationarity, stationarity
from ..recording import Study
from .settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import ShortForms

Other = TypeVar("Other", bound="EstimatorHook")


class Hook:
    """A hook on a recorded run: make it before or after the training loop, ask it after.

    It reads the learner's parameters λ* when it is asked, on a private copy; the learner is never changed. What is
    computed is kept until the learner's parameters or the recording change.
    """

    _run: Run
    _present: Latest[State, RunAt]
    _stationarity: Latest[RunAt, Stationarity]

    def _begin(self, run: Run) -> None:
        self._run, self._present, self._stationarity = run, Latest(same), Latest(is_)

    def run_at(self) -> RunAt:
        """The recorded run as a bilevel problem at the learner's present parameters."""
        return self._run.present(self._present)

    def stationarity(self) -> Stationarity:
        """Measure how close λ* is to a minimum of L_Total, where influence functions hold; ``print`` explains it."""
        return self._stationarity_at(self.run_at())

    def _stationarity_at(self, run: RunAt) -> Stationarity:
        return self._stationarity.get(run, lambda: stationarity(run.solved_tasks, run.problem.l2))


class EstimatorHook(Hook):
    """A :class:`Hook` with an estimator.

    Args:
        maml: the recorded learner, or the study that :func:`~l2l_influence.record` yielded.
        tasks: the training :class:`~l2l_influence.TaskDataset`; None for all tasks that were trained on.
        loss: the loss of the loop; None for the one that was recorded.
        estimator: an estimator object such as ``Implicit(hessian="exact")``, or the name of one; None for
            :class:`~l2l_influence.Implicit` with its defaults.
        resources: memory, progress bar and processes.
        settings: short forms of the settings of the estimator, of
            :class:`~l2l_influence.analysis.problem.options.ProblemOptions` and of :class:`~l2l_influence.Resources`.

    Raises:
        TypeError, ValueError: a setting is unknown, given twice, or has a value that is not allowed.
        RecordingError: ``maml`` is neither a study nor a learner that can be recorded.
    """

    _default: ClassVar[Estimator] = Implicit()

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        estimator: Estimator | str | None = None,
        resources: Resources | None = None,
        **settings: Unpack[ShortForms],
    ) -> None:
        self._settings = Settings.of(loss, estimator, resources, settings, self._default)
        self._begin(Run(maml, tasks, self._settings.problem, self._settings.resources))
        self._fits: Latest[RunAt, FittedEstimator[Any]] = Latest(is_)
        self._check()

    @classmethod
    def like(cls: type[Other], hook: EstimatorHook, **changed: Any) -> Other:
        """A hook of this class about the same run, with the settings of another hook, except those given here.

        The two share whatever is computed for settings that they have in common: ``QueryInfluence.like(influence)``
        asks about query samples after ``influence`` has scored tasks, and needs no second Hessian.

        Raises:
            TypeError: ``hook`` is a study or a learner; or the two classes are about different Hessians, as
                :class:`~l2l_influence.DirectInfluence` is from all others.
        """
        other = cls._like(hook, changed)
        other._check()
        return other

    @classmethod
    def _like(cls: type[Other], hook: EstimatorHook, changed: Mapping[str, Any]) -> Other:
        if not isinstance(hook, EstimatorHook):
            raise TypeError(f"like() takes another hook, not a {type(hook).__name__}: write {cls.__name__}(study)")
        if cls._default != hook._default and not {"hessian", "estimator"} & set(changed):
            raise TypeError(f"{cls.__name__} has a Hessian of its own: make it from the study, not from another hook")
        other = cls.__new__(cls)
        other._settings = hook._settings.changed(changed)
        other._share(hook)
        return other

    def fitted(self) -> FittedEstimator[Any]:
        """The estimator for the learner's present parameters, with what has been computed for it."""
        return self._fitted_at(self.run_at())

    def _fitted_at(self, run: RunAt) -> FittedEstimator[Any]:
        estimator = self._settings.estimator
        return self._fits.get(run, lambda: estimator.computation.at(run)).under(estimator)

    def _share(self, hook: EstimatorHook) -> None:
        """Take over from another hook what is computed for the same settings."""
        self._fits = Latest(is_)
        mine, other = self._settings, hook._settings
        if (mine.problem, mine.resources) != (other.problem, other.resources):
            self._begin(Run(hook._run.source, hook._run.tasks, mine.problem, mine.resources))
            return
        self._run, self._present, self._stationarity = hook._run, hook._present, hook._stationarity
        if mine.estimator.computation == other.estimator.computation:
            self._fits = hook._fits

    def _check(self) -> None:
        """Raise if the settings have no meaning for this hook."""
