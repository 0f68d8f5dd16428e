"""All profiles, their rows and their tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..journal import Journal, Row, as_json, settings
from ..markdown import Table, markdown
from ..plain import MODELS
from . import contests, memory, questions, shared
from .size import FULL, QUICK, Size

COMMAND = "python -m benchmarks profile"

PARTS: dict[str, Callable[[str, Size], Iterator[Row]]] = {
    "questions": questions.rows,
    "contests": contests.rows,
    "shared": shared.rows,
    "memory": memory.rows,
}

TABLES: dict[str, Callable[[list[Row]], Table]] = {
    "questions": questions.table,
    "contests": contests.table,
    "shared": shared.table,
    "memory": memory.table,
}


def tables(rows: list[Row]) -> dict[str, str]:
    """By part, as the pages show them."""
    found = {name: [row for row in rows if row["part"] == name] for name in TABLES}
    return {name: markdown(table(found[name])) for name, table in TABLES.items() if found[name]}


def run(quick: bool, out: Path) -> None:
    """Profile what is not in ``out`` with another ending, ``.jsonl``, yet; print the tables and write the rows."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of what torch itself calls deprecated
    size = QUICK if quick else FULL
    journal = Journal(out.with_suffix(".jsonl"), settings(COMMAND, vars(size)), ("part", "model"))
    for name, part in PARTS.items():
        for model in MODELS:
            if not journal.has(name, model):
                found = tqdm(part(model, size), desc=f"{model}, {name}", unit="row", disable=None)
                journal.add([{"part": name, **row} for row in found])
    out.write_text(as_json({**journal.settings, "rows": journal.rows}), encoding="utf-8")
    print("\n\n".join(tables(journal.rows).values()))
