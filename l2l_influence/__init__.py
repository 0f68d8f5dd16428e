"""Influence functions for meta-learning with learn2learn."""

from __future__ import annotations

from l2l_influence._version import __version__

__all__ = ["__version__"]
