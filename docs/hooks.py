"""Shows Sphinx roles in docstrings, as :class:`~package.Name`, by the name alone: editors know them, MkDocs not."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|data):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs calls this with each page's HTML."""
    return ROLE.sub(r"<code>\1</code>", html)
