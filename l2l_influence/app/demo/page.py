"""Files of the demo: scores, plots, and the page that explains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...report.html import versions, write_page
from ...report.plots import Bar, Panel, draw_comparison, draw_detection, draw_predictions, draw_ranking, draw_task
from .console import (
    DETECTION_COLUMNS,
    PREDICTION_COLUMNS,
    VARIANT_COLUMNS,
    detection_rows,
    prediction_rows,
    signed,
    size,
    variant_rows,
)
from .findings import GRADIENTS, INFLUENCE, LOSS, Detection, Prediction, RankedTasks, Variant
from .run import DemoRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Findings:
    """All results of the demo; ``predictions`` by design of removals."""

    run: DemoRun
    ranked: RankedTasks
    detections: list[Detection]
    variants: list[Variant]
    predictions: Mapping[str, Sequence[Prediction]]
    seconds: float

    @property
    def edited(self) -> Variant:
        """The meta-parameters after the edit that removes the most harmful tasks."""
        return next(variant for variant in self.variants if variant.edited)


def write_files(findings: Findings, folder: Path) -> Path:
    """Write scores.csv, five plots and report.html; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    findings.ranked.scores.to_csv(folder / "scores.csv")
    figures = _figures(findings)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    wrong, total = len(findings.run.digits.wrong), len(findings.run.weights)
    return write_page(
        folder / "report.html",
        "demo.html.j2",
        findings=findings,
        figures=figures,
        versions=versions(),
        rows=_score_rows(findings),
        detection=(DETECTION_COLUMNS, detection_rows(findings.detections, wrong, total)),
        comparison=(VARIANT_COLUMNS, variant_rows(findings.variants)),
        predictions={
            name: (PREDICTION_COLUMNS, prediction_rows(predictions))
            for name, predictions in findings.predictions.items()
        },
        highlights=_highlights(findings),
    )


def _figures(findings: Findings) -> dict[str, Figure]:
    run, scores = findings.run, findings.ranked.scores
    curves = {d.name: d.curve for d in findings.detections}
    total = len(run.weights)
    wrong = [row.key in run.digits.wrong for row in scores]
    return {
        "task": _worst_task(findings),
        "ranking": draw_ranking(scores, marked=wrong, marked_name="wrong labels"),
        "detection": draw_detection(curves | {"at random": np.arange(1, total + 1) / total}, "wrong tasks"),
        "comparison": draw_comparison([Bar(v.name, v.loss, v.accuracy, v.edited) for v in findings.variants]),
        "predictions": draw_predictions({name: _panels(rows) for name, rows in findings.predictions.items()}),
    }


def _panels(predictions: Sequence[Prediction]) -> list[Panel]:
    titles = {INFLUENCE: "influence", GRADIENTS: "gradient similarity (Γ Hessian)", LOSS: "sum of training losses"}
    return [Panel(titles[p.name], p.predicted, p.true, _panel_note(p), p.in_loss_units) for p in predictions]


def _panel_note(prediction: Prediction) -> str:
    sizes = f"\ntrue size {size(prediction.slope)} × predicted" if prediction.in_loss_units else ""
    return f"rank correlation {signed(prediction.mean)}{sizes}"


def _worst_task(findings: Findings) -> Figure:
    row = findings.ranked.scores[0]
    xs, ys, xq, yq = (part[row.key] for part in findings.run.train)
    labels = "its query labels are wrong" if row.key in findings.run.digits.wrong else "its labels are correct"
    title = f"The most harmful task: {labels}"
    return draw_task((xs.view(-1, 8, 8), ys), (xq.view(-1, 8, 8), yq), title)


def _score_rows(findings: Findings, count: int = 10) -> list[list[str]]:
    rows = [
        [
            str(row.rank),
            str(row.task),
            " ".join(map(str, row.classes or ())),
            "wrong" if row.key in findings.run.digits.wrong else "correct",
            str(row.times_trained),
            f"{row.loss:.3f}",
            f"{row.score:+.2e}",
        ]
        for row in findings.ranked.scores
    ]
    return [*rows[:count], ["…"] * 7, *rows[-count:]]


def _highlights(findings: Findings) -> dict[str, str]:
    trained, edited, (warm, scratch) = findings.variants[0], findings.edited, findings.variants[-2:]
    balanced = list(findings.predictions.values())[-1]
    influence, loss = balanced[0], balanced[-1]
    return {
        f"{findings.detections[0].found} of {len(findings.run.digits.wrong)}": "wrong tasks are in the first fifth of "
        "the influence ranking",
        f"{trained.loss:.2f} → {edited.loss:.2f}": "test loss before and after removing these tasks by editing; "
        f"retraining without them gives {warm.loss:.2f} (warm start) and {scratch.loss:.2f} (from scratch)",
        f"{signed(influence.each)} / {signed(loss.each)}": "rank correlation of predicted and true effects, by "
        "influence / by loss, for subsets with equally many wrong tasks",
    }
