"""Estimators of the influence of items, one file each."""
