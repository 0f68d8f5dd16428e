"""Tensor files that are named by their content, never changed, and on the disk when their name is there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..recording.options import MIB

SHARD_BYTES = 64 * MIB

OWN = re.compile(r"\w+-[0-9a-f]{32}\.safetensors|\w+(\.json)?\.new")
"""Names of the files, and of those that are being written."""

Named = tuple[str, dict[str, Tensor]]
"""What some tensors belong to, and the tensors by the names that they have in a file."""


def write(folder: Path, stem: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a file; returns its name, which holds its digest."""
    new = folder / f"{stem}.new"
    save_file({name: _plain(value) for name, value in tensors.items()}, new, metadata)
    name = f"{stem}-{digest(new)}.safetensors"
    move_into_place(new, folder / name)
    return name


def write_shards(folder: Path, stem: str, groups: Iterable[Named]) -> dict[str, str]:
    """Write several files of about :data:`SHARD_BYTES`; returns the file of each group."""
    return {
        owner: name
        for shard in _shards(groups)
        for name in [write(folder, stem, {key: value for _, found in shard for key, value in found.items()})]
        for owner, _ in shard
    }


def is_whole(path: Path) -> bool:
    """Whether a file is there, and as it was written."""
    return path.is_file() and digest(path) in path.name


def digest(path: Path) -> str:
    """Of all that a file holds, 32 hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            found.update(block)
    return found.hexdigest()[:32]


def is_own(path: Path) -> bool:
    """Whether it is a file that was written here, or begun."""
    return OWN.fullmatch(path.name) is not None


def remove(folder: Path, but: Collection[str] = ()) -> None:
    """Take away the files that were written here, save those named in ``but``."""
    for path in folder.iterdir():
        if is_own(path) and path.name not in but:
            path.unlink()


def move_into_place(new: Path, path: Path) -> None:
    """Give a written file the name under which it is looked for, not before all of it is on the disk."""
    _sync(new)
    os.replace(new, path)
    _sync(path.parent)


def _shards(groups: Iterable[Named]) -> Iterator[list[Named]]:
    shard: list[Named] = []
    size = 0
    for group in groups:
        shard.append(group)
        size += sum(value.nbytes for value in group[1].values())
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, and with memory of its own, as safetensors wants it."""
    return tensor.detach().cpu().clone().contiguous()


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, outlast a power cut; where the system has no such call, it may not."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
