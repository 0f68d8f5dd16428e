"""The outer steps of a run: λ and the optimiser's step size over time."""
