"""The one place that writes pages: templates filled in, pictures inside, no other file needed."""

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
    """Fill in ``report/templates/<template>`` and write it. Text is escaped; figures come through `embed`."""
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
    """The picture as a ``data:`` address."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions that belong to a result: this package, Python, and the libraries that are installed."""
    found = {"l2l-influence": __version__, "Python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
