"""The tables of the pages are what the programs of ``benchmarks`` make from the rows in ``docs/measured``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes, recording, scale
from benchmarks.estimators.tables import page_tables as estimator_tables
from benchmarks.fidelity.tables import page_tables as fidelity_tables
from benchmarks.peers import run as peers
from benchmarks.profile.run import tables as profile_tables

DOCS = Path(__file__).parents[2] / "docs"

Measured = Mapping[str, Any]
Tables = Callable[[Measured], Iterable[str]]


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "measured" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def of_profile(*parts: str) -> Tables:
    def tables(found: Measured) -> Iterable[str]:
        rows = [{"part": "questions", **row} for row in found["rows"]]  # the first rows had no part
        return [table for part, table in profile_tables(rows).items() if part in parts]

    return tables


SHOWN: dict[str, tuple[str, str, Tables]] = {
    "estimators": ("estimators", "estimators", lambda found: estimator_tables(found).values()),
    "fidelity": ("fidelity", "fidelity", lambda found: fidelity_tables(found).values()),
    "peers": ("peers", "scale", lambda found: [peers.table(found["rows"])]),
    "processes": ("processes", "distributed", lambda found: [processes.measured_table(found["rows"])]),
    "model of processes": ("processes", "distributed", lambda found: [processes.model_table(found["model"])]),
    "profile": ("profile", "scale", of_profile("questions", "contests", "memory")),
    "profile of processes": ("profile", "distributed", of_profile("shared")),
    "recording": ("recording", "recording", lambda found: recording.tables(found["rows"]).split("\n\n")),
    "scale": ("scale", "scale", lambda found: scale.tables(found["rows"]).values()),
}
"""By name: the file of rows, the page, and what makes the tables from the rows."""


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_what_was_measured(name: str) -> None:
    file, page, tables = SHOWN[name]
    text = (DOCS / "pages" / f"{page}.md").read_text(encoding="utf-8")
    shown = list(tables(measured(file)))
    assert shown
    for table in shown:
        assert table in text, f"docs/pages/{page}.md does not show this table:\n{table}"


def test_the_model_of_processes_follows_from_its_rows() -> None:
    found = measured("processes")
    assert found["model"] == processes.model(found["rows"])
