"""The statistics that batch normalisation used: those of the batch, or running statistics."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

BatchNorm = Literal["batch", "running", "mixed"]
"""Batch statistics (training mode), running statistics (evaluation mode), or a mixture over layers or calls."""

Layers = list["weakref.ref[nn.Module]"]


def normalising(modules: Iterable[nn.Module]) -> Layers:
    """Weak references to the layers with running statistics; the mode of other layers does not matter."""
    layers = [module for module in modules if isinstance(module, _NormBase)]
    return [weakref.ref(layer) for layer in layers if layer._buffers.get("running_mean") is not None]


def statistics(layers: Layers) -> BatchNorm | None:
    """The statistics that the layers use in their present mode; None if there are no layers."""
    alive = (layer() for layer in layers)
    return common("batch" if layer.training else "running" for layer in alive if layer is not None)


def common(found: Iterable[BatchNorm | None]) -> BatchNorm | None:
    """The statistics that all agree on, ignoring None; ``"mixed"`` if they differ."""
    known = set(found) - {None}
    return "mixed" if len(known) > 1 else next(iter(known), None)
