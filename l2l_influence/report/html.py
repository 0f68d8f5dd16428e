"""HTML reports from templates. Pictures are embedded, so a page needs no other file."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIBRARIES = ("torch", "learn2learn", "numpy", "scikit-learn")


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Render ``report/templates/<template>`` with ``values`` and write it to ``path``; returns the path.

    Text is escaped. Templates insert figures with the filter `embed`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("l2l_influence.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = embed
    path = Path(path)
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8")
    return path


def embed(figure: Figure) -> str:
    """The figure as a PNG in a ``data:`` URL."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions to report with a result: this package, Python, and those of ``libraries`` that are installed."""
    found = {"l2l-influence": __version__, "Python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
