"""The command line."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import l2l_influence
from l2l_influence.app.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits_demo.py"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with modules that shall seem not to be installed."""
    real = importlib.util.find_spec

    def hide(*modules: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else real(name))

    return hide


def test_says_how_to_install_what_is_missing(without: Callable[..., None]) -> None:
    without("rich", "sklearn")
    with pytest.raises(SystemExit, match=r"needs rich, scikit-learn.*pip install 'l2l-influence\[demo\]'"):
        main(["demo"])


def test_a_command_needs_only_its_own_packages(without: Callable[..., None], tmp_path: Path) -> None:
    without("rich", "sklearn")
    assert run("run", str(tmp_path / "nothing.py")) == 2, "there is no such script, but no package is missing"
    without("jinja2", "sklearn")
    assert run("demo", "--help") == 0
    with pytest.raises(SystemExit, match=r"l2l-influence run needs jinja2,.*'l2l-influence\[cli,report\]'"):
        main(["run", str(tmp_path / "nothing.py")])


def test_without_typer_it_names_the_extra(without: Callable[..., None]) -> None:
    without("typer")
    with pytest.raises(SystemExit, match=r"l2l-influence needs typer,.*'l2l-influence\[cli\]'"):
        main(["--help"])


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert "demo" in shown and "run" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == l2l_influence.__version__


def test_an_unknown_option_is_an_error() -> None:
    assert run("demo", "--no-such-option") == 2


@pytest.mark.parametrize("script", [False, True])
def test_demo_passes_its_options_on(script: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "l2l_influence.app.demo.run_demo", lambda out, seed, quiet, quick: calls.append((out, seed, quiet, quick))
    )
    options = ["--out", str(tmp_path), "--seed", "5", "--quiet"]
    if script:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        assert not end.value.code
    else:
        assert run("demo", *options) == 0
    assert calls == [(tmp_path, 5, True, False)]
