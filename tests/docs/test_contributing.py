"""CONTRIBUTING.md names folders, files, registries and commands: all of them must exist."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:l2l_influence|tests|docs|benchmarks|\.ci)/[\w./-]*)`", PAGE)))
ROOMS = re.findall(r"^\| `l2l_influence/(\w+)(?:\.py|/)`", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("path", PATHS)
def test_paths_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", PAGE))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).is_file()


@pytest.mark.parametrize("constant", sorted(set(re.findall(r"`([A-Z]{2,})`", PAGE))))
def test_registries_exist(constant: str) -> None:
    assert any(
        isinstance(node, ast.AnnAssign | ast.Assign) and constant in ast.unparse(node).split("=")[0]
        for path in (ROOT / "l2l_influence").rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


@pytest.mark.parametrize("environment", sorted(set(re.findall(r"tox -e (\w+)", PAGE))))
def test_tox_environments_exist(environment: str) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert f"testenv:{environment}" in tox


def test_every_room_is_named_once() -> None:
    package = ROOT / "l2l_influence"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert folders <= set(ROOMS) and len(ROOMS) == len(set(ROOMS))
