"""Files, tests, identifiers and formula numbers named in docs/pages/mathematics.md must exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "l2l_influence"
PAGE = (ROOT / "docs" / "pages" / "mathematics.md").read_text(encoding="utf-8")

NUMBER = re.compile(r"\b(Thm|Def\.|Prop\.|Alg\.|Eq\.)\s?(\d+(?:\.\d+)?(?:(?:–|, | and )\d+(?:\.\d+)?)*)")
"""A formula's kind and number; several of one kind share its name: "Eq. 6, 7", "Thm 4.6–4.8"."""


# ---- contents of the page ------------------------------------------------------------------------------------------


def code(text: str) -> list[str]:
    """The text between backticks, outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def is_path(token: str) -> bool:
    return "/" in token


def named_tests(text: str) -> list[tuple[str, str]]:
    """The tests that a text names, as (file, function): "`bilevel/test_x.py` *one thing*, *another thing*"."""
    named = re.findall(r"`([\w/]*/test_\w+\.py)`((?:,? \*[^*\n]+\*)+)", text)
    return [
        (path, "test_" + words.replace(" ", "_"))
        for path, several in named
        for words in re.findall(r"\*(.+?)\*", several)
    ]


def rows(heading: str) -> list[str]:
    """The rows of the table under a heading, without its header."""
    section = re.split(r"^## ", PAGE.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def first(row: str) -> str:
    return row.strip("| ").split(" | ")[0]


def numbers(text: str) -> set[str]:
    """Numbers of the formulas that a text cites. Theorems, definitions and propositions share one numbering."""
    found = set()
    for kind, several in NUMBER.findall(text):
        family = kind if kind in ("Alg.", "Eq.") else "Thm"
        for part in re.split(r", | and ", several):
            found |= {f"{family} {number}" for number in between(part)}
    return found


def between(part: str) -> list[str]:
    """The numbers of a range with both ends, or a single number."""
    if "–" not in part:
        return [part]
    begin, end = part.split("–")
    section, least = begin.split(".")
    return [f"{section}.{i}" for i in range(int(least), int(end.split(".")[1]) + 1)]


# ---- contents of the package ---------------------------------------------------------------------------------------


def locate(path: str) -> Path:
    """The file of a path, which is relative to tests/, to the package, or to the root."""
    return next((base / path for base in (ROOT / "tests", PACKAGE, ROOT) if (base / path).exists()), ROOT / path)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(path: Path) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree(path)) if isinstance(node, documented))


@cache
def words() -> frozenset[str]:
    """Every name that the package defines, and every string constant in it."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


@cache
def members() -> dict[str, frozenset[str]]:
    """The names that each class of the package defines in its body."""
    classes = [
        node for path in PACKAGE.rglob("*.py") for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)
    ]
    return {
        node.name: frozenset(
            getattr(item, "name", None) or getattr(getattr(item, "target", None), "id", "") for item in node.body
        )
        for node in classes
    }


# ---- the page agrees with the package ------------------------------------------------------------------------------

PATHS = sorted({token for token in code(PAGE) if is_path(token)})
NAMES = sorted({token for token in code(PAGE) if not is_path(token)})
INDEX = rows("Index of the paper's formulas")
NEW = rows("Index of what the paper does not have")
ERRATA = rows("Where the paper slips")


@pytest.mark.parametrize("path", PATHS)
def test_files_exist(path):
    assert locate(path).exists()


@pytest.mark.parametrize(("path", "name"), sorted(set(named_tests(PAGE))))
def test_tests_exist(path, name):
    assert name in {getattr(node, "name", None) for node in tree(locate(path)).body}


@pytest.mark.parametrize("token", NAMES)
def test_identifiers_exist(token):
    for owner, attribute in re.findall(r"\b([A-Z]\w*)\.(\w+)", token):
        assert attribute in members()[owner]
    quoted = re.findall(r'"([^"]*)"', token)
    bare = re.findall(r"[A-Za-z][\w+-]*", re.sub(r'"[^"]*"', "", token))
    unknown = [word for word in quoted + bare if word not in words() and word not in ("True", "False", "None")]
    assert not unknown


@pytest.mark.parametrize("row", INDEX, ids=first)
def test_a_formula_is_named_where_the_index_says_it_is_computed(row):
    number = first(row)
    files = [path for path in code(row) if is_path(path) and "/test_" not in path]
    assert numbers(number) and files
    assert numbers(number) <= set().union(*(numbers(docstrings(locate(path))) for path in files))


@pytest.mark.parametrize("row", INDEX + NEW + ERRATA, ids=first)
def test_each_row_names_tests_by_file_and_function(row):
    files = [path for path in code(row) if "/test_" in path]
    assert files and set(files) == {path for path, _ in named_tests(row)}


def test_the_index_holds_every_number_that_the_page_and_the_code_cite():
    indexed = set().union(*(numbers(first(row)) for row in INDEX))
    cited = numbers(PAGE).union(*(numbers(docstrings(path)) for path in PACKAGE.rglob("*.py")))
    assert cited == indexed
