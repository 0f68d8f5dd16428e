"""The demo end to end, at a small scale."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

import l2l_influence.app.demo as demo
from l2l_influence.app.demo.findings import TEST_TASKS_SCORED, RankedTasks, compare, detect, rank
from l2l_influence.app.demo.run import DemoRun, Scale, train

TINY = Scale(iterations=100, retrain_steps=8, subsets=4, test_tasks=12)


@pytest.fixture(scope="module")
def run() -> DemoRun:
    return train(0, TINY, lambda: None)


@pytest.fixture(scope="module")
def ranked(run: DemoRun) -> RankedTasks:
    return rank(run)


def test_influence_finds_wrong_tasks_far_above_chance(run: DemoRun, ranked: RankedTasks) -> None:
    influence = detect(run, ranked)[0]
    assert influence.name == "influence"
    assert influence.found >= 35, "chance finds 10 of 50"
    assert influence.auc > 0.9
    assert influence.curve[49] == influence.found / 50


def test_scores_of_single_test_tasks_average_to_those_of_their_mean(run: DemoRun, ranked: RankedTasks) -> None:
    assert len(run.digits.test) <= TEST_TASKS_SCORED
    for ranking in ranked.rankings:
        np.testing.assert_allclose(
            ranking.each.mean(1), ranking.values, rtol=1e-3, atol=1e-3 * abs(ranking.values).max()
        )


def test_classes_of_a_task_are_its_digits_in_the_order_of_its_support_labels(run: DemoRun, ranked: RankedTasks) -> None:
    data = run.digits.train.dataset
    for row in ranked.scores:
        description = run.digits.train.sampled_descriptions[row.key]
        labels = run.digits.train[row.key][1].tolist()
        support = {
            label: data.indices_to_labels[at.index] for at, label in list(zip(description, labels, strict=True))[::2]
        }
        assert row.classes == tuple(support[label] for label in range(5))


def test_removing_by_editing_moves_towards_retraining(run: DemoRun, ranked: RankedTasks) -> None:
    variants = {variant.name: variant for variant in compare(run, ranked, lambda: None)}
    trained, edited = variants["as trained, on all tasks"], variants["edited: the most harmful tasks"]
    retrained = variants["retrained without them, warm start"]
    assert edited.edited and [variant.edited for variant in variants.values()].count(True) == 1
    assert retrained.loss < trained.loss and edited.loss < trained.loss


def test_writes_everything_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "QUICK", Scale(iterations=30, retrain_steps=2, subsets=3, test_tasks=5))
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
