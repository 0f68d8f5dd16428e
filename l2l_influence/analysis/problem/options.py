"""Settings of the bilevel problem that a recorded run is analysed as, checked when they are given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ...bilevel.functional import BatchNormMode
from ...bilevel.inner import InnerKind, Inverse
from ...bilevel.inner.inverses.inverse import INVERSES
from ...bilevel.solvers import OnIndefinite, OnUnconverged, Policy
from .criterion import Reduction, take_apart

Inner = Literal["proximal", "unrolled"] | InnerKind
"""How θ_i(λ) is defined: by the loop's own steps, by the paper's proximal problem, or by an inner kind object."""

INNER = ("proximal", "unrolled")


@dataclass(frozen=True)
class ProblemOptions:
    """Settings of the bilevel problem that a recorded run is analysed as.

    >>> ProblemOptions(inner="proximal", proximal=2.0).proximal
    2.0
    >>> ProblemOptions(l2=-1.0)
    Traceback (most recent call last):
    ValueError: l2 must be a number of at least 0, not -1.0

    Args:
        loss: the loss of the loop: a torch loss module or function, or ``loss(outputs, y)`` that returns one value per
            sample. None for the loss that the loop called, if it ran inside :func:`~l2l_influence.record` and called a
            torch loss.
        body: for ANIL, the module that computed the features fed to the learner (the head). None for the module that
            :func:`~l2l_influence.record` saw. Its parameters are meta-parameters that no task adapts.
        reduction: ``"mean"`` or ``"sum"``, if it cannot be read off the loss.
        inner: ``"unrolled"``, the loop's own gradient steps, differentiated as the loop did (to first order if it did),
            with MetaSGD's rates and GBML's transforms as further meta-parameters; ``"proximal"``, the paper's inner
            problem; or an inner kind object from ``l2l_influence.bilevel``, such as ``UnrolledWith(...)``. The first
            agrees better with retraining a learner that takes gradient steps, and is faster.
        proximal: δ of the proximal inner problem; ``"auto"`` is 1/(lr·K) for a mean loss and n/(lr·K) for a sum over n
            samples.
        inner_solver: inverse of the inner Hessian for the proximal kind, see :class:`~l2l_influence.bilevel.Proximal`.
            ``"auto"`` is chosen by size, and is ``"cg"`` where an exact Hessian or gradient was asked for.
        inner_tolerance: for the proximal kind, the largest relative gradient at which an inner problem counts as
            solved. With ReLU or max-pooling the minimum tends to lie on a kink, where a few per cent remain. The value
            reached is in the notes of each result.
        l2: δ_o, the outer regulariser, for an objective in which the average task has weight 1.
        batch_norm: statistics used by batch normalisation: ``"batch"``, as MAML trains, or ``"running"``. None for
            those that the loop's model used (``"batch"`` if unknown).
        on_indefinite: what to do if a system is not positive definite: ``"raise"`` an error, ``"damp"`` it with a
            warning, or solve it as it is by ``"minres"``.
        on_unconverged: ``"raise"`` or ``"warn"`` if a solve misses its tolerance.

    Raises:
        TypeError, ValueError, LossStructureError: a setting is not one of those above.
    """

    loss: Callable[..., Tensor] | None = None
    body: nn.Module | None = None
    reduction: Reduction | None = None
    inner: Inner = "unrolled"
    proximal: float | Literal["auto"] = "auto"
    inner_solver: str | Inverse = "auto"
    inner_tolerance: float = 0.1
    l2: float = 1e-3
    batch_norm: BatchNormMode | None = None
    on_indefinite: OnIndefinite = "raise"
    on_unconverged: OnUnconverged = "raise"

    def __post_init__(self) -> None:
        Policy(self.on_indefinite, self.on_unconverged)
        _require_word("reduction", self.reduction, (None, *get_args(Reduction)))
        _require_word("batch_norm", self.batch_norm, (None, *get_args(BatchNormMode)))
        require_number("l2", self.l2)
        require_number("inner_tolerance", self.inner_tolerance, above=True)
        self._require_inner()
        self._require_loss()
        if self.body is not None and not isinstance(self.body, nn.Module):
            raise TypeError(f"body must be the module that computed the learner's features, not {self.body!r}")

    def _require_inner(self) -> None:
        if not (isinstance(self.inner, InnerKind) or _is_one_of(self.inner, INNER)):
            raise ValueError(f"inner must be 'proximal', 'unrolled' or an inner kind, not {self.inner!r}")
        if self.proximal != "auto":
            require_number("proximal", self.proximal, above=True, words=("auto",))
            if self.inner != "proximal":
                raise ValueError("proximal= is the strength of the proximal inner problem: pass inner='proximal' too")
        if isinstance(self.inner_solver, str):
            _require_word("inner_solver", self.inner_solver, ("auto", *sorted(INVERSES)))
        elif not callable(self.inner_solver):
            raise TypeError(
                f"inner_solver must be a name or an inverse of l2l_influence.bilevel, not {self.inner_solver!r}"
            )

    def _require_loss(self) -> None:
        if self.loss is None:
            return
        if inspect.isclass(self.loss):
            raise TypeError(f"loss must be an instance, not a class: pass loss=nn.{self.loss.__name__}()")
        if not callable(self.loss):
            raise TypeError(f"loss must be a torch loss or a function loss(outputs, y), not {self.loss!r}")
        take_apart(self.loss, self.reduction)


def require_number(name: str, value: Any, *, above: bool = False, words: Iterable[str] = ()) -> None:
    """Raise a ``ValueError`` unless ``value`` is finite and at least 0 (``above``: more than 0)."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (above and value == 0):
        allowed = [*map(repr, words), f"a number {'above' if above else 'of at least'} 0"]
        raise ValueError(f"{name} must be {' or '.join(allowed)}, not {value!r}")


def require_count(name: str, value: Any) -> None:
    """Raise a ``ValueError`` unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _require_word(name: str, value: Any, words: tuple[str | None, ...]) -> None:
    if not _is_one_of(value, words):
        raise ValueError(f"{name} must be one of {list(words)}, not {value!r}")


def _is_one_of(value: Any, words: Iterable[Any]) -> bool:
    """Membership that takes any value, arrays included."""
    return (value is None or isinstance(value, str)) and value in words
