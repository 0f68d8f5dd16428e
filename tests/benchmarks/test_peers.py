"""Beside other libraries: answers are right, to the accuracy asked, and shown as they were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, hessian

from benchmarks import __main__ as benchmarks
from benchmarks.peers import implicit, run
from benchmarks.peers.contest import Contest, Contestant
from benchmarks.peers.worlds import World, flat, world

pytestmark = pytest.mark.benchmarks


@pytest.fixture(scope="module")
def fc() -> World:
    return world("OmniglotFC", 2)


def small() -> World:
    """A network whose Hessian fits, at the tasks of another."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2), torch.nn.Tanh(), torch.nn.Linear(2, 5))
    start = {name: value.detach() for name, value in module.named_parameters()}
    tasks = [type(task)(task.support, task.query, start=start) for task in world("OmniglotFC", 2).tasks]
    return World("small", module, tasks, 1.0)


def test_those_who_stop_reach_what_was_asked(fc: World) -> None:
    for contest in run.contests(fc):
        rows = contest.rows({}, turns=1)
        assert all(row["error"] <= row["asked"] for row in rows if row["stops"])
        assert rows[0]["ratio"] == 1.0 and all(row["seconds"] > 0 for row in rows)


def test_the_residual_is_that_of_the_dense_hessian() -> None:
    at = small()
    inputs, labels = at.tasks[0].support

    def loss(theta: torch.Tensor) -> torch.Tensor:
        sizes = [value.numel() for value in at.lam.values()]
        pieces = dict(zip(at.lam, theta.split(sizes), strict=True))
        named = {name: piece.view_as(at.lam[name]) for name, piece in pieces.items()}
        return torch.nn.functional.cross_entropy(functional_call(at.module, named, (inputs,)), labels)

    matrix = hessian(loss)(flat(at.lam.values()))
    v = torch.randn(len(matrix))
    assert torch.allclose(implicit.hessian(at.module, at.tasks[0])(v), matrix @ v, atol=1e-5)


def test_a_wrong_answer_has_an_error(fc: World) -> None:
    for contest in run.contests(fc):
        right = contest.contestants[0].run()
        assert (contest.error(right) <= contest.asked).all()
        assert (contest.error(1.01 * right) > contest.asked).all()


def test_what_is_not_installed_is_left_out() -> None:
    there = Contestant("there", lambda: torch.zeros(1, 1))
    missing = Contestant("missing", lambda: torch.ones(1, 1), needs="no_such_package")
    rows = Contest("what", [there, missing], lambda answers: answers[:, 0], asked=0.5).rows({}, turns=2)
    assert [row["by"] for row in rows] == ["there"]


def test_the_command_prints_its_table_and_writes_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MODELS", ["OmniglotFC"])
    out = tmp_path / "peers.json"
    benchmarks.main(["peers", "--quick", "--out", str(out)])
    measured = json.loads(out.read_text(encoding="utf-8"))
    assert run.table(measured["rows"]) in capsys.readouterr().out
    assert {row["what"] for row in measured["rows"]} == {each.what for each in run.contests(world("OmniglotFC", 1))}
