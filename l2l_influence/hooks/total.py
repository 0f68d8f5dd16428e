"""Total gradients (Thm 4.1) and the total Hessian (Def. 4.2) of a recorded run, as hooks of their own."""

from __future__ import annotations

from torch import Tensor

from ..analysis.estimators.curved import CurvedHook
from ..bilevel.layout import Vector
from ..bilevel.solvers import Solution
from .hook import Hook


class TotalGradient(Hook):
    """g_i = ∂_λ L_O + (dθ/dλ)ᵀ ∂_θ L_O (Thm 4.1) of recorded tasks, as named tensors like ``maml.module``'s
    parameters, and like the learned rates and transforms as ``maml.state_dict()`` calls them.

    See :class:`~l2l_influence.hooks.hook.Hook` for the arguments; for the proximal kind ``inner_solver="auto"`` is
    ``"cg"`` here, which leaves nothing out.
    """

    _auto_inverse = "cg"

    def of(self, task: int) -> dict[str, Tensor]:
        """g_i of the task with that id, without its weight c_i."""
        solved_tasks = self._study().solved_tasks
        return solved_tasks.settings.layout.unravel(solved_tasks.one(self._study().position(task)).total_gradient[0])

    def total(self) -> dict[str, Tensor]:
        """D_λ L_Total = Σ_i c_i g_i + δ_o λ, which is 0 at a minimum; see :meth:`stationarity`."""
        study = self._study()
        return study.solved_tasks.settings.layout.unravel(
            study.stationarity.gradient.to(study.solved_tasks.lam, copy=True)
        )


class TotalHessian(CurvedHook):
    """H = Σ_i c_i D²_λ L_O^i (Def. 4.2) over the recorded tasks: ``H @ v``, and ``H.solve(v)``.

    Vectors are named tensors like ``maml.module``'s trainable parameters and then the learned rates or transforms, as
    :class:`TotalGradient` names them; or flat ones in their order. See
    :class:`~l2l_influence.hooks.hook.Hook` and :class:`~l2l_influence.analysis.estimators.curved.CurvedHook` for the
    arguments.
    """

    def __matmul__(self, v: Vector) -> Vector:
        return self._outer().hessian @ v

    def solve(self, v: Vector) -> Solution[Vector]:
        """x with ((l2 + damping)·I + H) x = v, and the report of the solve."""
        outer = self._outer()
        return outer.hessian.solve(v, self._how.solver, damping=outer.damping, tolerance=self._how.tolerance)
