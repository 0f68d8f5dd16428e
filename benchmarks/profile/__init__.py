"""Where the time and the memory go: ``python -m benchmarks profile [--quick] [--out FILE]``.

:mod:`.stopwatch` times steps; :mod:`.questions` has what ``scale`` measures, :mod:`.contests` what ``peers`` measures,
:mod:`.shared` what ``processes`` measures and :mod:`.memory` what a sketch's peak is made of; :mod:`.run` puts them
together.
"""
