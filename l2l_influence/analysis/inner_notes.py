"""Notes about the inner solutions, for readers of results."""

from __future__ import annotations

from ..bilevel import Unrolled
from ..bilevel.inner import InnerMap, Proximal, ProximalMap
from ..bilevel.solved_tasks import SolvedBatch
from ..errors import InfluenceError
from .run import RunAt


def inner_notes(run: RunAt, residual: float) -> list[str]:
    """The inner kind and how well it was solved; for the proximal kind also its distance from the loop's own steps, and
    the accuracy of an approximate inverse. If processes share the tasks, the first one inspects some of its own."""
    return run.problem.ranks.first(lambda: _inner_notes(run, residual))


def _inner_notes(run: RunAt, residual: float) -> list[str]:
    kind = run.problem.kind
    if isinstance(kind, Proximal):
        return _proximal_notes(run, kind, residual)
    if run.run.options.inner != "unrolled" or not isinstance(kind, Unrolled):
        return [f"inner: {kind}"]
    if run.choice.learned is None:
        order = " (first-order: dθ/dλ = I, as in the loop)" if kind.first_order else ""
        return [f"inner: the loop's own gradient steps{order}"]
    order = " (first-order: along fixed gradients, as in the loop)" if kind.first_order else ""
    learned = ", by a learned rule whose parameters are meta-parameters too" if run.choice.parameters else ""
    return [f"inner: the loop's own steps{order}{learned}"]


def _proximal_notes(run: RunAt, kind: Proximal, residual: float) -> list[str]:
    solved = next(run.solved_tasks.microbatches())
    first = f"inner: proximal, δ = {kind.delta:.4g}{run.choice.strength_note}; largest relative residual {residual:.1e}"
    return [first, *_inverse_note(solved), *_distance_note(run, solved.solution)]


def _inverse_note(solved: SolvedBatch) -> list[str]:
    """How the inner Hessian is inverted, and how accurately for ∂_θ L_O, which total gradients need."""
    if not isinstance(solved.solution, ProximalMap):
        return []
    note = f"inner inverse: {solved.solution.note}"
    agreement = solved.solution.agreement(solved.outer_gradient[1])
    if agreement is None:
        return [note]
    return [f"{note}; compared with all of H_in: {agreement} (median of {len(solved.batch.index)} tasks)"]


def _distance_note(run: RunAt, solution: InnerMap) -> list[str]:
    """The distance of θ from the end of the loop's steps, both taken from λ*."""
    try:
        lr, steps = run.choice.adaptation()
    except InfluenceError:
        return []
    problem = solution.problem
    adapted = Unrolled(lr, steps).solve(problem).theta
    apart = (solution.theta - adapted).norm(dim=-1) / (adapted - problem.initial).norm(dim=-1)
    return [
        f"θ: the proximal solution and the end of the loop's {steps} steps lie {float(apart.median()):.0%} of the "
        f"adaptation's length apart (median of {len(apart)} tasks)"
    ]
