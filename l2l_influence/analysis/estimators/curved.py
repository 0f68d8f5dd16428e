"""Hooks that need the total Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, TypeVar

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ...bilevel.functional import BatchNormMode
from ...bilevel.hessians import Curvature, curvature
from ...bilevel.inner import Inverse
from ...bilevel.memory import DEFAULT, Memory
from ...bilevel.solvers import LinearSolver, OnIndefinite, OnUnconverged
from ...hooks.hook import Hook
from ...recording import Study
from ..problem.choice import Inner
from ..problem.criterion import Reduction
from .outer import Curved, Outer

Other = TypeVar("Other", bound="CurvedHook")


class CurvedHook(Hook):
    """A :class:`Hook` with a model of the outer curvature.

    Args:
        maml, tasks, loss, body, reduction, inner, proximal, inner_tolerance, l2: see :class:`Hook`.
        inner_solver: see :class:`Hook`; with ``hessian="exact"``, ``"auto"`` is ``"cg"``, which leaves nothing out.
        batch_norm, on_indefinite, on_unconverged, memory, progress, group: see :class:`Hook`.
        hessian: kind of total Hessian: ``"sketch"`` (a sampled Gauss–Newton matrix; the default), ``"gauss-newton"``,
            ``"exact"``, ``"hessian"``, ``"gamma"`` (the paper's), ``"direct"``, ``"direct-first-order"`` or
            ``"identity"``; or one with settings of its own from ``l2l_influence.bilevel``, such as
            ``Sketch(samples=…, seed=…)`` or ``Subsample("gauss-newton", tasks=…)``.
        damping: added to l2 when solving; ``"auto"`` is a hundredth of the largest eigenvalue of the Hessian (of its
            sketch, for ``"gauss-newton"``).
        tolerance: relative residual of the outer solve, for the default solver.
        solver: of the outer system, with a tolerance of its own; conjugate gradients, or the exact one of a sketch,
            unless given.
    """

    _default_hessian: ClassVar[str] = "sketch"

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        body: nn.Module | None = None,
        reduction: Reduction | None = None,
        inner: Inner = "unrolled",
        proximal: float | Literal["auto"] = "auto",
        inner_solver: str | Inverse = "auto",
        inner_tolerance: float = 0.1,
        hessian: str | Curvature | None = None,
        l2: float = 1e-3,
        damping: float | Literal["auto"] = "auto",
        batch_norm: BatchNormMode | None = None,
        tolerance: float = 1e-2,
        solver: LinearSolver | None = None,
        on_indefinite: OnIndefinite = "raise",
        on_unconverged: OnUnconverged = "raise",
        memory: Memory = DEFAULT,
        progress: bool | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        kind = hessian or self._default_hessian
        super().__init__(
            maml,
            tasks,
            loss,
            body=body,
            reduction=reduction,
            inner=inner,
            proximal=proximal,
            inner_solver="cg" if inner_solver == "auto" and curvature(kind).needs_exact_inverse else inner_solver,
            inner_tolerance=inner_tolerance,
            l2=l2,
            batch_norm=batch_norm,
            on_indefinite=on_indefinite,
            on_unconverged=on_unconverged,
            memory=memory,
            progress=progress,
            group=group,
        )
        self._how = Curved(kind, damping, tolerance, solver)

    @classmethod
    def like(cls: type[Other], hook: CurvedHook) -> Other:
        """A hook of this class with the settings of another one, sharing what either has computed.

        ``QueryInfluence.like(study)`` asks about query samples after ``study`` has scored tasks, and needs no second
        Hessian.

        Raises:
            TypeError: the two are about different Hessians, as direct influence is from all others.
        """
        if cls._default_hessian != hook._default_hessian:
            raise TypeError(f"{cls.__name__} has a Hessian of its own: make it from the learner, not from another hook")
        other = cls.__new__(cls)
        vars(other).update(vars(hook))
        return other

    def _outer(self) -> Outer:
        """The outer system at the learner's present parameters."""
        study = self._study()
        if self._kept.outer is None:
            self._kept.outer = Outer(study, self._how)
        return self._kept.outer
