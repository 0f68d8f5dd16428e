"""`Patches`: replaces methods of classes and functions of modules, and restores the originals."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from types import FunctionType
from typing import Any

Function = Callable[..., Any]
Wrapper = Callable[[Any, Function], Function]
"""``wrapper(owner, original)`` returns the function that replaces ``original``, an attribute of ``owner``."""

_MISSING = object()
_MARK = "_l2l_influence_patch"
"""Attribute of a replacement: itself, the patches that made it, and what it replaced."""


class Patches:
    """Replacements by ``(owner, name, wrapper)``. If the owner is a class, methods of that name in its subclasses are
    replaced too, also in classes that are defined later.

    Several `Patches` may be applied at once: each wraps what it finds. They may be undone in any order. A replacement
    that is still wrapped by another, or that other code refers to, calls the original once its patches are undone, and
    is removed with the last replacement around it.

    Args:
        table: the replacements.
        hears: whether a call is to go through the wrapper; otherwise it goes to the original directly.
    """

    def __init__(self, table: tuple[tuple[Any, str, Wrapper], ...], hears: Callable[[], bool]) -> None:
        self.table, self.active = table, False
        self._hears = hears
        self._done: dict[tuple[Any, str], Any] = {}

    def apply(self) -> None:
        """Replace everything in the table."""
        self.active = True
        for owner, name, wrapper in self.table:
            if hasattr(owner, name):
                self._replace(owner, name, wrapper)
            for subclass in _subclasses(owner):
                self._replace_own(subclass, name, wrapper)
        for root in {owner: None for owner, _, _ in self.table if isinstance(owner, type)}:
            self._set(root, "__init_subclass__", self._follow(root))

    def undo(self) -> None:
        """Restore what was replaced, except where other code has replaced it again."""
        self.active = False
        for (owner, name), replacement in self._done.items():
            if vars(owner).get(name) is replacement:
                _restore(owner, name)
        self._done.clear()

    def _replace(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        original = getattr(owner, name)
        wrapped = wrapper(owner, original)

        @wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return (wrapped if self.active and self._hears() else original)(*args, **kwargs)

        self._set(owner, name, replacement)

    def _replace_own(self, subclass: type, name: str, wrapper: Wrapper) -> None:
        if isinstance(vars(subclass).get(name), FunctionType) and (subclass, name) not in self._done:
            self._replace(subclass, name, wrapper)

    def _set(self, owner: Any, name: str, replacement: Any) -> None:
        function = _function(replacement)
        setattr(function, _MARK, (weakref.ref(function), self, vars(owner).get(name, _MISSING)))
        self._done[owner, name] = replacement
        setattr(owner, name, replacement)

    def _follow(self, root: Any) -> Any:
        """An ``__init_subclass__`` that patches the classes that are defined while it is in place."""
        before = vars(root).get("__init_subclass__", _MISSING)

        def follow(subclass: Any, /, **kwargs: Any) -> None:
            if before is _MISSING:
                super(root, subclass).__init_subclass__(**kwargs)
            else:
                before.__get__(None, subclass)(**kwargs)
            for owner, name, wrapper in self.table:
                if owner is root and self.active:
                    self._replace_own(subclass, name, wrapper)

        return classmethod(follow)


def _restore(owner: Any, name: str) -> None:
    """Put back the attribute below all replacements that are no longer active."""
    found = vars(owner)[name]
    while (mark := _mark(found)) is not None and not mark[0].active:
        found = mark[1]
    if found is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, found)


def _mark(attribute: Any) -> tuple[Patches, Any] | None:
    """The patches that made a replacement, and what it replaced; None for any other attribute."""
    function = _function(attribute)
    mark: tuple[Callable[[], Any], Patches, Any] | None = getattr(function, _MARK, None)
    if mark is None or mark[0]() is not function:  # functools.wraps copies the mark to other functions
        return None
    return mark[1:]


def _function(attribute: Any) -> Any:
    """The function inside a class method."""
    return getattr(attribute, "__func__", attribute)


def _subclasses(owner: Any) -> Iterator[type]:
    if not isinstance(owner, type):
        return
    subclasses: list[type] = type.__subclasses__(owner)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)
