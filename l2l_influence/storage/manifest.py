"""Manifests: the JSON file that says what a folder holds, in which format, written by which version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..errors import InfluenceError
from .atomic import replacing


def versions() -> dict[str, str]:
    """Versions of this package and of torch, as they stand in files."""
    return {"l2l_influence": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class Manifest:
    """One kind of manifest.

    Attributes:
        name: of the file, such as ``"study.json"``.
        holds: what a folder with it holds, in words for error messages.
        format: number of the format that is written.
        missing: error class for a folder without the manifest.
        foreign: error class for a manifest that cannot be read.
        oldest: number of the oldest format that can be read; None for only the current one.
    """

    name: str
    holds: str
    format: int
    missing: type[InfluenceError]
    foreign: type[InfluenceError]
    oldest: int | None = None

    def is_in(self, folder: Path) -> bool:
        """True if the folder has a manifest, readable or not."""
        return (folder / self.name).is_file()

    def write(
        self, folder: Path, contents: Mapping[str, Any], rows: Mapping[str, Iterable[Mapping[str, Any]]] | None = None
    ) -> None:
        """Write format, versions and ``contents``, then ``rows``: long lists, an entry a line.

        Rows are apart because indenting each of their values takes long.
        """
        head = json.dumps({"format": self.format, "versions": versions(), **contents}, indent=1, ensure_ascii=False)
        parts = [head.removesuffix("\n}"), *(_list(name, entries) for name, entries in (rows or {}).items())]
        with replacing(folder / self.name) as new:
            # Half a surrogate pair, as in a file name that is not UTF-8, becomes \udcxx: valid JSON for it.
            new.write_bytes(",\n".join(parts).encode("utf-8", "backslashreplace") + b"\n}\n")

    def read(self, folder: Path) -> dict[str, Any]:
        """All that was written, with ``format`` and ``versions``.

        Raises:
            InfluenceError: of class ``missing`` without a manifest, of class ``foreign`` if it is not one of this kind,
                or of a format that this version cannot read.
        """
        file = folder / self.name
        if not file.is_file():
            raise self.missing(f"{folder} holds no {self.holds}: there is no {self.name} in it")
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not text
            raise self.foreign(
                f"{file} cannot be read ({error}): it was damaged, or belongs to another program"
            ) from error
        if not isinstance(found, dict) or not isinstance(found.get("format"), int):
            raise self.foreign(f"{file} has no format number: it does not belong to a {self.holds}")
        self._require_readable(found, file)
        return found

    def _require_readable(self, found: Mapping[str, Any], file: Path) -> None:
        number, oldest = found["format"], self.format if self.oldest is None else self.oldest
        if oldest <= number <= self.format:
            return
        reads = f"format {oldest}" if oldest == self.format else f"formats {oldest} to {self.format}"
        raise self.foreign(
            f"{file} has format {number} (written with {found.get('versions')}), and l2l_influence {__version__} reads "
            f"{reads}: use {'a newer' if number > self.format else 'an older'} version of l2l_influence"
        )


def _list(name: str, entries: Iterable[Mapping[str, Any]]) -> str:
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f" {json.dumps(name)}: [\n{lines}\n]"
