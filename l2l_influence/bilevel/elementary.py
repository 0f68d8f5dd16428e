"""Normalisation layers computed by elementary operations, so that they have correct third derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import LossStructureError


class ElementaryNorms(TorchFunctionMode):
    """Inside this context, batch, layer, group, instance and RMS normalisation are means, products and square roots.

    torch's own implementations have no third derivative (batch normalisation in torch 2.14) or a silently wrong one
    (older versions, and layer normalisation), which second derivatives of a total gradient need. A native function that
    is called without going through ``torch.nn.functional`` is refused.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NATIVE:
            raise LossStructureError(
                f"the model calls torch.{func.__name__}, whose third derivative is missing or wrong in torch: call it "
                "through torch.nn.functional or a torch.nn layer, which are recomposed here, or choose a total Hessian "
                "that needs no third derivative ('gauss-newton', 'sketch', 'hessian')"
            )
        return COMPOSED.get(func, func)(*args, **(kwargs or {}))


def _standardise(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    scaled = x if weight is None else x * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


def _along_channels(x: Tensor) -> list[int]:
    """The shape in which one value per channel broadcasts."""
    return [1, -1] + [1] * (x.dim() - 2)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Running statistics are read and never updated."""
    channels = _along_channels(input)
    if training or running_mean is None or running_var is None:
        normal = _standardise(input, [0, *range(2, input.dim())], eps)
    else:
        normal = (input - running_mean.reshape(channels)) / (running_var.reshape(channels) + eps).sqrt()
    return _affine(normal, weight, bias, channels)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _affine(_standardise(input, list(range(2, input.dim())), eps), weight, bias, _along_channels(input))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(
        _standardise(input, list(range(-len(normalized_shape), 0)), eps), weight, bias, list(normalized_shape)
    )


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    grouped = input.reshape(len(input), num_groups, -1)
    return _affine(_standardise(grouped, [2], eps).reshape(input.shape), weight, bias, _along_channels(input))


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    size = (input.square().mean(list(range(-len(normalized_shape), 0)), keepdim=True) + eps).sqrt()
    return _affine(input / size, weight, None, list(normalized_shape))


COMPOSED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
}
"""Replacements by torch function, with the same arguments."""

NATIVE: frozenset[Callable[..., Any]] = frozenset(
    getattr(torch, name)
    for name in (
        "batch_norm",
        "instance_norm",
        "layer_norm",
        "group_norm",
        "rms_norm",
        "native_batch_norm",
        "native_layer_norm",
        "native_group_norm",
    )
)
"""Functions that would bypass the replacements."""
