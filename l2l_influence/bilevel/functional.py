"""A user's module as a pure function of its parameters. Only this file calls ``torch.func.functional_call``.

The function runs on a private copy, so that the user's model (parameters, buffers, flags, mode) is never changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as checkpointing
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from ..errors import UncoveredParameterError

BatchNormMode = Literal["batch", "running"]


class FunctionalModule:
    """``model(parameters, *args, **kwargs) -> outputs`` for a private copy of ``module``, with the arguments and
    outputs of its ``forward``.

    Trainable parameters are the argument. Frozen ones (``requires_grad=False``) and buffers stay as they were when the
    copy was made, and each call works on clones of the buffers. Random layers (dropout, DropBlock) are switched off
    with a warning, since a random function has no meaningful derivative. Forward hooks belong to the model and are
    called. Activation checkpoints are ignored: they would compute activations again, in the backward pass, from other
    parameters than those of the call.

    Args:
        module: the user's module, left unchanged.
        batch_norm: ``"batch"`` normalises with the statistics of the present batch (transductive, MAML's convention);
            ``"running"`` with the running statistics.

    Attributes:
        parameters: copies of the trainable parameters, by name.

    Raises:
        UncoveredParameterError: the module is an adapted clone of a learner.
        ValueError: ``batch_norm`` has another value.
    """

    def __init__(self, module: nn.Module, batch_norm: BatchNormMode = "batch") -> None:
        if any(parameter.grad_fn is not None for parameter in module.parameters()):
            raise UncoveredParameterError(
                "the parameters of this model were computed from other parameters, as in an adapted clone: pass the "
                "meta-model (the learner itself, or learner.module)"
            )
        self._names = _sites(module)
        self.parameters = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters() if parameter.requires_grad
        }
        self._module = copy.deepcopy(module).requires_grad_(False)
        _silence_random_layers(self._module)
        _set_batch_norm(self._module, batch_norm)
        self._buffers = dict(self._module.named_buffers())

    def __call__(self, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Outputs of the module with ``parameters`` in place of the copied ones."""
        placed = {name: buffer.clone() for name, buffer in self._buffers.items()}
        placed |= {site: value for name, value in parameters.items() for site in self._names[name]}
        # Tied weights are placed at each of their sites above. With tie_weights=True torch would visit a submodule that
        # is registered twice (as in learn2learn's OmniglotCNN) twice, and restore the wrong tensors.
        with _Replacements(), _without_checkpoints():
            return torch.func.functional_call(self._module, placed, args, kwargs, tie_weights=False)


class FunctionalModel(FunctionalModule):
    """``model(parameters, x) -> outputs`` for a private copy of a module with trainable parameters, whose output is one
    tensor.

    Frozen parameters and buffers stay as they were when the copy was made; random layers are switched off with a
    warning.

    Args:
        module: the user's module, left unchanged.
        batch_norm: ``"batch"`` or ``"running"`` statistics, see :class:`FunctionalModule`.

    Raises:
        UncoveredParameterError: the module has no trainable parameter, or is an adapted clone of a learner.

    >>> import torch
    >>> model = FunctionalModel(torch.nn.Linear(3, 2))
    >>> sorted(model.parameters)
    ['bias', 'weight']
    >>> zeros = {name: torch.zeros_like(value) for name, value in model.parameters.items()}
    >>> model(zeros, torch.ones(4, 3)).sum()
    tensor(0.)
    """

    def __init__(self, module: nn.Module, batch_norm: BatchNormMode = "batch") -> None:
        super().__init__(module, batch_norm)
        if not self.parameters:
            raise UncoveredParameterError(
                "the model has no trainable parameter (requires_grad=True), so no influence on it can be computed"
            )

    def __call__(self, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Outputs, shape ``(n, ...)``, of the module with ``parameters`` in place of the copied ones.

        Raises:
            UncoveredParameterError: the module returns something other than a tensor.
        """
        outputs = super().__call__(parameters, *args, **kwargs)
        if not isinstance(outputs, Tensor):
            raise UncoveredParameterError(
                f"the model must return one tensor, not {type(outputs).__name__}: wrap it in a module whose forward "
                "returns the outputs that the loss uses"
            )
        return outputs


def _sites(module: nn.Module) -> dict[str, list[str]]:
    """For the first name of each parameter, the names of all distinct (submodule, attribute) places that hold it."""
    first_name: dict[int, str] = {}
    sites: dict[str, list[str]] = {}
    for prefix, submodule in module.named_modules(remove_duplicate=True):
        for attribute, parameter in submodule.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            sites.setdefault(first_name.setdefault(id(parameter), name), []).append(name)
    return sites


def _random_layers(module: nn.Module) -> Iterator[nn.Module]:
    for submodule in module.modules():
        if isinstance(submodule, nn.modules.dropout._DropoutNd) and submodule.p > 0:
            yield submodule
        elif type(submodule).__name__ == "DropBlock":
            yield submodule


def _silence_random_layers(module: nn.Module) -> None:
    active = {type(layer).__name__ for layer in _random_layers(module) if layer.training}
    for layer in _random_layers(module):
        layer.eval()
    if active:
        _warn_of_randomness(", ".join(sorted(active)), stacklevel=5)


def _warn_of_randomness(name: str, stacklevel: int) -> None:
    message = f"{name} is switched off while influences are computed: training used it, the analysis does not"
    warnings.warn(message, stacklevel=stacklevel)


class _Replacements(TorchFunctionMode):
    """Switches off dropout that a module calls as a function with its training flag, and recomposes weight
    normalisation.

    The latter is computed from elementary operations because the second derivative of torch's own is silently wrong.
    """

    DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.DROPOUT and kwargs.get("training"):
            if kwargs.get("p", args[1] if len(args) > 1 else None) != 0:
                _warn_of_randomness(func.__name__, stacklevel=3)
            kwargs["training"] = False
        return (_weight_norm if func is torch._weight_norm else func)(*args, **kwargs)


class _PlainCall:
    """Stands for the autograd function of a reentrant checkpoint, and calls the function that it would wrap."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _no_hooks(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands for the generator around a checkpoint that is not reentrant, which installs hooks."""
    yield


CHECKPOINTS = {
    "CheckpointFunction": _PlainCall,
    "_checkpoint_without_reentrant_generator": _no_hooks,
    "_checkpoint_without_reentrant_generator_impl": _no_hooks,
}
"""Replacements in ``torch.utils.checkpoint``, whose names differ between versions of torch."""


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Inside the block, ``torch.utils.checkpoint`` calls functions as they are."""
    originals = {name: vars(checkpointing)[name] for name in CHECKPOINTS if name in vars(checkpointing)}
    vars(checkpointing).update({name: CHECKPOINTS[name] for name in originals})
    try:
        yield
    finally:
        vars(checkpointing).update(originals)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / ‖v‖, with the norm over all dimensions except ``dim`` (over all if −1)."""
    kept = None if dim == -1 else dim % v.dim()
    return v * (g / v.square().sum([i for i in range(v.dim()) if i != kept], keepdim=True).sqrt())


def _set_batch_norm(module: nn.Module, mode: BatchNormMode) -> None:
    if mode not in ("batch", "running"):
        raise ValueError(f'batch_norm must be "batch" or "running", not {mode!r}')
    for layer in module.modules():
        if not isinstance(layer, _NormBase):
            continue
        if mode == "running" and layer.running_mean is not None:
            layer.eval()
            continue
        # Without buffers the layer uses batch statistics in either mode and writes nothing in place,
        # which torch.func would refuse.
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
