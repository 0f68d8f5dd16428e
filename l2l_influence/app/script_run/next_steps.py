"""The Python code on the page: load the study, compute missing scores, and ask more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .analysis import Scoring
from .losses import ChosenLoss

UNKNOWN_LOSS = ChosenLoss(code="loss=nn.CrossEntropyLoss()")
"""An example in place of a loss that the recording does not tell."""


def next_steps(
    study: Path, learner: str, has_body: bool, scoring: Scoring | None, missing: bool, worst: Sequence[int]
) -> str:
    """Code that continues with a study.

    Args:
        study: folder of the study.
        learner: name of the argument of ``Study.load``, ``"learner"`` or ``"model"``.
        has_body: True if loading needs the body, too.
        scoring: how the tasks were to be scored; None if that is unknown.
        missing: True if scores are missing; the code then computes all of them.
        worst: ids of the most harmful tasks.
    """
    loss = UNKNOWN_LOSS if scoring is None else scoring.loss
    hessian = "" if scoring is None else scoring.hessian_code
    arguments = ", ".join(part for part in ("study", loss.code, hessian) if part)
    lines = [loss.imports, "from l2l_influence import Study, TaskInfluence"]
    names = [name for name in ("Sketch", "Subsample") if f"{name}(" in hessian]
    if names:
        lines.append(f"from l2l_influence.bilevel import {', '.join(names)}")
    lines += [
        "",
        f"study = Study.load({str(study)!r}, {learner}{', body' if has_body else ''})",
        f"influence = TaskInfluence({arguments})",
    ]
    if missing and scoring is not None:
        ids = sorted(task.id for task in scoring.tests.tasks)
        lines += [
            f"tests = [(task.support, task.query) for task in study.tasks if task.id in {ids}]",
            "influence.scores(tests).to_csv('scores.csv')",
        ]
    if worst:
        lines.append(f"edited = influence.remove({list(worst)})  # a state_dict without the most harmful tasks")
    if not missing or scoring is None:
        lines.append(
            "print(influence.self_influence())  # influence of each task on itself; wrong labels tend to rank high"
        )
    return "\n".join(lines)
