"""The reference shows every public name by the path that users import, and nothing internal."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import l2l_influence
from l2l_influence import errors

PAGE = (Path(__file__).parents[2] / "docs" / "pages" / "reference.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^::: (\S+)$", PAGE, flags=re.MULTILINE)
COMPLETE = ["l2l_influence", *(f"l2l_influence.{name}" for name in ("bilevel", "evaluation", "recording"))]
"""All names of these modules are shown."""

PUBLIC = [*COMPLETE, "l2l_influence.lightning", "l2l_influence.parallel"]
"""Users import from these modules, and from no others."""


def resolve(path: str) -> object:
    return pkgutil.resolve_name(path)


def shown() -> list[object]:
    """Every object of the page, with the errors that their module's entry shows."""
    found = [resolve(path) for path in SHOWN]
    return [*found, *(vars(errors).values() if errors in found else ())]


def names(module: str) -> list[str]:
    return [name for name in importlib.import_module(module).__all__ if name != "__version__"]


@pytest.mark.parametrize("path", SHOWN)
def test_what_is_shown_exists(path):
    assert resolve(path) is not None


@pytest.mark.parametrize("path", [path for path in SHOWN if path != errors.__name__])
def test_what_is_shown_is_public(path):
    module, _, name = path.rpartition(".")
    assert module in PUBLIC and name in names(module)


@pytest.mark.parametrize("path", SHOWN)
def test_what_the_root_exports_is_shown_by_the_root_s_name(path):
    exported = [name for name in names("l2l_influence") if getattr(l2l_influence, name) is resolve(path)]
    assert not exported or path in [f"l2l_influence.{name}" for name in exported]


@pytest.mark.parametrize("module", COMPLETE)
def test_every_public_name_is_shown(module):
    found = shown()
    missing = [name for name in names(module) if not any(resolve(f"{module}.{name}") is it for it in found)]
    assert names(module) and not missing


def test_nothing_is_shown_twice():
    assert len(SHOWN) == len(set(SHOWN))


def test_every_error_can_be_imported_from_the_root():
    found = [name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__]
    assert found and set(found) <= set(l2l_influence.__all__)


def test_the_names_of_estimators_are_those_of_the_registry():
    from l2l_influence.analysis.estimators import ESTIMATORS

    told = dict(re.findall(r'^\| `"([\w-]+)"` \| `(\w+)` \|$', PAGE, flags=re.MULTILINE))
    assert told == {name: kind.__name__ for name, kind in ESTIMATORS.items()}


@pytest.mark.parametrize("group", ["problem", "the estimator `Implicit`", "`Resources`"])
def test_the_tables_of_settings_hold_all_of_them_with_their_defaults(group):
    from l2l_influence.analysis.problem.options import ProblemOptions

    kind = {"problem": ProblemOptions, "`Resources`": l2l_influence.Resources}.get(group, l2l_influence.Implicit)
    table = re.split(rf"^\| setting of (?:the )?{group} .*\n.*\n", PAGE, flags=re.MULTILINE)[1].split("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, flags=re.MULTILINE))
    assert told.keys() == {field.name for field in dataclasses.fields(kind)}
    literal = {name: default.strip("`") for name, default in told.items() if default.startswith("`")}
    defaults = {field.name: str(field.default) for field in dataclasses.fields(kind)}
    assert all(value.strip('"') == defaults[name] for name, value in literal.items())


def test_the_paper_s_names_are_told():
    aliases = [
        name for name in l2l_influence.__all__ if getattr(getattr(l2l_influence, name), "__name__", name) != name
    ]
    assert len(aliases) == 4
    for name in aliases:
        assert f"`{name}` is `{getattr(l2l_influence, name).__name__}`" in " ".join(PAGE.split())
