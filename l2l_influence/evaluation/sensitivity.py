"""How much do scores depend on damping and on δ? Asked of a study at hand, and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from learn2learn.data import Taskset

from ..analysis.estimators.curved import CurvedHook
from ..analysis.items.items import ItemInfluence
from ..analysis.problem.data import Split
from ..bilevel import Proximal
from ..errors import InfluenceError
from ..hooks.hook import Kept
from .ground_truth.truth import GroundTruth
from .metrics import Floats, lds, spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Hooked = TypeVar("Hooked", bound=CurvedHook)

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Sensitivity:
    """Scores at several strengths of one setting, held against those at the hook's own.

    Attributes:
        setting: ``"damping"`` or ``"δ"``.
        values: its strengths, rising.
        own: the hook's; of an unrolled hook the δ that goes with its steps.
        agreement: Spearman's ρ over items of the mean scores with those at ``own``; nan where a strength was refused.
        lds: :func:`~l2l_influence.evaluation.lds` against a ground truth, if one was given; nan likewise.
        refused: by strength, why there are no scores, such as a system that is not positive definite.
    """

    setting: str
    values: tuple[float, ...]
    own: float
    agreement: tuple[float, ...]
    lds: tuple[float, ...] | None
    refused: Mapping[float, str]


def sensitivity_of(
    hook: ItemInfluence[Any, Any],
    test_tasks: Taskset | Sequence[Any],
    num_tasks: int | None = None,
    *,
    split: Split | None = None,
    seed: int = 0,
    setting: Literal["damping", "δ"] = "damping",
    scales: Sequence[float] = SCALES,
    truth: GroundTruth | None = None,
) -> Sensitivity:
    """Score again with other strengths of damping, or of the proximal δ, and see how much the ranking depends on it.

    A ranking that changes little can be taken without a search; where it changes, only a ground truth can say which
    strength is right. Inner solutions are shared where only damping differs.

    Args:
        hook: a hook on tasks or samples; left as it is.
        test_tasks, num_tasks, split, seed: as for its ``scores``.
        setting: what is varied. δ is 1/(lr·K) for a mean loss and n/(lr·K) for a sum unless the hook was given one;
            a hook whose inner kind is unrolled is compared with proximal ones.
        scales: strengths, in units of the hook's own.
        truth: retrainings without some of the hook's items, its columns in the order of ``hook.score_matrix``.

    Raises:
        ValueError: a scale is not positive, or the truth is about another number of items or test tasks.
        InfluenceError: the hook's own scores are refused already.
    """
    if not all(scale > 0 for scale in scales):
        raise ValueError(f"scales must be positive, got {list(scales)}")

    def matrix(of: ItemInfluence[Any, Any]) -> Floats:
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
    """Draw what :func:`sensitivity_of` found, a panel for each setting (extra ``plots``); saved if a path is given."""
    from ..report.plots import Curve, draw_sensitivity

    some = [curves] if isinstance(curves, Sensitivity) else curves
    return draw_sensitivity(
        [Curve(each.setting, each.values, each.own, _lines(each)) for each in some],
        path,
    )


def damped(hook: Hooked, damping: float) -> Hooked:
    """The same hook with another damping; what it knows of the tasks is shared."""
    hook._study()
    other = type(hook).like(hook)
    other._how = replace(hook._how, damping=damping)
    other._kept = Kept(hook._kept.state, hook._kept.study)
    return other


def proximal(hook: Hooked, delta: float) -> Hooked:
    """The same hook with the proximal inner problem of strength δ."""
    other = type(hook).like(hook)
    other._options = replace(hook._options, inner="proximal", proximal=delta)
    other._kept = Kept()
    return other


def damping_of(hook: CurvedHook) -> float:
    """What the hook adds to l2 when it solves."""
    return hook._outer().damping


def delta_of(hook: CurvedHook) -> float:
    """δ of the hook's inner problem, or of the proximal one in its place."""
    kind = proximal(hook, hook._options.proximal)._study().problem.kind  # type: ignore[arg-type]
    assert isinstance(kind, Proximal)
    return kind.delta


def _lds(scores: Floats, truth: GroundTruth) -> float:
    return lds(truth.predicted(scores), truth.mean_change)


def _lines(found: Sensitivity) -> dict[str, tuple[float, ...]]:
    agreement = {"rank correlation with the hook's own scores": found.agreement}
    return agreement if found.lds is None else agreement | {"LDS against retraining": found.lds}
