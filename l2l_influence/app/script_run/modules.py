"""Look up names in modules without running any of their code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path


def find_source(module: str, path: Sequence[str]) -> Path | None:
    """The source file of a module, or None if there is none.

    Args:
        module: its name, with dots for modules of packages.
        path: folders to search.
    """
    folders: Sequence[str] = path
    parts = module.split(".")
    for count in range(1, len(parts)):
        package = PathFinder.find_spec(".".join(parts[:count]), list(folders))
        if package is None or package.submodule_search_locations is None:
            return None
        folders = list(package.submodule_search_locations)
    found = PathFinder.find_spec(module, list(folders))
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def top_level_names(source: Path) -> frozenset[str] | None:
    """Names that a module binds when it is imported; None if its source does not tell, as with ``import *``."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names = frozenset(_bound(tree.body))
    return None if names & {"*", "__getattr__"} else names


def _bound(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
            yield from (name for each in ast.walk(node) if isinstance(each, ast.Global) for name in each.names)
            continue
        if isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        yield from _bound(list(ast.iter_child_nodes(node)))
