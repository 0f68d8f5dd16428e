"""Measurements of this package against plain learn2learn, side by side in one run: ``python -m benchmarks``."""
