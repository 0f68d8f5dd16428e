"""The shape of the package: direction of imports, size of folders, names, state, docstrings. Read from its source."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import l2l_influence

PACKAGE = "l2l_influence"
ROOT = Path(__file__).parents[1] / PACKAGE

ROOMS = (
    "errors", "parallel", "report", "storage", "bilevel", "recording", "analysis", "evaluation", "hooks", "app",
)  # fmt: skip
"""Top-level modules and folders; each may import those that stand before it, also where only a type is needed."""

ENTRIES = {"__init__": "app", "__main__": "app", "lightning": "recording"}
"""Top-level modules that no room imports, and the last room that each may import."""

PUBLIC = {"__init__": ENTRIES, "app": l2l_influence.__all__}
"""What else two of them may import: the package itself its entries, and the applications what users import."""

MOST_FILES = 15

WEAK_DIRECTORY = ("recording/directory.py", "directory")
"""The one mutable object of a module in recording/: weak references from users' objects to their recordings."""

IMMUTABLE = {
    "ContextVar", "MappingProxyType", "NewType", "ParamSpec", "Path", "TypeVar", "attrgetter", "bool", "bytes", "cast",
    "field", "float", "frozenset", "getattr", "int", "itemgetter", "len", "logging.getLogger", "max", "min", "object",
    "range", "re.compile", "str", "tuple", "type", "weakref.ref",
}  # fmt: skip
"""Calls whose value cannot change, or may (a logger, a context variable)."""

MUTATORS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
    "setdefault", "sort", "update",
}  # fmt: skip


class Module(NamedTuple):
    """A source file of the package: its path from the package's folder, and its syntax tree."""

    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.path.parts[0].removesuffix(".py")

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.path.parts if part != "__init__.py")

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{PACKAGE}/{self.path.as_posix()}:{node.lineno}"


def read(sources: Mapping[str, str]) -> list[Module]:
    return [Module(Path(path), ast.parse(source)) for path, source in sorted(sources.items())]


@cache
def modules() -> list[Module]:
    return read({file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in ROOT.rglob("*.py")})


# ---- direction of imports -----------------------------------------------------------------------------------------


def imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of the package, wherever it stands, and the name after ``l2l_influence.``: a room, or something."""
    package = [PACKAGE, *module.path.parts[:-1]]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == PACKAGE:
                yield node, rest.partition(".")[0] or "__init__"


def upward_imports(found: Iterable[Module]) -> list[str]:
    wrong = []
    for module in found:
        last = ENTRIES.get(module.room, module.room)
        allowed = ROOMS[: ROOMS.index(last) + 1] if last in ROOMS else ()
        for node, target in imports(module):
            if target == "_version" or target in allowed or target in PUBLIC.get(module.room, ()):
                continue
            place = f"{module.at(node)}: {module.room} imports {target}"
            if target in ROOMS:
                advice = f"only {', '.join(allowed) or 'nothing'} may be imported here: move what is shared down"
            else:
                advice = "import from the room that defines it"
            wrong.append(f"{place}; {advice}")
    return list(dict.fromkeys(wrong))


def test_imports_point_to_rooms_earlier_in_the_list() -> None:
    wrong = upward_imports(modules())
    assert not wrong, "\n".join(wrong)


def test_errors_imports_nothing_of_the_package() -> None:
    (errors,) = (module for module in modules() if module.path == Path("errors.py"))
    wrong = [
        f"{errors.at(node)}: errors imports {target}; it has to import nothing" for node, target in imports(errors)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("storage/files.py", "from ..recording.options import MIB"),
        ("storage/files.py", "from .. import recording"),
        ("storage/inner/files.py", "from ... import evaluation"),
        ("storage/__init__.py", "from ..bilevel import Task"),
        ("bilevel/task.py", "import l2l_influence.analysis.run"),
        ("bilevel/task.py", "from l2l_influence import Study"),
        ("report/plots.py", "if TYPE_CHECKING:\n    from l2l_influence.analysis import results"),
        ("hooks.py", "def run():\n    from .app import cli"),
        ("lightning.py", "from .analysis import run"),
        ("recording/study.py", "from .. import lightning"),
        ("errors.py", "from .parallel import Ranks"),
        ("attic/old.py", "from ..errors import InfluenceError"),
    ],
)
def test_an_upward_import_is_found(path: str, line: str) -> None:
    (wrong,) = upward_imports(read({path: line}))
    assert wrong.startswith(
        f"{PACKAGE}/{path}:{1 + line.count(chr(10))}: {Path(path).parts[0].removesuffix('.py')} imp"
    )


def test_other_imports_are_allowed() -> None:
    lines = {
        "storage/files.py": "import torch\nfrom .._version import __version__\nfrom ..errors import InfluenceError",
        "hooks.py": "from .analysis.run import Run",
        "lightning.py": "from .recording import record",
        "__init__.py": "from . import lightning\nfrom .hooks import TaskInfluence",
        "app/cli.py": "from l2l_influence import TaskInfluence\nfrom l2l_influence.app.commands import run",
    }
    assert not upward_imports(read(lines))


# ---- folders and names --------------------------------------------------------------------------------------------


def test_folders_are_small() -> None:
    sizes: dict[Path, int] = defaultdict(int)
    for module in modules():
        sizes[module.path.parent] += 1
    wrong = [
        f"{PACKAGE}/{folder.as_posix()}:1: {size} files are more than {MOST_FILES}; give one idea of it its own folder"
        for folder, size in sizes.items()
        if size > MOST_FILES
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_public_classes_have_the_same_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for node in module.tree.body:
            if module.is_public and isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module.at(node))
    wrong = [
        f"{', '.join(found)}: {name} stands {len(found)} times; rename all but one, or make it private"
        for name, found in places.items()
        if len(found) > 1
    ]
    assert not wrong, "\n".join(wrong)


# ---- state --------------------------------------------------------------------------------------------------------


def assignments(body: Iterable[ast.stmt]) -> Iterator[tuple[ast.stmt, str, ast.expr]]:
    """Names that a module or its classes bind when it is imported."""
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield node, ast.unparse(target), node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node, ast.unparse(node.target), node.value
        elif isinstance(node, (ast.ClassDef, ast.If, ast.For, ast.While, ast.With, ast.Try)):
            parts = (getattr(node, name, []) for name in ("body", "orelse", "finalbody"))
            handlers = (handler.body for handler in getattr(node, "handlers", []))
            yield from assignments(statement for part in (*parts, *handlers) for statement in part)


def frozen_classes(found: Iterable[Module]) -> set[str]:
    """Frozen dataclasses, named tuples and enumerations."""
    classes = [node for module in found for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    return {
        node.name
        for node in classes
        if any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)
        or any(ast.unparse(base).endswith(("NamedTuple", "Enum")) for base in node.bases)
    }


def mutated_names(found: Iterable[Module]) -> set[str]:
    """Names ``x`` that occur in ``x.append(…)``, ``x[…] = …``, ``del x[…]`` or ``x += …``."""
    names = set()
    for node in (node for module in found for node in ast.walk(module.tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            names.add(_last(node.func.value))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            names.add(_last(node.value))
        elif isinstance(node, ast.AugAssign):
            names.add(_last(node.target))
    return names


def _last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def can_change(name: str, value: ast.expr, frozen: set[str]) -> bool:
    """True unless it is plain to see that the value cannot change, or that nobody is meant to change it."""
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) not in IMMUTABLE and _last(value.func) not in IMMUTABLE | frozen
    if isinstance(value, (ast.Dict, ast.Set, ast.DictComp, ast.SetComp)):
        return not name.isupper()
    if isinstance(value, (ast.List, ast.ListComp, ast.GeneratorExp)):
        return name != "__all__"
    if isinstance(value, (ast.Tuple, ast.BinOp, ast.BoolOp, ast.IfExp)):
        return any(can_change(name, child, frozen) for child in ast.iter_child_nodes(value) if _is_value(child))
    return False


def _is_value(node: ast.AST) -> bool:
    return isinstance(node, ast.expr)


def module_state(found: list[Module], frozen: set[str], mutated: set[str]) -> list[str]:
    wrong = []
    for module in found:
        for node, name, value in assignments(module.tree.body):
            if (module.path.as_posix(), name) != WEAK_DIRECTORY and (
                can_change(name, value, frozen) or (name.isupper() and name in mutated)
            ):
                wrong.append(
                    f"{module.at(node)}: {name} is mutable state of a module; let an object that somebody made own it, "
                    "or make it a constant: a tuple, or an ALL_CAPS mapping that nothing changes"
                )
        for statement in ast.walk(module.tree):
            if isinstance(statement, ast.Global):
                names = ", ".join(statement.names)
                wrong.append(f"{module.at(statement)}: `global {names}`; let an object that somebody made own it")
    return wrong


def test_recording_has_no_mutable_state_in_modules() -> None:
    recording = [module for module in modules() if module.room == "recording"]
    wrong = module_state(recording, frozen_classes(modules()), mutated_names(modules()))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "seen = {}", "seen: dict[int, int] = {}", "SEEN = []", "names = [n for n in 'ab']", "board = Board()",
        "SEEN = {}\nSEEN[1] = 2", "SEEN = {}\ndef f():\n    SEEN.update(a=1)", "SEEN = set()",
        "SEEN = {1}\nSEEN |= {2}",
        "COUNT = 0\ndef f():\n    global COUNT\n    COUNT = 1", "if True:\n    seen = {}", "class A:\n    known = {}",
        "BOTH = (1, [])", "KNOWN = WeakKeyDictionary()",
    ],
)  # fmt: skip
def test_mutable_state_is_found(line: str) -> None:
    found = read({"recording/board.py": line})
    assert module_state(found, set(), mutated_names(found))


@pytest.mark.parametrize(
    "line",
    [
        "SIZE = 2**20", "NAMES = ('a', 'b')", "KINDS = {'a': 1}", "_OLD = {'a', 'b'}", "__all__ = ['a']",
        "Pair = tuple[int, int]", "_MISSING = object()", "logger = logging.getLogger('x')", "STEP = ContextVar('step')",
        "NONE = Nothing()", "def f():\n    seen = {}\n    seen[1] = 2", "Setting = bool | int | None",
        "TABLE = (*((name, wrapped(name)) for name in 'ab'), ('c', 1))",
        "@dataclass\nclass A:\n    names: list[str] = field(default_factory=list)",
    ],
)  # fmt: skip
def test_constants_are_allowed(line: str) -> None:
    found = read({"recording/board.py": line})
    assert not module_state(found, {"Nothing"}, mutated_names(found))


# ---- docstrings ---------------------------------------------------------------------------------------------------


def test_every_folder_says_what_it_is() -> None:
    rooms = {module.path.parent: module for module in modules() if module.path.name == "__init__.py"}
    wrong = [
        f"{PACKAGE}/{folder.as_posix()}/__init__.py:1: has to begin with a sentence that says what this is"
        for folder in {module.path.parent for module in modules()}
        if folder not in rooms or not _begins_with_a_sentence(ast.get_docstring(rooms[folder].tree))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(set(l2l_influence.__all__) - {"__version__"}))
def test_every_public_name_has_a_docstring(name: str) -> None:
    value = getattr(l2l_influence, name)
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    generated = f"{getattr(value, '__name__', name)}("  # what a dataclass without a docstring gets
    assert own and not own.startswith(generated), f"{name} needs a docstring of its own: it is in {PACKAGE}.__all__"
    assert _begins_with_a_sentence(own), f"the docstring of {name} has to begin with a sentence"


def _begins_with_a_sentence(docstring: str | None) -> bool:
    return inspect.cleandoc(docstring or "").partition("\n\n")[0].endswith((".", ":"))
