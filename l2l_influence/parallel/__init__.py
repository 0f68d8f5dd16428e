"""Several processes that share the work of one hook: pass ``group=`` to it, on each of them.

:class:`Ranks` is what the bilevel core asks of them; a hook makes one of the ``torch.distributed`` group that it is
given. ``BilevelProblem(…, ranks=ranks_of(group))`` does the same without learn2learn.
"""

from __future__ import annotations

from .ranks import ALONE, Group, Ranks, ranks_of

__all__ = ["ALONE", "Group", "Ranks", "ranks_of"]
