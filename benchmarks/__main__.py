"""Measurements of this package, one program each: ``python -m benchmarks PROGRAM [--quick] [--out PATH]``.

``scale``: what scores, removals and memory cost (:mod:`benchmarks.scale`). ``processes``: what a second process saves.
``recording``: what recording costs. ``peers``: the same beside other libraries. ``profile``: where time and memory go
in these (:mod:`benchmarks.profile`). ``estimators``: how faithful the estimators are. ``fidelity --quick | --full
[--only NAME …]``: the same on real data, beside baselines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

PROGRAMS = {
    "scale": ("scale", "scale", "scale.json"),
    "profile": ("profile.run", "run", "profile.json"),
    "processes": ("processes", "processes", "processes.json"),
    "recording": ("recording", "recording", "recording.json"),
    "peers": ("peers.run", "run", "peers.json"),
    "estimators": ("estimators.run", "run", "benchmarks-estimators"),
}
"""Module, function and output of each. Modules are imported when asked for: some need more than others."""


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["fidelity"]:
        from .fidelity.run import main as fidelity  # has options of its own

        fidelity(given[1:])
    else:
        _main(given)


def _main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--quick", action="store_true", help="to see that it runs: few tasks, one turn")
    parser.add_argument("--out", type=Path, help="a file, or for estimators a folder; named after the program")
    options = parser.parse_args(arguments)
    module, name, out = PROGRAMS[options.program]
    program: Callable[[bool, Path], None] = getattr(import_module(f"{__package__}.{module}"), name)
    program(options.quick, options.out or Path(out))


if __name__ == "__main__":
    main()
