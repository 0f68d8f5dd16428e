"""Measurements of this package, side by side with others in one run: ``python -m benchmarks PROGRAM``."""
