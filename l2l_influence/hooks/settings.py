"""The settings of hooks, in three groups, with short forms as keywords of the hook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..analysis.estimators import ESTIMATORS, Estimator
from ..analysis.problem.criterion import Reduction
from ..analysis.problem.options import Inner, ProblemOptions
from ..analysis.resources import Resources
from ..bilevel.functional import BatchNormMode
from ..bilevel.hessians import Curvature
from ..bilevel.inner import Inverse
from ..bilevel.memory import Memory
from ..bilevel.solvers import LinearSolver, OnIndefinite, OnUnconverged


class ProblemForms(TypedDict, total=False):
    """Short forms of :class:`~l2l_influence.analysis.problem.options.ProblemOptions` and :class:`Resources`."""

    body: nn.Module | None
    reduction: Reduction | None
    inner: Inner
    proximal: float | Literal["auto"]
    inner_solver: str | Inverse
    inner_tolerance: float
    l2: float
    batch_norm: BatchNormMode | None
    on_indefinite: OnIndefinite
    on_unconverged: OnUnconverged
    memory: Memory
    progress: bool | None
    process_group: ProcessGroup | None


class ShortForms(ProblemForms, total=False):
    """All keywords that hooks take in the place of an estimator object and of :class:`Resources`. A named estimator
    also takes its own settings, such as ``estimator="ascent", steps=2``."""

    hessian: str | Curvature
    damping: float | Literal["auto"]
    tolerance: float
    solver: LinearSolver | None
    removal: Literal["closed-form", "resolve"]
    leave_one_out: bool
    checkpoints: Any
    steps: int
    lr: float
    dimensions: int
    ridge: float | Literal["auto"]
    seed: int
    curvature_tasks: int


@dataclass(frozen=True)
class Settings:
    """The three groups of settings of a hook.

    Attributes:
        estimator: of items' effects.
        options: of the bilevel problem.
        resources: that may be used.
    """

    estimator: Estimator
    options: ProblemOptions
    resources: Resources

    @classmethod
    def of(
        cls,
        loss: Callable[..., Tensor] | None,
        estimator: Estimator | str | None,
        resources: Resources | None,
        given: Mapping[str, Any],
        default: Estimator,
    ) -> Settings:
        """Make the settings from the arguments of a hook.

        Args:
            loss, estimator, resources: as given to the hook.
            given: short forms.
            default: the estimator if none is given.

        Raises:
            TypeError: a keyword is unknown, or says what one of the objects already says.
            ValueError: a value is not allowed.
        """
        base = cls(default, ProblemOptions(), Resources())
        objects = {"loss": loss, "estimator": estimator, "resources": resources}
        return base.changed({**{name: value for name, value in objects.items() if value is not None}, **given})

    def changed(self, given: Mapping[str, Any]) -> Settings:
        """A copy with some settings replaced; the arguments are those of a hook.

        Raises:
            TypeError, ValueError: as for :meth:`of`.
        """
        options, resources, named = _sorted(given)
        estimator, shared = named.pop("estimator", None), named.pop("resources", None)
        chosen = self.estimator if estimator is None else _estimator(estimator, named)
        _require_once(estimator, [name for name in named if name in _names(type(chosen))])
        _require_known(named, chosen)
        return Settings(
            replace(chosen, **named) if named else chosen,
            replace(self.options, **options),
            _resources(shared, resources, self.resources),
        )

    @property
    def problem(self) -> ProblemOptions:
        """The problem's options, as the estimator needs them."""
        return exact_inverse(self.options) if self.estimator.needs_exact_inverse else self.options


def problem_settings(
    loss: Callable[..., Tensor] | None, resources: Resources | None, given: Mapping[str, Any]
) -> tuple[ProblemOptions, Resources]:
    """The settings of a hook without an estimator, from its arguments.

    Raises:
        TypeError, ValueError: as for :meth:`Settings.of`.
    """
    options, short, rest = _sorted(given)
    if rest:
        raise TypeError(f"{next(iter(rest))}= is not a setting of this hook. {_known()}")
    return ProblemOptions(loss=loss, **options), _resources(resources, short, Resources())


def exact_inverse(options: ProblemOptions) -> ProblemOptions:
    """Options under which ``inner_solver="auto"`` leaves nothing of the inner Hessian out."""
    return replace(options, inner_solver="cg") if options.inner_solver == "auto" else options


def _sorted(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Keywords for the problem, for resources, and all others."""
    options = {name: value for name, value in given.items() if name in _names(ProblemOptions)}
    resources = {name: value for name, value in given.items() if name in _names(Resources)}
    return options, resources, {n: value for n, value in given.items() if n not in options | resources}


def _resources(given: Any, short: Mapping[str, Any], known: Resources) -> Resources:
    if given is None:
        return replace(known, **short)
    if not isinstance(given, Resources):
        raise TypeError(f"resources must be a Resources object, not {given!r}")
    _require_once(given, list(short))
    return given


def _estimator(given: Any, settings: dict[str, Any]) -> Estimator:
    """An estimator object, or the one of that name with its own ``settings``, which are taken out."""
    if isinstance(given, Estimator):
        return given
    if not isinstance(given, str):
        raise TypeError(f"estimator must be a name or an estimator object such as Implicit(), not {given!r}")
    if given not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)} or an estimator object, not {given!r}")
    kind = ESTIMATORS[given]
    return kind(**{name: settings.pop(name) for name in list(settings) if name in _names(kind)})


def _names(group: type) -> set[str]:
    return {field.name for field in fields(group)}


def _require_once(given: Any, twice: Sequence[str]) -> None:
    """Raise a ``TypeError`` if short forms are given beside the object that has these settings."""
    if given is not None and not isinstance(given, str) and twice:
        kind = type(given).__name__
        raise TypeError(
            f"{twice[0]}= is a setting of the {kind} object that was passed too: write {kind}({twice[0]}=...)"
        )


def _require_known(named: Iterable[str], estimator: Estimator) -> None:
    """Raise a ``TypeError`` if a keyword is not a setting of the estimator."""
    known = _names(type(estimator))
    for name in named:
        if name not in known:
            own = f"its settings are {', '.join(sorted(known))}" if known else "it has no settings"
            raise TypeError(f'{name}= is not a setting of the "{estimator.name}" estimator: {own}. {_known()}')


def _known() -> str:
    options, resources = (", ".join(sorted(_names(group))) for group in (ProblemOptions, Resources))
    return f"Settings of the problem: {options}; of resources: {resources}"
