"""The demo: find, measure and remove wrong labels in a fifth of the training tasks. Needs the extra ``demo``."""

from __future__ import annotations

import time
from pathlib import Path

from ...evaluation.ground_truth.retraining import one_thread
from .console import (
    DETECTION_COLUMNS,
    PREDICTION_COLUMNS,
    VARIANT_COLUMNS,
    Screen,
    detection_rows,
    prediction_rows,
    variant_rows,
)
from .findings import compare, detect, predict, rank, retrainings
from .page import Findings, write_files
from .run import QUICK, Scale, train

__all__ = ["run_demo"]


def run_demo(folder: Path, seed: int = 0, quiet: bool = False, quick: bool = False) -> Path:
    """Run the demo, print its results, and write them to ``folder``.

    Args:
        folder: folder for scores.csv, the plots and report.html; created if missing.
        seed: of tasks, training and random subsets.
        quiet: print only a summary and the paths of the files.
        quick: train and retrain much less; the results are less reliable.

    Returns:
        The path of the page.
    """
    begin = time.perf_counter()
    screen, scale = Screen(quiet), QUICK if quick else Scale()
    with one_thread():
        findings = _investigate(screen, seed, scale, begin)
    page = write_files(findings, folder)
    screen.say()
    screen.say_always(f"{_summary(findings)}\nPlots, scores.csv and the report are in {folder}.")
    screen.say_always(f"Open this in a browser: {page.resolve().as_uri()}")
    return page


def _investigate(screen: Screen, seed: int, scale: Scale, begin: float) -> Findings:
    screen.say(
        "[bold]Which training tasks harm a meta-learner?[/bold] A plain learn2learn loop trains MAML on 252 tasks of "
        "five handwritten digits each. A fifth of the tasks have wrong labels. Influence functions rank the tasks, and "
        "the ranking is tested against retraining.\n"
    )
    with screen.bar("1 training", scale.iterations) as advance:
        run = train(seed, scale, advance)
    ranked = rank(run)
    wrong, total = len(run.digits.wrong), len(run.weights)
    screen.say(f"2 influence of all {total} tasks, in {ranked.seconds:.1f} s\n")
    screen.plain(ranked.scores.table(5) + "\n")
    detections = detect(run, ranked)
    screen.table(f"{wrong} tasks have wrong labels", DETECTION_COLUMNS, detection_rows(detections, wrong, total))
    with screen.bar("3 removing the most harmful fifth", scale.iterations) as advance:
        variants = compare(run, ranked, advance)
    screen.table("On correct test tasks", VARIANT_COLUMNS, variant_rows(variants))
    with screen.bar("4 retraining without subsets of tasks", retrainings(run)) as advance:
        predictions = predict(run, ranked, advance)
    for name, rows in predictions.items():
        title = f"{name}: correlation of predicted and true change of the test loss by removal"
        screen.table(title, PREDICTION_COLUMNS, prediction_rows(rows))
    return Findings(run, ranked, detections, variants, predictions, time.perf_counter() - begin)


def _summary(findings: Findings) -> str:
    first, edited = findings.variants[0], findings.edited
    return (
        f"Influence found {findings.detections[0].found} of {len(findings.run.digits.wrong)} wrong tasks in the first "
        f"fifth of its ranking. Removing this fifth by editing changed the test loss from {first.loss:.3f} to "
        f"{edited.loss:.3f}; retraining without it gives {findings.variants[-1].loss:.3f}."
    )
