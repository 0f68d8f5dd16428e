"""The demo: wrong labels in a fifth of the training tasks, found, measured and removed. Needs the extra ``demo``."""

from __future__ import annotations

import time
from pathlib import Path

from ...evaluation.ground_truth.retraining import one_thread
from .console import (
    DETECTION_COLUMNS,
    OUTCOME_COLUMNS,
    PREDICTION_COLUMNS,
    Screen,
    detection_rows,
    outcome_rows,
    prediction_rows,
)
from .findings import compare, detect, predict, rank, retrainings
from .page import Findings, write_files
from .run import QUICK, Scale, train

__all__ = ["run_demo"]


def run_demo(folder: Path, seed: int = 0, quiet: bool = False, quick: bool = False) -> Path:
    """Run it, tell what is found, and write it to ``folder``; returns the page's path.

    Args:
        folder: where scores.csv, the pictures and report.html go; made if missing.
        seed: of tasks, training and groups.
        quiet: say only where the files are.
        quick: a small fraction of the training and retraining; the figures mean less.
    """
    begin = time.perf_counter()
    screen, scale = Screen(quiet), QUICK if quick else Scale()
    with one_thread():
        found = _investigate(screen, seed, scale, begin)
    page = write_files(found, folder)
    screen.say()
    screen.say_last(f"{_summary(found)}\nPictures, scores.csv and the report are in {folder}.")
    screen.say_last(f"Open this in a browser: {page.resolve().as_uri()}")
    return page


def _investigate(screen: Screen, seed: int, scale: Scale, begin: float) -> Findings:
    screen.say(
        "[bold]Which training tasks harm a meta-learner?[/bold] MAML is trained with a plain learn2learn loop on 252 "
        "tasks of five handwritten digits, a fifth of them with wrong labels. Influence functions rank the tasks, and "
        "the ranking is put to the test.\n"
    )
    with screen.bar("1 training", scale.iterations) as advance:
        run = train(seed, scale, advance)
    study = rank(run)
    wrong, total = len(run.digits.wrong), len(run.weights)
    screen.say(f"2 influence of all {total} tasks, in {study.seconds:.1f} s\n")
    screen.plain(study.scores.table(5) + "\n")
    detections = detect(run, study)
    screen.table(f"{wrong} tasks have wrong labels", DETECTION_COLUMNS, detection_rows(detections, wrong, total))
    with screen.bar("3 removing the most harmful fifth", scale.iterations) as advance:
        outcomes = compare(run, study, advance)
    screen.table("On clean test tasks", OUTCOME_COLUMNS, outcome_rows(outcomes))
    with screen.bar("4 retraining without groups of tasks", retrainings(run)) as advance:
        predictions = predict(run, study, advance)
    for name, group in predictions.items():
        title = f"{name} left out: correlation of predicted with true change of the test loss"
        screen.table(title, PREDICTION_COLUMNS, prediction_rows(group))
    return Findings(run, study, detections, outcomes, predictions, time.perf_counter() - begin)


def _summary(found: Findings) -> str:
    first, edited = found.outcomes[0], found.edited
    return (
        f"Influence found {found.detections[0].found} of {len(found.run.digits.wrong)} wrong tasks in its first fifth; "
        f"removing these by editing took the test loss from {first.loss:.3f} to {edited.loss:.3f}, "
        f"retraining to {found.outcomes[-1].loss:.3f}."
    )
