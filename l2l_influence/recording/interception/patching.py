"""Replaces methods of classes and functions of modules, and puts back what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any

Function = Callable[..., Any]
Wrapper = Callable[[Any, Function], Function]
"""``wrapper(owner, original)`` gives what takes the place of ``original``, an attribute of ``owner``."""

_MISSING = object()


@dataclass
class Patches:
    """Replacements by ``(owner, name, wrapper)``. If the owner is a class, the same is done to its subclasses' own
    methods of that name, to those of classes made later too.

    A replacement that somebody kept does what the original does once the patches are undone.
    """

    table: tuple[tuple[Any, str, Wrapper], ...]
    active: bool = False
    _done: dict[tuple[Any, str], tuple[Any, Any]] = field(default_factory=dict)

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
        """Put back what was replaced, except where somebody else replaced it again."""
        self.active = False
        for (owner, name), (original, replacement) in self._done.items():
            if vars(owner).get(name) is not replacement:
                continue
            if original is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._done.clear()

    def _replace(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        original = getattr(owner, name)
        wrapped = wrapper(owner, original)

        @wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return (wrapped if self.active else original)(*args, **kwargs)

        self._set(owner, name, replacement)

    def _replace_own(self, subclass: type, name: str, wrapper: Wrapper) -> None:
        if isinstance(vars(subclass).get(name), FunctionType) and (subclass, name) not in self._done:
            self._replace(subclass, name, wrapper)

    def _set(self, owner: Any, name: str, replacement: Any) -> None:
        self._done[owner, name] = vars(owner).get(name, _MISSING), replacement
        setattr(owner, name, replacement)

    def _follow(self, root: Any) -> Any:
        """An ``__init_subclass__`` that patches the classes that are made while it is in place."""

        def follow(subclass: Any, /, **kwargs: Any) -> None:
            super(root, subclass).__init_subclass__(**kwargs)
            for owner, name, wrapper in self.table:
                if owner is root and self.active:
                    self._replace_own(subclass, name, wrapper)

        return classmethod(follow)


def _subclasses(owner: Any) -> Iterator[type]:
    if not isinstance(owner, type):
        return
    subclasses: list[type] = type.__subclasses__(owner)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)
