"""Check that optional packages are installed before a command imports them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

MODULES = {"scikit-learn": "sklearn"}
"""Modules of packages that are imported by another name."""


def require(command: str, packages: Iterable[str], extras: str) -> None:
    """Exit with a message that says how to install what is missing.

    Args:
        command: as typed, for the message.
        packages: the optional packages that it imports.
        extras: extras of this package that install them.

    Raises:
        SystemExit: a package is missing.
    """
    missing = [package for package in packages if importlib.util.find_spec(MODULES.get(package, package)) is None]
    if missing:
        sys.exit(
            f"{command} needs {', '.join(missing)}, which a plain installation leaves out. "
            f"To install it, run: pip install 'l2l-influence[{extras}]'"
        )
