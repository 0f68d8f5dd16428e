"""Tensor files that are named by their content and never changed, so a name that exists is a whole file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .atomic import TEMPORARY, move_into_place, temporary
from .fingerprints import file_digest

SHARD_BYTES = 2**26

OWN = re.compile(rf"\w+-[0-9a-f]{{32}}\.safetensors|\w+(\.json)?{TEMPORARY}")
"""Names of the files, and the temporary names of these and of a manifest."""

Named = tuple[str, dict[str, Tensor]]
"""The owner of some tensors, and the tensors by their names in the file."""


def write(folder: Path, stem: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a file; returns its name, ``<stem>-<digest>.safetensors``."""
    with temporary(folder / stem) as new:
        save_file({name: _plain(value) for name, value in tensors.items()}, new, metadata)
        name = f"{stem}-{file_digest(new)}.safetensors"
        move_into_place(new, folder / name)
    return name


def write_shards(folder: Path, stem: str, groups: Iterable[Named]) -> dict[str, str]:
    """Write several files of about :data:`SHARD_BYTES`; returns the file name for each owner."""
    return {
        owner: name
        for shard in _shards(groups)
        for name in [write(folder, stem, {key: value for _, found in shard for key, value in found.items()})]
        for owner, _ in shard
    }


def is_whole(path: Path) -> bool:
    """True if the file exists and has the content that its name promises."""
    return path.is_file() and file_digest(path) in path.name


def is_own(path: Path) -> bool:
    """True for a file that :func:`write` wrote or began, and for an unfinished manifest."""
    return OWN.fullmatch(path.name) is not None


def remove(folder: Path, but: Collection[str] = ()) -> None:
    """Remove the files that were written here, except those named in ``but``."""
    for path in folder.iterdir():
        if is_own(path) and path.name not in but:
            path.unlink()


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
    """On the CPU, and with memory of its own, as safetensors requires."""
    return tensor.detach().cpu().clone().contiguous()
