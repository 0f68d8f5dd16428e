"""What tests of several folders need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The examples are scripts, not a package: their folder goes on the path as it does when one of them is run.
sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder with the real images; without it the test is skipped, and says what is missing."""
    import omniglot_data

    try:
        return omniglot_data.find_data()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def parts(tmp_path: Path) -> list[Any]:
    """Saved studies of two processes of one run, which drew different tasks."""
    from tests.recording.manual import saved

    return [saved(tmp_path / "0", seed=1), saved(tmp_path / "1", seed=2)]


@pytest.fixture(scope="module")
def group_of_one() -> Iterator[None]:
    """The environment that torchrun gives its processes, as if this were the only one."""
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield
