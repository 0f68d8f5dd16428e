"""Direct influence, the paper's baseline."""

from __future__ import annotations

from ..analysis.items.task import TaskInfluence


class DirectInfluence(TaskInfluence):
    """Direct IF (Eq. 6, 7), which takes no account of dθ/dλ: a baseline for :class:`TaskInfluence`.

    ``hessian="direct-first-order"`` (the default) reads dθ/dλ as I: ∂_θ L_O and ∂_θθ L_O at θ_i stand in for λ's.
    ``hessian="direct"`` is the literal reading, ∂_λ L_O and ∂_λλ L_O at fixed θ_i; in plain MAML both are identically
    zero, and a warning says so. Test tasks' gradients stay total unless ``exact=False`` is passed to ``scores``.
    """

    _default_hessian = "direct-first-order"
