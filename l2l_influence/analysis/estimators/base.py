"""The interface of estimators: the ways to estimate what an item did to λ, and so to the loss of a test task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from ...errors import EstimatorError
from ..edits import Edit
from ..items import Items
from ..passes import Pass, Targets
from ..run import RunAt


class Registry(dict[str, type["Estimator"]]):
    """All estimators by name. A class that derives from :class:`Estimator` and has a name is entered when it is made.

    >>> from l2l_influence import ESTIMATORS
    >>> ESTIMATORS["tracin"].__name__
    'TracIn'
    """


ESTIMATORS = Registry()


@dataclass(frozen=True)
class Estimator(ABC):
    """A way to score items, with its settings, which are checked when it is made.

    A new estimator is a new file with a frozen dataclass that derives from this class, and with the
    :class:`FittedEstimator` that it names. It is known by its name as soon as the file is imported.

    Attributes:
        name: in :data:`ESTIMATORS`.
        fitted: the class that does the work for one run.
        reads_test_gradients: whether its scores depend on the test tasks through their gradients, so that
            ``test_gradient="partial"`` has a meaning.
    """

    name: ClassVar[str]
    fitted: ClassVar[type[FittedEstimator[Any]]]
    reads_test_gradients: ClassVar[bool] = False

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "name" in vars(cls):
            ESTIMATORS[cls.name] = cls

    def at(self, run: RunAt) -> FittedEstimator[Any]:
        """The estimator for a run at one λ."""
        return self.fitted(self, run)

    @abstractmethod
    def reading(self, what: str, test_loss: float) -> str:
        """What a score of ``what`` (the items, in the plural) means, with its sign and unit."""

    def self_reading(self, what: str, loss: float) -> str:
        """As :meth:`reading`, for scores of items on their own losses, whose mean is ``loss``."""
        own = "each item's score on its own loss, the most negative first: λ leans on these most"
        return f"{own}. {self.reading(what, loss)}"

    def prepared(self, items: Items) -> Items:
        """The items as this estimator removes them.

        Raises:
            ValueError: a setting has no meaning for these items.
        """
        return items

    @property
    def computation(self) -> Estimator:
        """The same estimator without the settings that only change questions. Estimators of equal computation share
        what is computed."""
        return self

    @property
    def needs_exact_inverse(self) -> bool:
        """Whether the inverse of the inner Hessian must not be an approximation."""
        return False


EstimatorType = TypeVar("EstimatorType", bound=Estimator, covariant=True)


class FittedEstimator(ABC, Generic[EstimatorType]):
    """An estimator for one run at one λ. Keeps what is computed for it, and computes it when it is first needed.

    Attributes:
        estimator: the settings.
        run: the run at λ.
        takes_residual: whether :meth:`change` can also take the step to the minimum.
    """

    takes_residual: ClassVar[bool] = False

    def __init__(self, estimator: EstimatorType, run: RunAt) -> None:
        run.problem.ranks.require_same("settings of the estimator", described(estimator))
        self.estimator, self.run = estimator, run

    def under(self, estimator: Estimator) -> FittedEstimator[Any]:
        """For an estimator with the same :attr:`~Estimator.computation`, sharing what is computed."""
        return self

    @abstractmethod
    def scores(self, items: Items, targets: Targets) -> Pass:
        """Scores of all members of ``items`` on ``targets``; positive = harmful."""

    def self_scores(self, items: Items) -> Pass:
        """Each member's score on its own loss."""
        raise self.refusal("self_influence()", "self_scores")

    def change(self, edit: Edit, residual: Tensor | None = None) -> Tensor:
        """The predicted change Δλ of the meta-parameters when the training data are edited, ``[P]``.

        Args:
            edit: the change of the data.
            residual: D_λ L_Total at λ, ``[P]``, to also take the step to the minimum that λ has not reached; or None.

        Raises:
            EstimatorError: the estimator predicts no change of λ, or takes no such step.
        """
        raise self.refusal("influence(), remove(), relabel() and add()", "change")

    def refusal(self, question: str, method: str) -> EstimatorError:
        """The error for a question that this estimator does not answer and those with an own ``method`` do."""
        unable = getattr(FittedEstimator, method, None)
        able = [name for name, kind in ESTIMATORS.items() if getattr(kind.fitted, method, unable) is not unable]
        return EstimatorError(
            f'the "{self.estimator.name}" estimator does not answer {question}. These do: '
            f"{', '.join(able)}. Pass one of them as estimator= when you make the hook"
        )


def described(estimator: Estimator) -> list[str]:
    """An estimator's settings in words that are the same in every process; objects by their class."""
    values = [(field.name, getattr(estimator, field.name)) for field in fields(estimator)]
    return [type(estimator).__qualname__, *(f"{name}={_word(value)}" for name, value in values)]


def _word(value: Any) -> str:
    plain = is_dataclass(value) or isinstance(value, (str, float, int))
    return repr(value) if plain else type(value).__qualname__
