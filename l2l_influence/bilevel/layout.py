"""Named tensors as one flat vector: layouts of λ and of θ, and where θ starts as a function of λ."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ..errors import TaskShapeError

Named = Mapping[str, Tensor]
"""Named tensors, as ``module.named_parameters()`` gives them."""

Vector = Named | Tensor
"""A vector in parameter space, as public functions take it: named tensors, or one flat tensor in key order."""


class Layout:
    """Names, shapes and order of the tensors that make up a flat vector of length ``size``.

    Args:
        like: named tensors of one dtype on one device; values are ignored.

    Raises:
        TaskShapeError: there are no tensors, or several dtypes or devices.

    >>> import torch
    >>> layout = Layout({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    >>> flat = layout.ravel({"bias": torch.ones(2), "weight": torch.zeros(2, 3)})
    >>> flat
    tensor([0., 0., 0., 0., 0., 0., 1., 1.])
    >>> layout.unravel(flat)["bias"]
    tensor([1., 1.])
    """

    def __init__(self, like: Named) -> None:
        if not like:
            raise TaskShapeError("there are no parameters: pass a non-empty dict of named tensors")
        self.shapes = {key: tuple(value.shape) for key, value in like.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        first = next(iter(like.values()))
        self.dtype, self.device = first.dtype, first.device
        dtypes, devices = ({str(getattr(value, name)) for value in like.values()} for name in ("dtype", "device"))
        if len(dtypes) > 1 or len(devices) > 1:
            found = sorted(dtypes) + sorted(devices)
            raise TaskShapeError(f"parameters must share one dtype and one device, but there are {', '.join(found)}")

    def ravel(self, named: Named) -> Tensor:
        """``named`` as one flat tensor, ``(size,)``. Its keys must be those of this layout, in any order.

        Raises:
            TaskShapeError: a name or a shape is another.
        """
        if set(named) != set(self.shapes):
            raise TaskShapeError(f"the tensors must be named {sorted(self.shapes)}, got {sorted(named)}")
        for key, shape in self.shapes.items():
            if tuple(named[key].shape) != shape:
                raise TaskShapeError(f"{key} must have shape {shape}, got {tuple(named[key].shape)}")
        return torch.cat([named[key].reshape(-1) for key in self.shapes])

    def unravel(self, vector: Vector) -> dict[str, Tensor]:
        """Views of a flat vector, ``(size,)``, by name. Named tensors are returned as they are."""
        if not isinstance(vector, Tensor):
            return dict(vector)
        parts = vector.split(self.sizes)
        return {key: part.view(shape) for (key, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, vector: Vector) -> Tensor:
        """``vector``, named or flat, as one detached flat tensor of this layout's dtype and device.

        Raises:
            TaskShapeError: a name, a shape or the length is another.
        """
        flat = vector if isinstance(vector, Tensor) else self.ravel(vector)
        if flat.shape != (self.size,):
            raise TaskShapeError(f"a flat vector must have shape ({self.size},), got {tuple(flat.shape)}")
        return flat.detach().to(device=self.device, dtype=self.dtype)

    def like(self, flat: Tensor, vector: Vector) -> Vector:
        """``flat`` in the form of ``vector``: named tensors, or as it is."""
        return flat if isinstance(vector, Tensor) else self.unravel(flat)

    def keep(self, keys: Iterable[str]) -> ThetaLayout:
        """The layout of a θ that consists of these entries of λ, this being the layout of λ."""
        return ThetaLayout(self, keys)


class ThetaLayout(Layout):
    """The tensors that a task adapts, and where they start: ``θ_0(λ) = E λ + s``.

    Entries of λ start at λ's own values and come first, in λ's order: E picks them, λ_θ = E λ. Entries that are not in
    λ come after them, and start at the fixed values s whatever λ is (CAVIA's context parameters start at 0), so that E
    has zero rows for them. This is all that inner solutions know of how θ depends on λ before it is adapted.

    Args:
        lam: the layout of λ.
        keys: names of the entries of λ that a task adapts.
        fixed: start values of the adapted entries that are not in λ, by name.

    Attributes:
        from_lam: how many numbers of θ come from λ.

    Raises:
        TaskShapeError: a key is not in λ, a name of ``fixed`` is, or there is nothing to adapt.

    >>> import torch
    >>> lam = Layout({"weight": torch.zeros(2), "bias": torch.zeros(1)})
    >>> theta = ThetaLayout(lam, ["bias"], {"context": torch.zeros(2)})
    >>> theta.start(torch.tensor([1.0, 2.0, 3.0]))
    tensor([3., 0., 0.])
    """

    def __init__(self, lam: Layout, keys: Iterable[str], fixed: Named | None = None) -> None:
        wanted, fixed = set(keys), fixed or {}
        if not wanted <= set(lam.shapes):
            raise TaskShapeError(f"theta_keys must be entries of lam, {sorted(lam.shapes)}, got {sorted(wanted)}")
        if set(fixed) & set(lam.shapes):
            shared = sorted(set(fixed) & set(lam.shapes))
            raise TaskShapeError(f"theta_start must name entries that are not in lam, but lam has {shared} as well")
        if not wanted and not fixed:
            raise TaskShapeError("a task has nothing to adapt: name entries of lam in theta_keys, or give theta_start")
        adapted = {key: shape for key, shape in lam.shapes.items() if key in wanted}
        shapes = adapted | {key: tuple(value.shape) for key, value in fixed.items()}
        super().__init__({key: torch.empty(shape, dtype=lam.dtype, device="meta") for key, shape in shapes.items()})
        self.device = lam.device
        self.from_lam = sum(self.sizes[: len(adapted)])
        self._lam_size, self._adapted = lam.size, list(adapted)
        self._fixed = {key: value.detach().to(device=lam.device, dtype=lam.dtype) for key, value in fixed.items()}
        # Made here, once: what is made inside a transform of torch.func must not outlive it.
        self._positions = _positions(lam, adapted)
        empty = torch.empty(0, dtype=lam.dtype, device=lam.device)
        self._values = torch.cat([empty, *(value.reshape(-1) for value in self._fixed.values())])

    @property
    def adapts_all(self) -> bool:
        """Whether each entry of λ is adapted."""
        return self.from_lam == self._lam_size

    def start(self, lam: Tensor) -> Tensor:
        """θ_0(λ): ``[P] -> [Q]``."""
        return self._with_fixed(lam[self._positions], self._values)

    def start_by_name(self, lam: Named) -> dict[str, Tensor]:
        """θ_0(λ) from λ by name, by name."""
        return {**{key: lam[key] for key in self._adapted}, **self._fixed}

    def jvp(self, v: Tensor) -> Tensor:
        """(dθ_0/dλ) v = E v: ``[B, P] -> [B, Q]``, zero where θ starts at fixed values."""
        return self._with_fixed(v[:, self._positions], torch.zeros_like(self._values).expand(len(v), -1))

    def vjp(self, u: Tensor) -> Tensor:
        """(dθ_0/dλ)ᵀ u = Eᵀ u: ``[B, Q] -> [B, P]``, zero where λ is not adapted."""
        out = u.new_zeros(len(u), self._lam_size)
        out[:, self._positions] = u[:, : self.from_lam]
        return out

    def _with_fixed(self, from_lam: Tensor, fixed: Tensor) -> Tensor:
        return torch.cat([from_lam, fixed], dim=-1) if self._fixed else from_lam


def _positions(layout: Layout, keys: Collection[str]) -> slice | Tensor:
    """Where the entries of these names lie in a layout's flat vector."""
    ends = list(accumulate(layout.sizes))
    spans = [(end - size, end) for key, size, end in zip(layout.shapes, layout.sizes, ends, strict=True) if key in keys]
    if not spans:
        return slice(0, 0)
    first, last = spans[0][0], spans[-1][1]
    if last - first == sum(end - start for start, end in spans):
        return slice(first, last)
    return torch.cat([torch.arange(*span) for span in spans]).to(layout.device)
