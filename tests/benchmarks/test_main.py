"""One command for all measurements."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks

pytestmark = pytest.mark.benchmarks


@pytest.mark.parametrize("name", sorted(benchmarks.PROGRAMS))
def test_the_command_runs_what_it_names(monkeypatch, name) -> None:
    module, function, out = benchmarks.PROGRAMS[name]
    seen = []
    assert callable(getattr(import_module(f"benchmarks.{module}"), function))
    monkeypatch.setattr(f"benchmarks.{module}.{function}", lambda *given: seen.append(given))
    benchmarks.main([name])
    benchmarks.main([name, "--quick", "--out", "x"])
    assert seen == [(False, Path(out)), (True, Path("x"))]


def test_a_program_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["astrology"])
