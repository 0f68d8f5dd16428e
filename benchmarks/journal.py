"""What was measured, on disk: rows as they come, and one JSON file at the end."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import scipy
import sklearn
import torch

import l2l_influence

Row = dict[str, Any]


class Journal:
    """Rows on disk, a unit of work at a time, so that a run that was cut off goes on where it was.

    Args:
        path: the file.
        settings: what the rows were measured with.
        unit: the columns that name a unit; all rows of one are added together.

    Raises:
        SystemExit: the file holds rows of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], unit: Sequence[str]) -> None:
        self._path, self.settings, self._unit = path, settings, tuple(unit)
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        first, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if first != json.loads(json.dumps(settings)):
            raise SystemExit(f"{path} was measured with other settings or versions: remove it, or pass another --out")
        self.rows: list[Row] = [row for unit_rows in rest for row in unit_rows]

    def has(self, *unit: Any) -> bool:
        return any(tuple(row.get(name) for name in self._unit) == unit for row in self.rows)

    def add(self, rows: list[Row]) -> None:
        rounded = [_rounded(row) for row in rows]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        self.rows += rounded


def as_json(measured: dict[str, Any]) -> str:
    """One row a line."""
    head = json.dumps({key: value for key, value in measured.items() if key != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in measured["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'


def settings(command: str, size: dict[str, Any]) -> dict[str, Any]:
    """What rows are measured with: the command, its sizes, versions, the machine."""
    return {
        "command": command,
        "size": size,
        "versions": {
            "l2l_influence": l2l_influence.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }


def _rounded(value: Any) -> Any:
    """To four significant digits, all the way down."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
