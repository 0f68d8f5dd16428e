"""Several processes that share the work of one hook: pass ``process_group=`` to it, in each of them.

The bilevel core needs only :class:`Ranks`; a hook makes one from the ``torch.distributed`` process group that it is
given. Without learn2learn, pass ``ranks=ranks_of(process_group)`` to ``BilevelProblem``.
"""

from __future__ import annotations

from .ranks import ALONE, DistributedRanks, Ranks, ranks_of

__all__ = ["ALONE", "DistributedRanks", "Ranks", "ranks_of"]
