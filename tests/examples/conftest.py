"""The examples are scripts, not a package: their folder goes on the path as it does when one of them is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder with the real images; without it the test is skipped, and says what is missing."""
    import omniglot_data

    try:
        return omniglot_data.find_data()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
