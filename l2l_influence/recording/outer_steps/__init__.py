"""The outer steps of a run: λ_t, and the optimiser that moved it.

``base.py`` is the interface; each way to record a run's steps is one more file, such as ``checkpoints.py``.
"""
