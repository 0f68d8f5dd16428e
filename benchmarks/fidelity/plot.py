"""What faithfulness costs: a picture of the measured rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from l2l_influence.report.plots import BLUE, DPI, GREEN, GREY, PURPLE, VERMILION

from ..journal import Row
from .aims import BASELINES, OWN
from .estimators import DEFAULT
from .rows import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {
    "sketch, 1 sample": ("v", BLUE),
    "sketch, 4 samples": ("<", BLUE),
    DEFAULT: ("o", VERMILION),
    "sketch, 64 samples": ("^", BLUE),
    "sketch, a quarter of the tasks": ("X", BLUE),
    "gauss-newton": ("s", GREEN),
    "exact": ("D", GREEN),
    "exact, left out": ("d", GREEN),
    "the other inner kind": ("P", PURPLE),
}
"""Shapes and colours of kinds of Hessian; baselines are grey dots."""

AREA = 0.6
"""Square points a mebibyte."""

COLUMNS = 4


def cost_plot(rows: Rows) -> Figure:
    """A panel a world: LDS of halves of the tasks over processor seconds, at the estimators' own damping; the area of
    a disc is peak memory."""
    from matplotlib.figure import Figure

    lines = math.ceil(len(rows.worlds) / COLUMNS)
    figure = Figure(figsize=(3.8 * COLUMNS, 3.4 * lines + 0.8), dpi=DPI, layout="constrained")
    panels = [figure.add_subplot(lines, COLUMNS, at) for at in range(1, len(rows.worlds) + 1)]
    named = {}
    for axes, world in zip(panels, rows.worlds, strict=True):
        _panel(axes, rows, world)
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named[name] = handle
    figure.supxlabel("processor seconds for the scores of all tasks on all test tasks")
    figure.supylabel("LDS, halves of the tasks")
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def _panel(axes: Axes, rows: Rows, world: str) -> None:
    found = rows.of(world=world, level="task", damping=OWN, verdict="measured")
    for row in sorted(found, key=lambda row: row["estimator"] not in BASELINES):  # kinds of Hessian lie on top
        _point(axes, row)
    axes.set(xscale="log", title=rows.title(world))
    axes.margins(x=0.15)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _point(axes: Axes, row: Row) -> None:
    (value, low, high), at = row["halves"]["warm"]["lds"], row["seconds"]
    name = row["estimator"]
    marker, colour = MARKS.get(name, (".", GREY))
    label = "baselines" if name in BASELINES else name
    axes.plot([at, at], [low, high], color=colour, linewidth=0.8, alpha=0.5)
    axes.scatter(at, value, s=AREA * (row["mebibytes"] or 0), color=colour, alpha=0.2, linewidths=0)
    axes.plot(at, value, marker, color=colour, markersize=6, label=label, linestyle="none")
