"""The Python blocks of README and the pages: they parse, and every name that they import from the package exists."""

from __future__ import annotations

import ast
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
BLOCKS = [
    pytest.param(textwrap.dedent(block), id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^ *```python\n(.*?)^ *```", page.read_text("utf-8"), re.S | re.M))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_imported_names_exist(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("l2l_influence"):
            module = import_module(node.module or "")
            assert not [name.name for name in node.names if not hasattr(module, name.name)]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_hook_is_not_called_a_study(block: str) -> None:
    """The word is for recordings: nothing that a hook's class makes is bound to it."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Assign) and "study" in [ast.unparse(target) for target in node.targets]:
            assert "Influence" not in ast.unparse(node.value)
