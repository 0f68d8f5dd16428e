"""How a dict of named tensors lies in one flat vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ..errors import TaskShapeError

Named = Mapping[str, Tensor]
"""Named tensors, as ``module.named_parameters()`` gives them."""

Vector = Named | Tensor
"""What a public function takes for a vector in parameter space: named tensors, or one flat vector in key order."""


class Layout:
    """Names, shapes and order of the tensors that make up a flat vector of length ``size``."""

    def __init__(self, like: Named) -> None:
        if not like:
            raise TaskShapeError("there are no parameters: pass a non-empty dict of named tensors")
        self.shapes = {key: tuple(value.shape) for key, value in like.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        first = next(iter(like.values()))
        self.dtype, self.device = first.dtype, first.device
        mixed = {str(value.dtype) for value in like.values()} | {str(value.device) for value in like.values()}
        if len(mixed) > 2:
            raise TaskShapeError(f"parameters must share one dtype and one device, but there are {sorted(mixed)}")

    def ravel(self, named: Named) -> Tensor:
        """Flatten ``named`` to shape ``(size,)``; its keys must be this layout's, in any order."""
        if set(named) != set(self.shapes):
            raise TaskShapeError(f"expected the keys {sorted(self.shapes)}, got {sorted(named)}")
        for key, shape in self.shapes.items():
            if tuple(named[key].shape) != shape:
                raise TaskShapeError(f"{key} should have shape {shape}, got {tuple(named[key].shape)}")
        return torch.cat([named[key].reshape(-1) for key in self.shapes])

    def unravel(self, vector: Vector) -> dict[str, Tensor]:
        """Views of a flat vector, shape ``(size,)``, under their names; named tensors as they are."""
        if not isinstance(vector, Tensor):
            return dict(vector)
        parts = vector.split(self.sizes)
        return {key: part.view(shape) for (key, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, vector: Vector) -> Tensor:
        """``vector`` as a detached flat tensor, whether it came as named tensors or flat already."""
        flat = vector if isinstance(vector, Tensor) else self.ravel(vector)
        if flat.shape != (self.size,):
            raise TaskShapeError(f"expected a flat vector of length {self.size}, got shape {tuple(flat.shape)}")
        return flat.detach().to(device=self.device, dtype=self.dtype)

    def like(self, flat: Tensor, vector: Vector) -> Vector:
        """``flat`` in the form in which ``vector`` came."""
        return flat if isinstance(vector, Tensor) else self.unravel(flat)

    def keep(self, keys: Iterable[str]) -> Layout:
        """The layout of a subset of the names, in this layout's order."""
        wanted = set(keys)
        if not wanted or not wanted <= set(self.shapes):
            raise TaskShapeError(f"theta_keys must be some of {sorted(self.shapes)}, got {sorted(wanted)}")
        empty = {
            key: torch.empty(shape, dtype=self.dtype, device="meta")
            for key, shape in self.shapes.items()
            if key in wanted
        }
        kept = Layout(empty)
        kept.device = self.device
        return kept

    def positions(self, part: Layout) -> slice | Tensor:
        """Where the entries of ``part`` (made by :meth:`keep`) lie in this layout's vector."""
        ends = list(accumulate(self.sizes))
        spans = [
            (end - size, end)
            for key, size, end in zip(self.shapes, self.sizes, ends, strict=True)
            if key in part.shapes
        ]
        first, last = spans[0][0], spans[-1][1]
        if last - first == part.size:
            return slice(first, last)
        return torch.cat([torch.arange(*span) for span in spans]).to(self.device)
