"""`removal="resolve"` and `leave_one_out=True` mean the same in every question."""

from __future__ import annotations

import pytest
import torch

from l2l_influence import SupportInfluence, TaskInfluence
from l2l_influence.evaluation import ContinuedOptimisation

from ..reference_problems.learn2learn import labelled_batches, pairs
from .retraining import L2, Retraining, changes, flat, optimal_run, relative


@pytest.fixture(scope="module")
def run():
    return optimal_run("unrolled")


def left_out(run, key):
    """(δ_o I + H − c_k H_k)⁻¹ c_k g_k by dense algebra."""
    rest = run.reference.without("task", [key])
    pull = run.reference.gradient(run.lam) - run.reference.gradient(run.lam, rest)
    return torch.linalg.solve(run.reference.hessian(run.lam, rest), pull)


def resolved(run, item):
    """(δ_o I + H)⁻¹ times the change of the gradient by adapting without the sample, with its sign reversed."""
    rest = run.reference.without("support", [item])
    pull = run.reference.gradient(run.lam) - run.reference.gradient(run.lam, rest)
    return torch.linalg.solve(run.hessian, pull)


WAYS = {
    "leave_one_out": (TaskInfluence, {"leave_one_out": True}, left_out, -1, [0, 3]),
    "resolve": (SupportInfluence, {"removal": "resolve"}, resolved, 1, [(1, 2), (4, 0)]),
}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request, run):
    kind, settings, moves, sign, items = WAYS[request.param]
    hook = run.hook(kind, **settings)
    names = [run.ids[item] if isinstance(item, int) else (run.ids[item[0]], item[1]) for item in items]
    return hook, {name: moves(run, item) for name, item in zip(names, items, strict=True)}, sign


def test_scores_and_matrices(run, way, tmp_path):
    hook, moves, _ = way
    losses = [Retraining(run.test.model, [pair], run.test.loss, run.inner) for pair in run.test.tasks]
    tests = torch.stack([one.gradient(run.lam) - L2 * run.lam for one in losses])
    scores = hook.scores(run.test.tasks).values
    names, matrix = hook.score_matrix(run.test.tasks)
    saved = hook.score_matrix_to(tmp_path / "matrix", run.test.tasks, shard=2)
    assert saved.items == names
    for name, move in moves.items():
        expected = -tests @ move
        assert scores[name] == pytest.approx(float(expected.mean()), rel=1e-7)
        assert torch.allclose(matrix[names.index(name)], expected, rtol=1e-7)
        assert saved.rows(name).tolist() == pytest.approx(expected.tolist(), rel=1e-7)


def test_influences_and_removals(run, way):
    hook, moves, sign = way
    for name, move in moves.items():
        assert relative(flat(hook.influence(name)), sign * move) < 1e-7
        assert relative(changes(hook.remove(name), run.maml), move) < 1e-7


def test_self_influence(run, way):
    hook, moves, _ = way
    found = hook.self_influence().values
    for name, move in moves.items():
        key = run.ids.index(name if isinstance(name, int) else name[0])
        support, query = run.reference.tasks[key]
        if not isinstance(name, int):
            query = tuple(part[name[1], None] for part in support)
        own = Retraining(run.reference.model, [(support, query)], run.reference.loss, run.inner)
        expected = -float((own.gradient(run.lam) - L2 * run.lam) @ move)
        assert found[name] == pytest.approx(expected, rel=1e-6)


def test_edits_that_remove_nothing_are_those_of_the_whole_hessian(run, way):
    hook, moves, _ = way
    plain = run.hook(type(hook))
    new = pairs(labelled_batches(2, seed=5))
    assert torch.equal(changes(hook.add(new), run.maml), changes(plain.add(new), run.maml))
    task = isinstance(next(iter(moves)), int)
    labels = {name: torch.zeros(8, dtype=torch.long) if task else 1 for name in moves}
    found, expected = (changes(each.relabel(labels), run.maml) for each in (hook, plain))
    assert relative(found, expected) < 1e-9 or not expected.any()


def test_diagnosis(run, way):
    hook, _, _ = way
    # A few steps will do: what retraining finds is the same for both hooks.
    at = hook.run_at()
    retrain = ContinuedOptimisation(at, at.test_tasks(run.test.tasks), float(torch.linalg.eigvalsh(run.hessian)[-1]), 3)
    found = hook.diagnose(run.test.tasks, spot_checks=4, retrain=retrain)
    assert found["solver"].verdict == "fine" and found["solver"].figure < 1e-6
    plain = run.hook(type(hook)).diagnose(run.test.tasks, spot_checks=4, retrain=retrain)
    assert [check.name for check in found.checks] == [check.name for check in plain.checks]
    task = isinstance(hook, TaskInfluence)
    assert (found["spot-check"].figure != plain["spot-check"].figure) == task
