"""Score matrices on disk: the same numbers, whatever killed the run that wrote them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from l2l_influence import (
    CosineSimilarity,
    FirstOrder,
    GradientSimilarity,
    Implicit,
    ProjectedGradients,
    QueryInfluence,
    ScoreMatrix,
    SupportInfluence,
    TaskInfluence,
    TracIn,
)
from l2l_influence.bilevel.inner import InnerKind
from l2l_influence.bilevel.inner.steps.unrolled import Unrolled
from l2l_influence.bilevel.solvers import LinearSolver
from l2l_influence.errors import ForeignMatrixError, ItemsError, UnfinishedMatrixError

from ..processes import ended, started
from ..reference_problems.learn2learn import classification_batches, pairs, train

TASKS, TESTS = 11, 7
ITEM_GRADIENTS = {"task": TaskInfluence, "query sample": QueryInfluence, "support sample": SupportInfluence}
ROOMY, TIGHT = 2**30, 4 * 3 * 8 * 35 * 4
"""Bytes for all test vectors at once, and for three of them."""


def study(kind: type = TaskInfluence, seed: int = 0, **options):
    """A hook on eleven tasks of three classes, of two shapes, and a network of 35 parameters, float32."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3, bias=True))
    data = [(x, y) if i % 4 else (x[:10], y[:10]) for i, (x, y) in enumerate(classification_batches(TASKS, 0))]
    maml, tasks = train(model, data, nn.CrossEntropyLoss(), lr=0.3, steps=2)
    return kind(maml, tasks, nn.CrossEntropyLoss(), progress=False, **options)


