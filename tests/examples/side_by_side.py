"""Run commands side by side, with learn2learn's own examples on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_both(home: Path, *commands: list[str]) -> list[str]:
    """Output of commands run at the same time, with learn2learn's examples on the path and ``home`` as home folder."""
    original = str(EXAMPLES / "learn2learn")
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join([original, *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(commands), ended
    return [out for out, _ in ended]
