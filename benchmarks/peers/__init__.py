"""This package beside others that do a part of what it does, to the same accuracy: ``python -m benchmarks peers``.

:mod:`.implicit` differentiates minima, :mod:`.unrolled` steps, :mod:`.gauss_newton` inverts inner Gauss–Newton
matrices; :mod:`.contest` measures them in turns, :mod:`.worlds` has the tasks, :mod:`.run` the table.
"""
