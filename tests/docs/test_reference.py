"""The reference shows every public name, and nothing that does not exist."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import l2l_influence

PAGE = (Path(__file__).parents[2] / "docs" / "pages" / "reference.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^::: (\S+)$", PAGE, flags=re.MULTILINE)
PACKAGES = ["l2l_influence", *(f"l2l_influence.{name}" for name in ("bilevel", "evaluation", "influence", "recording"))]


def resolve(path: str) -> object:
    return pkgutil.resolve_name(path)


@pytest.mark.parametrize("path", SHOWN)
def test_what_is_shown_exists(path):
    assert resolve(path) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_shown(package):
    module = importlib.import_module(package)
    shown = [resolve(path) for path in SHOWN]
    names = [name for name in module.__all__ if name != "__version__"]
    missing = [name for name in names if not any(getattr(module, name) is it for it in shown)]
    assert names and not missing


def test_the_paper_s_names_are_told():
    aliases = [
        name for name in l2l_influence.__all__ if getattr(getattr(l2l_influence, name), "__name__", name) != name
    ]
    assert len(aliases) == 4
    for name in aliases:
        assert f"`{name}` is `{getattr(l2l_influence, name).__name__}`" in " ".join(PAGE.split())
