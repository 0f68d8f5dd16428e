"""The demo from end to end, at a small scale."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

import l2l_influence.app.demo as demo
from l2l_influence.app.demo.findings import TEST_TASKS_SCORED, Study, compare, detect, rank
from l2l_influence.app.demo.run import Run, Scale, train

TINY = Scale(iterations=100, retrain_steps=8, groups=4, test_tasks=12)


@pytest.fixture(scope="module")
def run() -> Run:
    return train(0, TINY, lambda: None)


@pytest.fixture(scope="module")
def study(run: Run) -> Study:
    return rank(run)


def test_influence_finds_wrong_tasks_far_above_chance(run: Run, study: Study) -> None:
    influence = detect(run, study)[0]
    assert influence.name == "influence"
    assert influence.found >= 35, "chance finds 10 of 50"
    assert influence.auc > 0.9
    assert influence.curve[49] == influence.found / 50


def test_scores_of_single_test_tasks_average_to_those_of_their_mean(run: Run, study: Study) -> None:
    assert len(run.digits.test) <= TEST_TASKS_SCORED
    for ranking in study.rankings:
        np.testing.assert_allclose(
            ranking.each.mean(1), ranking.values, rtol=1e-3, atol=1e-3 * abs(ranking.values).max()
        )


def test_every_task_is_named_by_its_digits_in_the_order_of_its_support_labels(run: Run, study: Study) -> None:
    data = run.digits.train.dataset
    for row in study.scores:
        description = run.digits.train.sampled_descriptions[row.key]
        labels = run.digits.train[row.key][1].tolist()
        support = {
            label: data.indices_to_labels[at.index] for at, label in list(zip(description, labels, strict=True))[::2]
        }
        assert row.classes == tuple(support[label] for label in range(5))


def test_removing_by_editing_moves_towards_retraining(run: Run, study: Study) -> None:
    outcomes = {outcome.name: outcome for outcome in compare(run, study, lambda: None)}
    trained, edited = outcomes["as trained, on all tasks"], outcomes["edited: the most harmful tasks"]
    retrained = outcomes["retrained without them, from here"]
    assert edited.edited and [outcome.edited for outcome in outcomes.values()].count(True) == 1
    assert retrained.loss < trained.loss and edited.loss < trained.loss


def test_writes_everything_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "QUICK", Scale(iterations=30, retrain_steps=2, groups=3, test_tasks=5))
    page = demo.run_demo(tmp_path / "out", seed=2, quiet=True, quick=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("Influence found ")
    assert lines[1].endswith(f"are in {tmp_path / 'out'}.") and lines[2].endswith(page.as_uri())
    names = {file.name for file in page.parent.iterdir()}
    pictures = {"task.png", "ranking.png", "detection.png", "comparison.png", "predictions.png"}
    assert names == pictures | {"scores.csv", "report.html"}
    with (page.parent / "scores.csv").open(newline="") as file:
        keys = [int(row["key"]) for row in csv.DictReader(file)]
    assert len(keys) == len(set(keys)) > 150 and set(keys) <= set(range(252)), "one row for each task that was drawn"
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 5
    assert not re.search(r"""(src|href)=["'](?!data:)""", html), "the page must not need other files"
    assert "seed 2" in html and "Positive: the task is harmful" in html
