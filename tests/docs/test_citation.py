"""CITATION.cff says the version that the package has."""

from __future__ import annotations

import re
from pathlib import Path

import l2l_influence


def test_the_version_is_the_package_s() -> None:
    text = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, flags=re.MULTILINE) == [l2l_influence.__version__]
