"""Plots and HTML pages. Imports nothing from the rest of the package except its version."""
