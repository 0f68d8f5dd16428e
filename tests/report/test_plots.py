"""Plots show the values that they are given."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from l2l_influence.analysis.results.result import TaskScore, TaskScores
from l2l_influence.report.plots import (
    BLUE,
    GREEN,
    VERMILION,
    Bar,
    Panel,
    draw_comparison,
    draw_detection,
    draw_predictions,
    draw_ranking,
    draw_task,
)

from ..processes import ended, started

VALUES = [0.4, 0.1, -0.2]


@pytest.fixture
def scores() -> TaskScores:
    rows = [TaskScore(rank, 10 + rank, rank, None, 1, 0.5, value) for rank, value in enumerate(VALUES, start=1)]
    return TaskScores(rows, 0.7, [], "positive = harmful")


def test_ranking_has_a_bar_for_each_task_and_highlights_the_marked(scores: TaskScores) -> None:
    axes = draw_ranking(scores, marked=[False, True, False], marked_name="wrong labels").axes[0]
    bars = {round(bar.get_x() + bar.get_width() / 2): bar for bar in axes.patches}
    assert [bars[rank].get_height() for rank in (1, 2, 3)] == VALUES
    assert [to_hex(bars[rank].get_facecolor()).upper() for rank in (1, 2, 3)] == [BLUE, VERMILION, BLUE]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["others", "wrong labels (1)"]


def test_ranking_without_marks_needs_no_legend(scores: TaskScores) -> None:
    assert draw_ranking(scores).axes[0].get_legend() is None


def test_scores_draw_and_save_themselves(scores: TaskScores, tmp_path: Path) -> None:
    figure = scores.plot(tmp_path / "ranking.png")
    assert len(figure.axes[0].patches) == 3
    picture = imread(tmp_path / "ranking.png")
    assert picture.shape[1] > 800 and picture[..., :3].std() > 0.05


def test_detection_starts_at_nothing_and_counts_in_per_cent() -> None:
    axes = draw_detection({"influence": [0.5, 1.0], "at random": [0.5, 1.0]}, "wrong tasks").axes[0]
    for line in axes.get_lines():
        np.testing.assert_allclose(line.get_xdata(), [0, 50, 100])
        np.testing.assert_allclose(line.get_ydata(), [0, 50, 100])


def test_predictions_have_a_diagonal_only_where_units_agree() -> None:
    panels = [
        Panel("influence", [0.1, 0.2], [0.2, 0.5], "r", True),
        Panel("loss", [40.0, 30.0], [0.2, 0.5], "r", False),
    ]
    left, right = draw_predictions({"halves": panels}).axes
    np.testing.assert_allclose(left.get_lines()[0].get_xydata(), [[0.1, 0.2], [0.2, 0.5]])
    assert [line.get_label() == "prediction = truth" for line in left.get_lines()].count(True) == 1
    assert not any(line.get_label() == "prediction = truth" for line in right.get_lines())
    assert left.get_xlim()[1] < 0.3, "the diagonal must not stretch the axes"


def test_comparison_shows_loss_and_accuracy_of_each() -> None:
    left, right = draw_comparison([Bar("none", 0.5, 0.8), Bar("edited", 0.25, 0.9, highlighted=True)]).axes
    assert [bar.get_width() for bar in left.patches] == [0.5, 0.25]
    assert to_hex(left.patches[1].get_facecolor()).upper() == GREEN
    np.testing.assert_allclose(right.collections[0].get_offsets(), [[80, 0], [90, 1]])


def test_task_puts_images_in_the_row_of_their_label() -> None:
    x = np.arange(4.0).reshape(4, 1, 1) * np.ones((4, 2, 2))
    figure = draw_task((x, [0, 1, 1, 0]), (x + 10, [1, 0, 0, 1]), "a task")
    shown = [[axes.images[0].get_array()[0, 0] for axes in figure.axes[row : row + 5] if axes.images] for row in (0, 5)]
    assert shown == [[0, 3, 11, 12], [1, 2, 10, 13]]


def draw_without_figures_of_pyplot() -> None:
    """In a process of its own: the tests above may have left figures."""
    draw_comparison([Bar("a", 1.0, 0.5)]).savefig(os.devnull, format="png")
    pyplot = sys.modules.get("matplotlib.pyplot")  # others may have imported it: torchmetrics does, for Lightning
    assert not (pyplot and pyplot.get_fignums())


def test_drawing_leaves_pyplot_alone() -> None:
    assert ended(started(draw_without_figures_of_pyplot)) == 0
