"""The demo's files: scores, pictures, and the page that explains them."""

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
    OUTCOME_COLUMNS,
    PREDICTION_COLUMNS,
    detection_rows,
    outcome_rows,
    prediction_rows,
    signed,
    size,
)
from .findings import GRADIENTS, INFLUENCE, LOSS, Detection, Outcome, Prediction, Study
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Findings:
    """All that the demo found; ``predictions`` by way of drawing the groups."""

    run: Run
    study: Study
    detections: list[Detection]
    outcomes: list[Outcome]
    predictions: Mapping[str, Sequence[Prediction]]
    seconds: float

    @property
    def edited(self) -> Outcome:
        """The outcome of the edit that the demo is about."""
        return next(outcome for outcome in self.outcomes if outcome.edited)

    @property
    def wrong_ids(self) -> set[int]:
        """Ids of the tasks with wrong labels, as the scores name them."""
        return {row.task for row in self.study.scores if row.key in self.run.digits.wrong}


def write_files(found: Findings, folder: Path) -> Path:
    """scores.csv, five PNGs and report.html; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    found.study.scores.to_csv(folder / "scores.csv")
    figures = _figures(found)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    wrong, total = len(found.run.digits.wrong), len(found.run.weights)
    return write_page(
        folder / "report.html",
        "demo.html.j2",
        found=found,
        figures=figures,
        versions=versions(),
        rows=_score_rows(found),
        detection=(DETECTION_COLUMNS, detection_rows(found.detections, wrong, total)),
        comparison=(OUTCOME_COLUMNS, outcome_rows(found.outcomes)),
        predictions={
            name: (PREDICTION_COLUMNS, prediction_rows(predictions)) for name, predictions in found.predictions.items()
        },
        highlights=_highlights(found),
    )


def _figures(found: Findings) -> dict[str, Figure]:
    run, scores = found.run, found.study.scores
    curves = {d.name: d.curve for d in found.detections}
    total = len(run.weights)
    return {
        "task": _worst_task(found),
        "ranking": draw_ranking(scores, marked=found.wrong_ids, marked_name="wrong labels"),
        "detection": draw_detection(curves | {"at random": np.arange(1, total + 1) / total}, "wrong tasks"),
        "comparison": draw_comparison([Bar(o.name, o.loss, o.accuracy, o.edited) for o in found.outcomes]),
        "predictions": draw_predictions({name: _panels(group) for name, group in found.predictions.items()}),
    }


def _panels(predictions: Sequence[Prediction]) -> list[Panel]:
    titles = {INFLUENCE: "influence", GRADIENTS: "gradient similarity (Γ Hessian)", LOSS: "sum of training losses"}
    return [Panel(titles[p.name], p.predicted, p.true, _panel_note(p), p.in_loss_units) for p in predictions]


def _panel_note(prediction: Prediction) -> str:
    sizes = f"\ntrue size {size(prediction.slope)} × predicted" if prediction.in_loss_units else ""
    return f"rank correlation {signed(prediction.mean)}{sizes}"


def _worst_task(found: Findings) -> Figure:
    row = found.study.scores[0]
    xs, ys, xq, yq = (part[row.key] for part in found.run.train)
    what = "its query labels are wrong" if row.key in found.run.digits.wrong else "its labels are right"
    title = f"The most harmful task: {what}"
    return draw_task((xs.view(-1, 8, 8), ys), (xq.view(-1, 8, 8), yq), title)


def _score_rows(found: Findings, count: int = 10) -> list[list[str]]:
    rows = [
        [
            str(row.rank),
            str(row.task),
            " ".join(map(str, row.classes or ())),
            "wrong" if row.key in found.run.digits.wrong else "correct",
            str(row.draws),
            f"{row.loss:.3f}",
            f"{row.score:+.2e}",
        ]
        for row in found.study.scores
    ]
    return [*rows[:count], ["…"] * 7, *rows[-count:]]


def _highlights(found: Findings) -> dict[str, str]:
    trained, edited, (continued, afresh) = found.outcomes[0], found.edited, found.outcomes[-2:]
    matched = list(found.predictions.values())[-1]
    influence, loss = matched[0], matched[-1]
    return {
        f"{found.detections[0].found} of {len(found.run.digits.wrong)}": "wrong tasks stand in the first fifth of the "
        "influence ranking",
        f"{trained.loss:.2f} → {edited.loss:.2f}": "test loss by editing these tasks away; training again without them "
        f"gives {continued.loss:.2f} from here and {afresh.loss:.2f} from scratch",
        f"{signed(influence.each)} / {signed(loss.each)}": "rank correlation of predicted with true effects, by "
        "influence / by loss, for groups with equally many wrong tasks",
    }
