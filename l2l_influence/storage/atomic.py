"""Atomic writes: a reader finds the old file or the whole new one, whenever the writer is stopped.

A file is written under a temporary name in the same folder, flushed to the disk, and then renamed. Temporary names are
unique, so two processes may write the same file at once: the last one wins. A process that is killed leaves its
temporary file behind; its name ends in ``.new``, and the owner of the folder removes it (:data:`TEMPORARY`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = r"(\.[0-9a-f]{8})?\.new"
"""Regular expression of what a temporary name adds; earlier versions added ``.new`` alone."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to write; it replaces ``path`` when the block ends, and is removed if the block fails.

    A link is followed. A pipe or a device cannot be replaced and is written to directly.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    with temporary(path) as new:
        yield new
        move_into_place(new, path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A unique name beside ``path``; a file that the block leaves under it is removed."""
    # Not by tempfile, whose files only their owner may read.
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by a file with this text, in UTF-8."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


def move_into_place(new: Path, path: Path) -> None:
    """Rename a written file once all of it is on the disk."""
    _sync(new)
    os.replace(new, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; systems other than POSIX have no such call for folders."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
