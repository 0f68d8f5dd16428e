"""``python -m l2l_influence`` is the command ``l2l-influence``."""

from __future__ import annotations

from .app.cli import main

main()
