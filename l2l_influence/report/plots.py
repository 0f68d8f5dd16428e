"""All plots of the package. Functions take plain values and return a figure; matplotlib's global state is not used.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; shape or text repeats what colour shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8A8A"
INK = "#222222"
SERIES = (
    (BLUE, "-", 5),
    (VERMILION, "-", 2.5),
    (GREEN, "--", 1.6),
    (GREY, ":", 1.6),
)  # wide lines lie under narrow ones
DPI = 130


class RankedRow(Protocol):
    """A row of scores: its rank (1 = most harmful) and its score."""

    @property
    def rank(self) -> int: ...

    @property
    def score(self) -> float: ...


class RankedScores(Protocol):
    """Scores, most harmful first; ``what`` names their items in the plural."""

    @property
    def what(self) -> str: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RankedRow]: ...


@dataclass(frozen=True)
class Panel:
    """A scatter plot of predicted and true changes of the loss, one point for each removed subset.

    Attributes:
        title: shown above the panel.
        predicted, true: the changes, equally long; ``predicted`` in any unit.
        note: shown in a corner, such as the correlation.
        same_unit: True if predictions have the unit of the truth; then the diagonal is drawn.
    """

    title: str
    predicted: ArrayLike
    true: ArrayLike
    note: str
    same_unit: bool = True


@dataclass(frozen=True)
class Bar:
    """A row of a comparison: name, loss, accuracy (0 … 1), and whether to highlight it."""

    name: str
    loss: float
    accuracy: float
    highlighted: bool = False


@dataclass(frozen=True)
class Curve:
    """Numbers between −1 and 1, such as correlations, at several values of a setting.

    Attributes:
        setting: name of the setting.
        values: its values, positive and increasing.
        current: the value in use.
        lines: by name, a number for each value; nan where the value was refused.
    """

    setting: str
    values: Sequence[float]
    current: float
    lines: Mapping[str, Sequence[float]]


def draw_ranking(
    scores: RankedScores,
    path: str | Path | None = None,
    marked: Sequence[bool] | None = None,
    marked_name: str = "marked",
) -> Figure:
    """Bar plot of the scores of all items, from the most harmful to the most helpful.

    Args:
        scores: the ranking.
        path: file to save the picture to.
        marked: a flag for each row of ``scores``: True for the rows to highlight.
        marked_name: name of the highlighted items in the legend.
    """
    figure, axes = _new(9, 3.6)
    ranks = np.array([row.rank for row in scores])
    values = np.array([row.score for row in scores])
    chosen = np.zeros(len(ranks), dtype=bool) if marked is None else np.asarray(marked, dtype=bool)
    axes.bar(ranks[~chosen], values[~chosen], width=1.0, color=BLUE, label="others" if marked is not None else None)
    if chosen.any():
        axes.bar(ranks[chosen], values[chosen], width=1.0, color=VERMILION, label=f"{marked_name} ({chosen.sum()})")
        axes.plot(ranks[chosen], np.zeros(chosen.sum()), "|", color=INK, markersize=6, markeredgewidth=0.8)
        axes.legend(frameon=False, loc="upper right")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(0.5, len(scores) + 0.5)
    axes.set_xlabel("rank: 1 = most harmful")
    axes.set_ylabel("influence score\n(predicted decrease of the\ntest loss if it is removed)")
    axes.set_title(f"{len(scores)} {scores.what} by influence on the test tasks", loc="left")
    return _saved(figure, path)


def draw_detection(curves: Mapping[str, ArrayLike], target: str, path: str | Path | None = None) -> Figure:
    """Share of the targets found after checking the first k tasks of each ranking.

    Args:
        curves: by name of the ranking, the share found after checking 1 … n tasks.
        target: name of the targets, such as "wrong tasks".
        path: file to save the picture to.
    """
    figure, axes = _new(6, 4)
    for (name, curve), (colour, line, width) in zip(curves.items(), SERIES, strict=False):
        found = 100 * np.asarray(curve, dtype=float)
        checked = 100 * np.arange(1, len(found) + 1) / len(found)
        axes.plot(np.r_[0, checked], np.r_[0, found], line, color=colour, linewidth=width, label=name)
    axes.set_xlabel("tasks checked, from the top of the ranking (%)")
    axes.set_ylabel(f"{target} found (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 104)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(f"Finding the {target}", loc="left")
    return _saved(figure, path)


def draw_predictions(rows: Mapping[str, Sequence[Panel]], path: str | Path | None = None) -> Figure:
    """Predicted and true change of the mean test loss: a row of panels for each design of removals."""
    from matplotlib.figure import Figure

    columns = max(len(panels) for panels in rows.values())
    figure = Figure(figsize=(3.5 * columns, 3.4 * len(rows)), layout="constrained")
    strips = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for strip, (name, panels) in zip(strips, rows.items(), strict=True):
        strip.suptitle(name, x=0.01, ha="left", fontweight="bold", fontsize=10)
        for axes, panel in zip(strip.subplots(1, columns, sharey=True, squeeze=False)[0], panels, strict=False):
            _scatter(axes, panel)
        strip.axes[0].set_ylabel("true change of the test loss")
    return _saved(figure, path)


def draw_comparison(bars: Sequence[Bar], path: str | Path | None = None) -> Figure:
    """Test loss and accuracy of several sets of meta-parameters, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.55 * len(bars) + 1.1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows, colours = range(len(bars)), [GREEN if bar.highlighted else GREY for bar in bars]
    drawn = left.barh(rows, [bar.loss for bar in bars], color=colours, height=0.7)
    left.bar_label(drawn, [f"{bar.loss:.3f}" for bar in bars], padding=3, fontsize=8)
    left.set_xlabel("test loss after adaptation (lower is better)")
    # Points, not bars: the axis does not start at zero.
    percent = [100 * bar.accuracy for bar in bars]
    right.scatter(percent, rows, color=colours, s=60)
    for value, row in zip(percent, rows, strict=True):
        right.annotate(f"{value:.1f}", (value, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
    right.grid(axis="y", color="#E6E6E6")
    right.set_axisbelow(True)
    right.set_xlabel("test accuracy in % (higher is better)")
    for axes in (left, right):
        axes.margins(x=0.16)
        _bare(axes)
    left.set_yticks(rows, [bar.name for bar in bars])
    left.invert_yaxis()
    return _saved(figure, path)


def draw_task(
    support: tuple[ArrayLike, ArrayLike],
    query: tuple[ArrayLike, ArrayLike],
    title: str,
    path: str | Path | None = None,
) -> Figure:
    """Images of a task: one row for each label, with support images on the left and query images on the right.

    Args:
        support, query: images ``(n, height, width)`` and labels ``(n,)``.
        title: shown above the picture.
        path: file to save the picture to.
    """
    from matplotlib.figure import Figure

    sides = [(np.asarray(x), np.asarray(y)) for x, y in (support, query)]
    labels = np.unique(np.concatenate([y for _, y in sides]))
    shots = max(int((y == label).sum()) for _, y in sides for label in labels)
    figure = Figure(figsize=(0.5 * (2 * shots + 2), 0.52 * len(labels) + 0.75), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(labels), 2 * shots + 1, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.05})
    for axes in grid.flat:
        axes.set_axis_off()
    for row, label in zip(grid, labels, strict=True):
        row[0].text(-0.2, 0.5, f"label {label}", transform=row[0].transAxes, ha="right", va="center", fontsize=8)
        for start, (x, y) in zip((0, shots + 1), sides, strict=True):
            for axes, image in zip(row[start : start + shots], x[y == label], strict=False):
                axes.imshow(image, cmap="gray_r", interpolation="nearest")
    grid[0, shots // 2].set_title("support: adapt to this", fontsize=8)
    grid[0, shots + 1 + shots // 2].set_title("query: then get this right", fontsize=8)
    return _saved(figure, path)


def draw_sensitivity(curves: Sequence[Curve], path: str | Path | None = None) -> Figure:
    """One panel for each setting: numbers over its values; marks the value in use, and refused values by crosses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(curves), 4.2), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, curve in zip(panels, curves, strict=True):
        _sensitivity(axes, curve)
    lowest = min(np.nanmin(line) for curve in curves for line in curve.lines.values())
    panels[0].set_ylim(min(0.0, lowest) - 0.05, 1.05)
    panels[0].set_ylabel("correlation")
    named = {line.get_label(): line for axes in panels for line in axes.get_lines()[:-1]}
    figure.legend(named.values(), named.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return _saved(figure, path)


def _sensitivity(axes: Axes, curve: Curve) -> None:
    values = np.asarray(curve.values, dtype=float)
    for (name, line), (colour, style, _), marker in zip(curve.lines.items(), SERIES, "os", strict=False):
        figures = np.asarray(line, dtype=float)
        axes.plot(values, figures, style, marker=marker, markersize=5, color=colour, linewidth=1.8, label=name)
    axes.axvline(curve.current, linestyle=":", color=GREY, linewidth=1.6, label="in use")
    refused = values[np.isnan(np.asarray(next(iter(curve.lines.values())), dtype=float))]
    if len(refused):
        axes.plot(refused, np.zeros(len(refused)), "x", color=INK, label="refused")
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlabel(f"{curve.setting} (in use: {curve.current:.3g})")
    axes.set_title(f"Sensitivity to {curve.setting}", loc="left", fontsize=10)
    _bare(axes)


def _scatter(axes: Axes, panel: Panel) -> None:
    axes.plot(panel.predicted, panel.true, "o", color=BLUE, markersize=5.5, markeredgecolor="white")
    axes.margins(0.1, 0.2)
    if panel.same_unit:
        axes.set_xlim(axes.get_xlim())  # so that the diagonal does not stretch the axes
        axes.set_ylim(axes.get_ylim())
        axes.axline((0, 0), slope=1, linestyle="--", color=GREY, linewidth=1.2, label="prediction = truth")
        axes.legend(frameon=False, fontsize=7, loc="lower right")
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.set_xlabel("predicted change of the test loss" if panel.same_unit else "prediction (no unit)", fontsize=8)
    axes.text(0.03, 0.97, panel.note, transform=axes.transAxes, va="top", fontsize=8, color=INK)
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    axes.xaxis.get_offset_text().set_fontsize(7)
    _bare(axes)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=DPI)
    return figure
