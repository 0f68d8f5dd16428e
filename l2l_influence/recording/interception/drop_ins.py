"""`MAML`, `MetaSGD`, `GBML`: drop-ins for learn2learn's learners that record the tasks that they are trained on."""

from __future__ import annotations

from typing import Any

import learn2learn as l2l
from torch import nn

from ..learners.registry import rule_of
from . import observe


class Recorded:
    """Base class to place before a learn2learn learner class; it reports each call to the recorder."""

    def clone(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Clone the learner as learn2learn does, and record the clone. It has the class of this learner."""
        learner: Any = super()
        clone = learner.clone(*args, **kwargs)
        clone.__class__ = type(self)
        _share_the_rest(self, clone)
        observe.cloned(self, clone)
        return clone

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs as learn2learn does, and record the call."""
        learner: Any = super()
        output = learner.forward(*args, **kwargs)
        observe.fed(self, args, kwargs, output)
        return output

    def adapt(self: Any, loss: Any, first_order: bool | None = None, *args: Any, **kwargs: Any) -> None:
        """Take one inner step as learn2learn does, and record it."""
        learner: Any = super()
        known = self.first_order if first_order is None else first_order
        with observe.adapting(self, loss, getattr(self, "lr", None), known, rule_of(self)):
            learner.adapt(loss, first_order, *args, **kwargs)


class MAML(Recorded, l2l.algorithms.MAML):
    """learn2learn's ``MAML``, with the same arguments and bit-identical results; `recording_of` reads its recording.

    Example:
        ``maml = MAML(model, lr=0.5)``, then learn2learn's usual loop: ``clone``, ``adapt``, ``backward``.
    """


class MetaSGD(Recorded, l2l.algorithms.MetaSGD):
    """learn2learn's ``MetaSGD``, with the same arguments and bit-identical results; `recording_of` reads its recording.

    Its learning rates are meta-parameters beside the model's. With ``inner="unrolled"`` influences are on both; with
    ``inner="proximal"`` (and ``proximal=``, a number), which takes no steps, they are on the model's parameters alone.
    """


class GBML(Recorded, l2l.algorithms.GBML):
    """learn2learn's ``GBML``, with the same arguments and bit-identical results; `recording_of` reads its recording.

    The parameters of its transforms are meta-parameters beside the model's. With ``inner="unrolled"`` influences are on
    both; with ``inner="proximal"`` (and ``proximal=``, a number), which takes no steps, they are on the model's
    parameters alone.
    """


def _share_the_rest(learner: nn.Module, clone: nn.Module) -> None:
    """Give ``clone`` the attributes that a subclass added; learn2learn's ``clone`` copies only its own."""
    known = {name for attributes in _attributes(clone) for name in attributes}
    for mine, theirs in zip(_attributes(clone), _attributes(learner), strict=True):
        mine.update({name: value for name, value in theirs.items() if name not in known})


def _attributes(module: nn.Module) -> list[dict[str, Any]]:
    """The dicts in which a module keeps its attributes."""
    return [vars(module), *(vars(module)[registry] for registry in ("_parameters", "_buffers", "_modules"))]
