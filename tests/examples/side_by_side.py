"""Run commands side by side, with learn2learn's own examples on the path."""

from __future__ import annotations

from pathlib import Path

from ..processes import ended, run_python, started

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_both(home: Path, *commands: list[str]) -> list[str]:
    """Output of commands run at the same time, with learn2learn's examples on the path and ``home`` as home folder."""
    original = str(EXAMPLES / "learn2learn")
    files = [(home / f"printed-{number}", home / f"said-{number}") for number in range(len(commands))]
    processes = [
        started(run_python, command, {"HOME": str(home)}, *both, [original])
        for command, both in zip(commands, files, strict=True)
    ]
    status = [ended(process, timeout=300) for process in processes]
    assert status == [0] * len(commands), [said.read_text() for _, said in files]
    return [printed.read_text() for printed, _ in files]
