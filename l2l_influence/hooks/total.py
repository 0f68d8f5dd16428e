"""Total gradients (Thm 4.1) and the total Hessian (Def. 4.2) of a recorded run, as hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ..analysis.estimators import Implicit, ImplicitFit
from ..analysis.estimators.implicit import OuterSystem
from ..analysis.resources import Resources
from ..analysis.run import Run
from ..bilevel.layout import Vector
from ..bilevel.solvers import Solution
from ..recording import Study
from .hook import EstimatorHook, Hook
from .settings import exact_inverse, problem_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import ProblemForms


class TotalGradient(Hook):
    """g_i = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O (Thm 4.1) of recorded tasks, as named tensors like ``maml.module``'s
    parameters, and like the learned rates and transforms as ``maml.state_dict()`` names them.

    For the proximal kind ``inner_solver="auto"`` is ``"cg"`` here, which leaves nothing out.

    Args:
        maml, tasks, loss, resources: see :class:`~l2l_influence.hooks.hook.EstimatorHook`.
        settings: short forms of the settings of the problem and of the resources.
    """

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        resources: Resources | None = None,
        **settings: Unpack[ProblemForms],
    ) -> None:
        options, shared = problem_settings(loss, resources, settings)
        self._begin(Run(maml, tasks, exact_inverse(options), shared))

    def of(self, task: int) -> dict[str, Tensor]:
        """g_i of the task with that id, without its weight c_i."""
        run = self.run_at()
        return run.named(run.solved_tasks.one(run.position(task)).total_gradient[0])

    def total(self) -> dict[str, Tensor]:
        """D_λ L_Total = Σ_i c_i g_i + δ_o λ, which is 0 at a minimum; see :meth:`stationarity`."""
        run = self.run_at()
        return run.named(self.stationarity().gradient.to(run.solved_tasks.lam, copy=True))


class TotalHessian(EstimatorHook):
    """H = Σ_i c_i D²_λ L_O^i (Def. 4.2) over the recorded tasks: ``H @ v``, and ``H.solve(v)``.

    Vectors are named tensors like ``maml.module``'s trainable parameters and then the learned rates or transforms, as
    :class:`TotalGradient` names them; or flat vectors in their order. See
    :class:`~l2l_influence.hooks.hook.EstimatorHook` for the arguments; the estimator has to be
    :class:`~l2l_influence.Implicit`.
    """

    def __matmul__(self, v: Vector) -> Vector:
        return self._system.hessian @ v

    def solve(self, v: Vector) -> Solution[Vector]:
        """x with ((l2 + damping)·I + H) x = v, and the report of the solve."""
        system = self._system
        how = system.settings
        return system.hessian.solve(v, how.solver, damping=system.damping, tolerance=how.tolerance)

    @property
    def _system(self) -> OuterSystem:
        fit = self.fitted()
        assert isinstance(fit, ImplicitFit)
        return fit.system

    def _check(self) -> None:
        if not isinstance(self._settings.estimator, Implicit):
            raise TypeError("a TotalHessian has an Implicit estimator: it holds the Hessian, damping and solver")
