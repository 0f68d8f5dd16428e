"""Checks that need no test task: the recording, the point λ*, the curvature there, and the damping."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ...analysis.estimators.implicit import OuterSystem
from ...analysis.inner_notes import inner_notes
from ...analysis.run import RunAt
from ...bilevel import Sketch
from ...bilevel.hessians.exact import Exact
from ...bilevel.hessians.sketch import SampledRows
from ...bilevel.solvers.lanczos import extreme_eigenvalues
from ...bilevel.stationarity import Stationarity
from ...errors import InfluenceError
from .verdicts import Check, Verdict, graded, unknown

PRODUCTS = 30
"""Products with the exact Hessian spent on the search for negative curvature; as many as a policy spends on it."""

HALF = 0.5
"""Removing an item also removes its share h of the curvature, and so moves λ by up to 1/(1 − h) times the prediction:
by that much if its share lies in one direction. Beyond one half the prediction may be closer to zero than to the
truth."""


def coverage(run: RunAt) -> Check:
    """Check that everything that trained λ* is in L_Total: a missing term moves λ*, and no score accounts for it."""
    view = run.run.view
    recording = view.recording
    trained = sum(task.times_trained for task in run.recorded)
    others = sum(task.times_trained for task in recording.tasks_so_far) - trained
    given, model = run.solved_tasks.lam.numel(), sum(value.numel() for value in view.parameters.values())
    found = f"{len(run.recorded)} tasks, trained on in {trained} draws; λ is {given} of {model} parameters"
    missing = recording.unmatched + others
    figure = trained / (trained + missing)
    if missing == 0 and recording.stands_for == 1:
        return Check("coverage", "fine", figure, f"{found}; nothing else trained it")
    found += f"; left out are {others} draws of other tasks, and inputs that did not match. {recording.describe()}"
    advice = "leave tasks= out, and wrap every taskset; scores from a sample of the tasks only compare those in it"
    return Check("coverage", "read with care", figure / recording.stands_for, found, advice)


def stationarity(found: Stationarity, count: int) -> Check:
    """The gradient at λ* in units of the average task's gradient, which is what removing that task leaves. The sum of N
    unrelated gradients has length √N of them: if that much is left, the gradients do not balance, and λ* is no
    minimum."""
    unrelated = count**0.5
    text = (
        f"‖D_λ L_Total‖ is {found.tasks:.2g} times the average task's gradient (below 1 it is less than what a removal "
        f"leaves; {unrelated:.2g} is what unrelated gradients would leave)"
    )
    advice = (
        "train closer to a minimum: more steps, falling rates, larger meta-batches; is l2 that of the loop? Scores "
        "compare tasks; for edits pass correct_residual=True"
    )
    return Check("stationarity", graded(found.tasks, 1, max(1, unrelated)), found.tasks, text, advice)


def inner(run: RunAt, tolerance: float) -> Check:
    """Inner residuals. Derivatives of θ_i(λ) hold at a minimum of L_I; elsewhere their error is of first order in the
    residual. It does not matter within the ``tolerance`` of the outer solve; beyond ``inner_tolerance`` there is an
    error."""
    own = max(
        (float(solved.solution.residual.max()) for solved in run.solved_tasks.microbatches("inner residuals")),
        default=0.0,
    )
    residual = run.problem.ranks.maximum(own)
    found = "; ".join(inner_notes(run, residual)).removeprefix("inner: ")
    verdict = graded(residual, tolerance, run.run.options.inner_tolerance)
    return Check("inner", verdict, residual, found, f"inner_tolerance={tolerance:g}, or inner='unrolled'")


def curvature(system: OuterSystem) -> Check:
    """The smallest eigenvalue of D²_λ L_Total that Lanczos finds, l2 included: below 0, λ* is no minimum.

    Lanczos finds values inside the spectrum. So a negative value proves negative curvature, and a positive one does not
    rule it out.
    """
    try:
        lowest, highest = _extremes(system)
    except (InfluenceError, RuntimeError) as error:  # torch has no derivative of something, or a solve gave up
        return unknown("curvature", f"the exact Hessian cannot be computed: {str(error).splitlines()[0]}")
    l2, dtype = system.run.problem.l2, system.run.solved_tasks.lam.dtype
    smallest, rounding = lowest + l2, torch.finfo(dtype).eps ** 0.5 * highest
    verdict: Verdict = (
        "fine" if smallest > -rounding else "read with care" if smallest + system.damping > 0 else "do not trust"
    )
    found = (
        f"smallest eigenvalue of D²_λ L_Total {smallest:.3g} (l2 {l2:.3g} included), largest "
        f"{highest:.3g}, by {PRODUCTS} products; damping {system.damping:.3g}"
    )
    advice = (
        "λ* is no minimum: train longer. The damping exceeds the negative curvature, so the system can be solved"
        if verdict == "read with care"
        else f"λ* is no minimum, and retraining would end far away: train longer, or use a damping of "
        f"{-2 * smallest:.2g}; semi-definite Hessians ('sketch', 'gauss-newton') can be solved, but do not see this"
    )
    return Check("curvature", verdict, smallest, found, advice)


def _extremes(system: OuterSystem) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an approximate inner inverse is reported with the inner solutions
        exact = system.with_hessian(Exact()).hessian.operator
        lowest, highest = extreme_eigenvalues(exact, system.run.solved_tasks.lam.unsqueeze(0), PRODUCTS)
    return float(lowest), float(highest)


def damping(system: OuterSystem, items: int) -> Check:
    """The effective rank r = Σ σ/(σ + d), the number of directions with more curvature than damping. σ are the
    eigenvalues of the (sampled) Gauss–Newton matrix, and d = l2 + damping. r/n is the average item's share of that
    curvature."""
    lam, l2 = system.run.solved_tasks.lam, system.run.problem.l2
    spectrum, dtype = eigenvalues(sampled_gauss_newton(system), lam.numel()), lam.dtype
    rank, bare = (effective_rank(spectrum, shift, dtype) for shift in (l2 + system.damping, l2))
    share = rank / items
    found = (
        f"effective rank {rank:.3g} of {lam.numel()} directions at l2 {l2:.3g} + damping "
        f"{system.damping:.3g} ({bare:.3g} without damping); {share:.2g} for each of {items} items"
    )
    flat = rank < 1
    advice = (
        "no direction has as much curvature as damping, so scores are little more than products of gradients: less "
        "damping"
        if flat
        else "a removal takes much of the curvature away, so sizes may be too small by up to 1/(1 − share): "
        "leave_one_out=True, or more damping"
    )
    return Check("damping", "read with care" if flat or share > HALF else "fine", rank, found, advice)


def largest_curvature(system: OuterSystem) -> float:
    """The largest Gauss–Newton curvature of L_Total, l2 included."""
    sampled, like = sampled_gauss_newton(system), system.run.solved_tasks.lam.unsqueeze(0)
    return float(sampled.largest_eigenvalue(like, PRODUCTS)) + system.run.problem.l2


def sampled_gauss_newton(system: OuterSystem) -> SampledRows:
    """The sketch of the outer system, or a sketch made for it."""
    own = system.hessian.operator
    operator = own if isinstance(own, SampledRows) else Sketch().operator(system.run.solved_tasks)
    assert isinstance(operator, SampledRows)
    return operator


def eigenvalues(operator: SampledRows, width: int) -> Tensor:
    """Eigenvalues that can differ from 0, float64; ``width`` is the size of λ."""
    if len(operator.rows) <= width:
        return operator.spectrum
    columns = operator.project(torch.eye(width).to(operator.rows)).double()
    return torch.linalg.eigvalsh(columns @ columns.T).clamp_min(0)


def effective_rank(spectrum: Tensor, shift: float, dtype: torch.dtype = torch.float64) -> float:
    """Σ σ/(σ + shift). For shift 0, the number of eigenvalues above the rounding error of ``dtype``, the dtype in which
    their matrix was computed."""
    floor = torch.finfo(dtype).eps * len(spectrum) * float(spectrum.max())
    kept = spectrum[spectrum > floor]
    return float((kept / (kept + shift)).sum())
