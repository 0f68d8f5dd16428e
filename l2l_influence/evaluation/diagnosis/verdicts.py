"""The result of a diagnosis: checks, each with a number, a verdict and advice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fine", "not checked", "read with care", "do not trust"]

SEVERITY: tuple[Verdict, ...] = ("fine", "not checked", "read with care", "do not trust")

SPOT_CHECK = "spot-check"

CONCLUSIONS: dict[Verdict, str] = {
    "fine": "scores, their sizes and edits can be taken as predictions of retraining.",
    "not checked": "no problem was found, but not everything was checked.",
    "read with care": "use scores to compare tasks and samples; check sizes and edits by retraining.",
    "do not trust": "use scores only as hints where to look, and neither their sizes nor edits, until what is marked "
    "below is mended.",
}


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: of the check.
        verdict: ``"fine"``, ``"read with care"``, ``"do not trust"``, or ``"not checked"``.
        figure: the number measured; NaN if nothing was measured.
        found: the number in words, with what it is compared with.
        advice: what to do; empty if there is nothing to do.
    """

    name: str
    verdict: Verdict
    figure: float
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f" → {self.advice}" if self.advice and self.verdict != "fine" else ""
        return f"{f'[{self.verdict}]':<17}{self.name}: {self.found}{advice}"


@dataclass(frozen=True)
class Diagnosis:
    """How far the numbers of a hook can be trusted. ``print`` shows the verdict, the checks and advice.

    Attributes:
        checks: in the order in which an analysis can go wrong.
    """

    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        """The check with that name."""
        return {check.name: check for check in self.checks}[name]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all checks. If the spot check is fine, it is at worst ``"read with care"``: the other
        checks look for reasons why predictions could fail, and the spot check has seen that they do not."""
        worst = max((check.verdict for check in self.checks), key=SEVERITY.index)
        seen = any(check.name == SPOT_CHECK and check.verdict == "fine" for check in self.checks)
        return "read with care" if seen and worst == "do not trust" else worst

    def __str__(self) -> str:
        return "\n".join([f"{self.verdict.capitalize()}: {CONCLUSIONS[self.verdict]}", *map(str, self.checks)])


def graded(figure: float, fine: float, care: float) -> Verdict:
    """Grade a figure: ``"fine"`` up to the first bound, ``"read with care"`` up to the second, else (and for NaN)
    ``"do not trust"``."""
    return "fine" if figure <= fine else "read with care" if figure <= care else "do not trust"


def unknown(name: str, reason: str, advice: str = "") -> Check:
    """A check that could not be made."""
    return Check(name, "not checked", math.nan, reason, advice)