TEST = pairs(classification_batches(TESTS, 1))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class Counts:
    """Counts the tasks whose inner problems are solved, and the rows of the outer systems that are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inner = self.outer = 0
        solve, solve_rows = Unrolled.solve, LinearSolver.solve

        def inner(kind: InnerKind, problem):
            self.inner += len(problem.start)
            return solve(kind, problem)

        def outer(solver, operator, b):
            self.outer += len(b)
            return solve_rows(solver, operator, b)

        monkeypatch.setattr(Unrolled, "solve", inner)
        monkeypatch.setattr(LinearSolver, "solve", outer)


@pytest.mark.parametrize("memory", [ROOMY, TIGHT])
@pytest.mark.parametrize("what", sorted(ITEM_GRADIENTS))
def test_the_numbers_are_those_of_score_matrix(tmp_path, what, memory):
    hook = study(ITEM_GRADIENTS[what], memory=memory)
    items, expected = hook.score_matrix(TEST)
    matrix = hook.score_matrix_to(tmp_path / "scores", TEST, shard=4)
    assert matrix.what == what and matrix.items == items and matrix.shape == tuple(expected.shape)
    assert len(list(matrix.shards())) == 3 and matrix.array().dtype == np.float32
    scale = expected.abs().max()
    np.testing.assert_allclose(matrix.array(), expected, rtol=0, atol=2e-4 * scale)


def checkpoints():
    """Two states of the learner of :func:`study`, neither of which it is in."""
    states = [study(seed=seed).run_at().run.view.learner.state_dict() for seed in (0, 1)]
    return [({name: 0.9 * value for name, value in states[0].items()}, 0.5), (states[1], 0.25)]


OTHER_ESTIMATORS = {
    "first-order": FirstOrder,
    "left out": lambda: Implicit(leave_one_out=True, damping=0.5),
    "gradient-similarity": GradientSimilarity,
    "cosine-similarity": CosineSimilarity,
    "projected-gradients": lambda: ProjectedGradients(dimensions=9),
    "tracin": lambda: TracIn(checkpoints()),
}


@pytest.mark.parametrize("memory", [ROOMY, TIGHT])
@pytest.mark.parametrize("name", list(OTHER_ESTIMATORS))
def test_other_estimators_write_their_own_scores(tmp_path, name, memory):
    hook = study(estimator=OTHER_ESTIMATORS[name](), memory=memory)
    items, expected = hook.score_matrix(TEST)
    matrix = hook.score_matrix_to(tmp_path / "scores", TEST, shard=4)
    assert matrix.items == items and matrix.shape == tuple(expected.shape)
    np.testing.assert_allclose(matrix.array(), expected, rtol=0, atol=2e-4 * expected.abs().max())
    losses = study().scores(TEST).test_loss
    assert matrix.test_losses.mean() == pytest.approx(losses, rel=1e-6)
    assert any("stationary" in note for note in matrix.notes) == (name != "tracin")


@pytest.mark.parametrize("kind", list(ITEM_GRADIENTS.values()))
def test_single_level_scores_are_written_too(tmp_path, kind):
    data = classification_batches(TASKS, seed=71)  # no other test's rows
    maml, tasks = train(nn.Linear(4, 3), data, nn.CrossEntropyLoss(), lr=0.3)
    hook = kind(maml, tasks, nn.CrossEntropyLoss(), progress=False, estimator="single-level-ekfac")
    items, expected = hook.score_matrix(TEST)
    matrix = hook.score_matrix_to(tmp_path / "scores", TEST, shard=4)
    assert matrix.items == items
    np.testing.assert_allclose(matrix.array(), expected, rtol=0, atol=2e-4 * expected.abs().max())


def test_checkpoints_are_part_of_what_scores_depend_on(tmp_path):
    first, second = checkpoints()
    study(estimator=TracIn([first])).score_matrix_to(tmp_path / "scores", TEST)
    with pytest.raises(ForeignMatrixError, match="checkpoints="):
        study(estimator=TracIn([second])).score_matrix_to(tmp_path / "scores", TEST)


def test_it_is_read_by_parts(tmp_path):
    study(QueryInfluence).score_matrix_to(tmp_path / "scores", TEST, shard=3)
    matrix = ScoreMatrix.load(tmp_path / "scores")
    whole, mean = matrix.array(), matrix.array().astype(np.float64).mean(1)
    for row in (0, 17, len(matrix) - 1):
        np.testing.assert_array_equal(matrix.rows(matrix.items[row]), whole[row])
    for part in (slice(None), slice(5, 40, 3), slice(None, None, -1), slice(3, 3)):
        np.testing.assert_array_equal(matrix.rows(part), whole[part])
    np.testing.assert_allclose(matrix.mean(), mean, rtol=1e-12)
    order = sorted(range(len(matrix)), key=lambda row: -mean[row])[:4]
    assert [ref for ref, _ in matrix.top(4)] == [matrix.items[row] for row in order]
    for nobody in (3, (99, 0), (0, 77)):
        with pytest.raises(ItemsError, match="no query sample"):
            matrix.rows(nobody)


def test_test_losses_and_notes_are_those_of_scores(tmp_path):
    hook = study()
    matrix = hook.score_matrix_to(tmp_path / "scores", TEST, shard=4)
    stationarity = hook.stationarity()
    scores = study().scores(TEST)
    assert matrix.test_losses.mean() == pytest.approx(scores.test_loss, rel=1e-6)
    assert any("stationary" in note for note in matrix.notes) and f"test tasks: {TESTS}" in matrix.notes
    torch.testing.assert_close(stationarity.gradient, study().stationarity().gradient, rtol=1e-5, atol=1e-7)
    values = scores.values
    np.testing.assert_allclose(matrix.mean(), [values[item] for item in matrix.items], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("memory", [ROOMY, TIGHT])
def test_a_vector_is_solved_once_and_an_inner_problem_once_a_pass(tmp_path, monkeypatch, memory):
    counts = Counts(monkeypatch)
    study(hessian="identity", damping=0.1, memory=memory).score_matrix_to(tmp_path / "scores", TEST)
    first = 1  # the task whose loss tells another model
    assert (counts.outer, counts.inner) == (TESTS, TASKS + TESTS + first)
    study(hessian="identity", damping=0.1, memory=memory).score_matrix_to(tmp_path / "scores", TEST)
    assert (counts.outer, counts.inner) == (TESTS, TASKS + TESTS + 2 * first)


RESUMED = {
    "implicit": lambda: study(QueryInfluence, memory=TIGHT),
    "tracin": lambda: study(QueryInfluence, memory=TIGHT, estimator=TracIn(checkpoints())),
    "projected-gradients": lambda: study(QueryInfluence, memory=TIGHT, estimator=ProjectedGradients(dimensions=9)),
}


def killed_in(folder: Path, name: str, allowed: int) -> None:
    """End this process without a word when it has to solve more inner problems than ``allowed``."""
    solve, seen = Unrolled.solve, 0

    def counted(kind: InnerKind, problem):
        nonlocal seen
        seen += len(problem.start)
        if seen > allowed:
            os._exit(9)
        return solve(kind, problem)

    hook = RESUMED[name]()
    Unrolled.solve = counted
    hook.score_matrix_to(folder, TEST, shard=3)


# In the second of three blocks of test tasks; in the second of four shards. TracIn has two parts; projections make a
# kernel of all items first.
@pytest.mark.parametrize(
    ("name", "kills"), [("implicit", (15, 20)), ("tracin", (15, 21)), ("projected-gradients", (16, 20))]
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, name, kills):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    RESUMED[name]().score_matrix_to(whole, TEST, shard=3)
    for allowed in kills:
        assert ended(started(killed_in, killed, name, allowed)) == 9
        with pytest.raises(UnfinishedMatrixError, match="not finished"):
            ScoreMatrix.load(killed)
    assert (killed / "scores-00000.npy").exists() and not (killed / "scores-00001.npy").exists()
    assert list(killed.glob("scores-00001.npy.*.new"))
    RESUMED[name]().score_matrix_to(killed, TEST, shard=3)
    assert contents(killed) == contents(whole)


def test_what_is_done_is_not_done_again_and_what_is_broken_is(tmp_path, monkeypatch):
    folder = tmp_path / "scores"
    study().score_matrix_to(folder, TEST, shard=3)
    before = contents(folder)
    (folder / "scores-00001.npy").write_bytes(before["scores-00001.npy"][:-5])
    (folder / "scores-00003.npy").unlink()
    (folder / "scores-00002.npy.new").write_bytes(b"half")
    with pytest.raises(UnfinishedMatrixError, match="scores-00001"):
        ScoreMatrix.load(folder)
    counts = Counts(monkeypatch)
    study().score_matrix_to(folder, TEST, shard=3)
    assert (counts.outer, counts.inner) == (0, 3 + 2 + 1)
    assert contents(folder) == before


@pytest.mark.parametrize("broken", ["progress.safetensors", "solved"])
def test_what_a_run_goes_on_from_may_be_broken_too(tmp_path, broken):
    folder = tmp_path / "scores"
    study().score_matrix_to(folder, TEST, shard=3)
    before = contents(folder)
    (file,) = folder.glob(f"{broken}*")
    file.write_bytes(file.read_bytes()[:-9])
    (folder / "scores-00000.npy").unlink()
    study().score_matrix_to(folder, TEST, shard=3)
    assert contents(folder) == before


OTHERS = {
    "meta-parameters": lambda folder: study(seed=1).score_matrix_to(folder, TEST, shard=3),
    "test tasks": lambda folder: study().score_matrix_to(folder, TEST[:5], shard=3),
    "damping=": lambda folder: study(damping=0.5).score_matrix_to(folder, TEST, shard=3),
    "hessian=": lambda folder: study(hessian="identity").score_matrix_to(folder, TEST, shard=3),
    "shard=": lambda folder: study().score_matrix_to(folder, TEST, shard=4),
    "test_gradient=": lambda folder: study().score_matrix_to(folder, TEST, shard=3, test_gradient="partial"),
    "items=": lambda folder: study(QueryInfluence).score_matrix_to(folder, TEST, shard=3),
}


def test_a_folder_of_another_study_is_refused(tmp_path):
    folder = tmp_path / "scores"
    study().score_matrix_to(folder, TEST, shard=3)
    before = contents(folder)
    for name, ask in OTHERS.items():
        with pytest.raises(ForeignMatrixError, match=f"differ:.*{name}.*Pass a new folder"):
            ask(folder)
    assert contents(folder) == before


def test_another_loss_under_the_same_name_is_seen(tmp_path, monkeypatch):
    folder = tmp_path / "scores"
    study().score_matrix_to(folder, TEST, shard=3)
    forward = nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda module, x: 2 * forward(module, x))
    with pytest.raises(ForeignMatrixError, match="another model or loss"):
        study().score_matrix_to(folder, TEST, shard=3)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ForeignMatrixError, match="not empty"):
        study().score_matrix_to(tmp_path, TEST)
    with pytest.raises(UnfinishedMatrixError, match="no score matrix"):
        ScoreMatrix.load(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
