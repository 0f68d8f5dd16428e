"""Sensitivity: how much scores depend on the damping, or on δ of the proximal inner problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from learn2learn.data import Taskset
from torch import Tensor

from ..analysis.estimators import FittedEstimator, ImplicitFit
from ..analysis.problem.data import Split
from ..analysis.run import RunAt
from ..bilevel import Proximal
from ..errors import EstimatorError, InfluenceError
from .ground_truth.truth import GroundTruth
from .metrics import Floats, lds, spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tunable(Protocol):
    """Interface of a hook that can be varied: scores, what it has computed, and hooks like it with other settings."""

    def score_matrix(
        self,
        test_tasks: Taskset | Sequence[Any],
        num_tasks: int | None = None,
        *,
        split: Split | None = None,
        seed: int = 0,
    ) -> tuple[list[Any], Tensor]:
        """The items' names, and scores ``(items, test)``."""

    def fitted(self) -> FittedEstimator[Any]:
        """The estimator for the run as it is now."""

    def run_at(self) -> RunAt:
        """The run as it is now."""

    @classmethod
    def like(cls, hook: Any, **changed: Any) -> Any:
        """The same hook with other settings, sharing what is computed."""


Hooked = TypeVar("Hooked", bound=Tunable)

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Sensitivity:
    """Scores at several values of one setting, compared with those at the hook's own value.

    Attributes:
        setting: ``"damping"`` or ``"δ"``.
        values: of the setting, rising.
        own: the hook's value; for an unrolled hook, the δ that corresponds to its steps.
        agreement: Spearman's ρ over items of the mean scores with those at ``own``; nan where a value was refused.
        lds: :func:`~l2l_influence.evaluation.lds` against a ground truth, if one was given; nan where a value was
            refused.
        refused: by value, why there are no scores, for example a system that is not positive definite.
    """

    setting: str
    values: tuple[float, ...]
    own: float
    agreement: tuple[float, ...]
    lds: tuple[float, ...] | None
    refused: Mapping[float, str]


def sensitivity_of(
    hook: Tunable,
    test_tasks: Taskset | Sequence[Any],
    num_tasks: int | None = None,
    *,
    split: Split | None = None,
    seed: int = 0,
    setting: Literal["damping", "δ"] = "damping",
    scales: Sequence[float] = SCALES,
    truth: GroundTruth | None = None,
) -> Sensitivity:
    """Score again with other values of the damping, or of the proximal δ, and compare the rankings.

    If the ranking changes little, no search for a value is needed; if it changes, only a ground truth can tell which
    value is right. Inner solutions are shared where only the damping differs.

    Args:
        hook: a hook on tasks, samples or groups; it is left as it is.
        test_tasks, num_tasks, split, seed: as for its ``scores``.
        setting: what is varied. δ is 1/(lr·K) for a mean loss and n/(lr·K) for a sum unless the hook was given one;
            a hook with the unrolled inner kind is compared with proximal ones.
        scales: the values to try, as multiples of the hook's own value.
        truth: retrainings without some of the hook's items, its columns in the order of ``hook.score_matrix``.

    Raises:
        ValueError: a scale is not positive, or the truth is about another number of items or test tasks.
        EstimatorError: the damping is varied, and the hook's estimator has no damping.
        InfluenceError: the hook's own scores are refused already.
    """
    if not all(scale > 0 for scale in scales):
        raise ValueError(f"scales must be positive, got {list(scales)}")

    def matrix(of: Tunable) -> Floats:
        found: Floats = of.score_matrix(test_tasks, num_tasks, split=split, seed=seed)[1].numpy()
        return found

    own, strength = matrix(hook), (damping_of(hook) if setting == "damping" else delta_of(hook))
    make = damped if setting == "damping" else proximal
    found: dict[float, Floats] = {}
    refused: dict[float, str] = {}
    for scale in sorted(scales):
        try:
            found[scale * strength] = matrix(make(hook, scale * strength))
        except InfluenceError as error:
            refused[scale * strength] = str(error)
    values = tuple(sorted([*found, *refused]))
    agreement = tuple(spearman(found[v].mean(1), own.mean(1)) if v in found else nan for v in values)
    against = None if truth is None else tuple(_lds(found[v], truth) if v in found else nan for v in values)
    return Sensitivity(setting, values, strength, agreement, against, refused)


def plot_sensitivity(curves: Sequence[Sensitivity] | Sensitivity, path: str | Path | None = None) -> Figure:
    """Draw what :func:`sensitivity_of` found, one panel per setting (extra ``plots``); saved if a path is given."""
    from ..report.plots import Curve, draw_sensitivity

    some = [curves] if isinstance(curves, Sensitivity) else curves
    return draw_sensitivity(
        [Curve(each.setting, each.values, each.own, _lines(each)) for each in some],
        path,
    )


def damped(hook: Hooked, damping: float) -> Hooked:
    """The same hook with another damping; inner solutions are shared."""
    found: Hooked = type(hook).like(hook, damping=damping)
    return found


def proximal(hook: Hooked, delta: float) -> Hooked:
    """The same hook with the proximal inner problem of strength δ."""
    found: Hooked = type(hook).like(hook, inner="proximal", proximal=delta)
    return found


def damping_of(hook: Tunable) -> float:
    """The damping: the number that the hook adds to l2 when it solves."""
    fit = hook.fitted()
    if not isinstance(fit, ImplicitFit):
        raise EstimatorError(
            f'the "{fit.estimator.name}" estimator solves no outer system, so it has no damping to vary'
        )
    return fit.damping


def delta_of(hook: Tunable) -> float:
    """δ of the hook's inner problem, or of the proximal problem that corresponds to its steps."""
    kind = hook.run_at().problem.kind
    if not isinstance(kind, Proximal):
        kind = type(hook).like(hook, inner="proximal").run_at().problem.kind
    assert isinstance(kind, Proximal)
    return kind.delta


def _lds(scores: Floats, truth: GroundTruth) -> float:
    return lds(truth.predicted(scores), truth.mean_change)


def _lines(found: Sensitivity) -> dict[str, tuple[float, ...]]:
    agreement = {"rank correlation with the hook's own scores": found.agreement}
    return agreement if found.lds is None else agreement | {"LDS against retraining": found.lds}
