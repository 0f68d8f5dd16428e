"""Which statistics batch normalisation worked with: those of the rows at hand, or running ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

BatchNorm = Literal["batch", "running", "mixed"]
"""Those of the batch (training mode), running ones (evaluation mode), or not everywhere and always the same."""

Layers = list["weakref.ref[nn.Module]"]


def normalising(modules: Iterable[nn.Module]) -> Layers:
    """The layers whose mode matters, as others have no running statistics. They are not kept alive."""
    layers = [module for module in modules if isinstance(module, _NormBase)]
    return [weakref.ref(layer) for layer in layers if layer._buffers.get("running_mean") is not None]


def statistics(layers: Layers) -> BatchNorm | None:
    """What the layers work with as they are now; None if there are none."""
    alive = (layer() for layer in layers)
    return common("batch" if layer.training else "running" for layer in alive if layer is not None)


def common(found: Iterable[BatchNorm | None]) -> BatchNorm | None:
    """What all work with of which that is known."""
    known = set(found) - {None}
    return "mixed" if len(known) > 1 else next(iter(known), None)
