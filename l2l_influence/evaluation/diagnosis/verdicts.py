"""What a diagnosis says: one check after the other, each with a figure, a verdict and what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fine", "not checked", "read with care", "do not trust"]

SEVERITY: tuple[Verdict, ...] = ("fine", "not checked", "read with care", "do not trust")

SPOT_CHECK = "spot-check"

CONCLUSIONS: dict[Verdict, str] = {
    "fine": "scores, their sizes and edits can be taken as predictions of what retraining would do.",
    "not checked": "nothing speaks against the scores, but not everything was looked at.",
    "read with care": "scores are for comparing tasks and samples; check sizes, and edits, by retraining.",
    "do not trust": "take scores for hints of what to look at, and no size or edit from them, before what is marked is "
    "mended.",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the check.
        verdict: ``"fine"``, ``"read with care"``, ``"do not trust"``, or ``"not checked"``.
        figure: what was measured; NaN where nothing was.
        found: the figure in words, with what it is held against.
        advice: what to do about it; nothing where it is fine.
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
    """What a study's numbers can be trusted for; printed, it says so in words.

    Attributes:
        checks: in the order in which things can go wrong.
    """

    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        """The check of that name."""
        return {check.name: check for check in self.checks}[name]

    @property
    def verdict(self) -> Verdict:
        """The worst one; but what a spot-check has found fine is at worst to be read with care: the other checks are
        about reasons why predictions could fail, and it has seen that they do not."""
        worst = max((check.verdict for check in self.checks), key=SEVERITY.index)
        seen = any(check.name == SPOT_CHECK and check.verdict == "fine" for check in self.checks)
        return "read with care" if seen and worst == "do not trust" else worst

    def __str__(self) -> str:
        return "\n".join([f"{self.verdict.capitalize()}: {CONCLUSIONS[self.verdict]}", *map(str, self.checks)])


def graded(figure: float, fine: float, care: float) -> Verdict:
    """By how large a figure is: fine up to the one bound, to be read with care up to the other. NaN is not trusted."""
    return "fine" if figure <= fine else "read with care" if figure <= care else "do not trust"


def unknown(name: str, reason: str, advice: str = "") -> Check:
    """What could not be looked at."""
    return Check(name, "not checked", math.nan, reason, advice)
