"""A drop-in for learn2learn's MAML that records the tasks it is trained on."""

from __future__ import annotations

from typing import Any

import learn2learn as l2l

from . import observe


class MAML(l2l.algorithms.MAML):
    """learn2learn's ``MAML``, with the same arguments and the same results, to the bit; see `recording_of`.

    Example:
        ``maml = MAML(model, lr=0.5)``, then learn2learn's own loop: ``clone``, ``adapt``, ``backward``.
    """

    def clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> MAML:
        """As learn2learn's; the clone is of the class of this learner."""
        clone: MAML = super().clone(first_order, allow_unused, allow_nograd)
        clone.__class__ = type(self)
        _share_the_rest(self, clone)
        observe.cloned(self, clone)
        return clone

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As learn2learn's."""
        output = super().forward(*args, **kwargs)
        observe.fed(self, args, kwargs, output)
        return output

    def adapt(
        self,
        loss: Any,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """As learn2learn's."""
        with observe.adapting(self, loss, self.lr, self.first_order if first_order is None else first_order):
            super().adapt(loss, first_order, allow_unused, allow_nograd)


def _share_the_rest(learner: MAML, clone: MAML) -> None:
    """Give ``clone`` what a subclass of MAML added to ``learner``; learn2learn's ``clone`` knows only its own."""
    for registry in ("_parameters", "_buffers", "_modules"):
        for name, value in getattr(learner, registry).items():
            getattr(clone, registry).setdefault(name, value)
    for name, value in learner.__dict__.items():
        clone.__dict__.setdefault(name, value)
