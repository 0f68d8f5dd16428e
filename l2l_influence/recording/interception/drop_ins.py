"""Drop-ins for learn2learn's learners that record the tasks they are trained on."""

from __future__ import annotations

from typing import Any

import learn2learn as l2l
from torch import nn

from ..learners.base import rule_of
from . import observe


class Recorded:
    """Goes before a learner of learn2learn's to make a drop-in of it: the recorder is told of each call."""

    def clone(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As learn2learn's; the clone is of the class of this learner."""
        learner: Any = super()
        clone = learner.clone(*args, **kwargs)
        clone.__class__ = type(self)
        _share_the_rest(self, clone)
        observe.cloned(self, clone)
        return clone

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As learn2learn's."""
        learner: Any = super()
        output = learner.forward(*args, **kwargs)
        observe.fed(self, args, kwargs, output)
        return output

    def adapt(self: Any, loss: Any, first_order: bool | None = None, *args: Any, **kwargs: Any) -> None:
        """As learn2learn's."""
        learner: Any = super()
        known = self.first_order if first_order is None else first_order
        with observe.adapting(self, loss, getattr(self, "lr", None), known, rule_of(self)):
            learner.adapt(loss, first_order, *args, **kwargs)


class MAML(Recorded, l2l.algorithms.MAML):
    """learn2learn's ``MAML``, with the same arguments and the same results, to the bit; see `recording_of`.

    Example:
        ``maml = MAML(model, lr=0.5)``, then learn2learn's own loop: ``clone``, ``adapt``, ``backward``.
    """


class MetaSGD(Recorded, l2l.algorithms.MetaSGD):
    """learn2learn's ``MetaSGD``, with the same arguments and the same results, to the bit; see `recording_of`.

    Its learning rates are meta-parameters beside the model's, and influences are on both, under ``inner="unrolled"``.
    The proximal kind takes no steps: with it (and ``proximal=``, a number) influences are on the model's alone.
    """


class GBML(Recorded, l2l.algorithms.GBML):
    """learn2learn's ``GBML``, with the same arguments and the same results, to the bit; see `recording_of`.

    The parameters of its transforms are meta-parameters beside the model's, and influences are on both, under
    ``inner="unrolled"``. The proximal kind takes no steps: with it (and ``proximal=``, a number) influences are on the
    model's alone.
    """


def _share_the_rest(learner: nn.Module, clone: nn.Module) -> None:
    """Give ``clone`` what a subclass added to ``learner``; learn2learn's ``clone`` knows only its own attributes."""
    known = {name for place in _places(clone) for name in place}
    for mine, theirs in zip(_places(clone), _places(learner), strict=True):
        mine.update({name: value for name, value in theirs.items() if name not in known})


def _places(module: nn.Module) -> list[dict[str, Any]]:
    """Where a module keeps its attributes."""
    return [vars(module), *(vars(module)[registry] for registry in ("_parameters", "_buffers", "_modules"))]
