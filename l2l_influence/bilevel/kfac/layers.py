"""Finds the parameters that are weights of linear maps, and the inputs of these maps.

A torch function mode watches the model run, so that it does not matter how it was built: a module, a functional layer
and a hand-written loss all end in ``F.linear`` or ``F.conv2d``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..layout import Named

Model = Callable[[Named], Tensor]
"""The outputs of one task, ``[n, ...]``, as a function of its named θ."""


class FunctionCall(NamedTuple):
    """A call of a torch function that was not made yet."""

    function: Any
    args: Any
    kwargs: Any

    def made(self) -> Any:
        """The result of making the call."""
        return self.function(*self.args, **self.kwargs)

    def given(self, others: Mapping[int, Tensor]) -> FunctionCall:
        """The call with other tensors in place of those with these ids."""

        def other(part: Any) -> Any:
            return others.get(id(part), part)

        args, kwargs = tree_map(other, (self.args, self.kwargs))
        return FunctionCall(self.function, args, kwargs)


@dataclass(frozen=True)
class Layer:
    """One call of ``F.linear`` or ``F.conv2d``: the same linear map at each of S positions of each sample.

    Attributes:
        weight: name of the weight.
        bias: name of the bias, if it belongs to θ and is used nowhere else.
        inputs: ``[groups, n, S, d]``; each output of a group is a linear function of them.
        shape: shape of the call's output, ``[n, ..., e]`` or ``[n, e, height, width]``.
        channel: position of ``e`` in it, counted from the right.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    shape: torch.Size
    channel: int

    @property
    def names(self) -> list[str]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def rows(self) -> int:
        """How many rows pass through the layer: n·S."""
        return self.inputs.shape[1:3].numel()

    def augmented_inputs(self) -> Tensor:
        """``[a; 1]`` if there is a bias: ``[groups, n, S, d + 1]``."""
        return self.inputs if self.bias is None else F.pad(self.inputs, (0, 1), value=1.0)

    def by_position(self, outputs: Tensor) -> Tensor:
        """Cotangents of the call's output, ``[r, *shape]``, as ``[r, groups, n, S, e]``."""
        groups, n, positions, _ = self.inputs.shape
        last = outputs.movedim(self.channel, -1)
        return last.reshape(len(outputs), n, positions, groups, -1).permute(0, 3, 1, 2, 4)

    def matrix(self, parameters: Named) -> Tensor:
        """``[W, b]`` of each group: ``[groups, e, d]``, or ``[groups, e, d + 1]`` with a bias."""
        columns = parameters[self.weight].flatten(1)
        if self.bias is not None:
            columns = torch.cat([columns, parameters[self.bias].unsqueeze(1)], dim=1)
        return columns.unflatten(0, (len(self.inputs), -1))


def find_layers(model: Model, theta: Named) -> list[Layer]:
    """The layers of θ: each weight that is used in one call of ``F.linear`` or ``F.conv2d``, and nowhere else.

    The samples must lie along the first dimension of that call's input. There are no layers if a parameter is used in a
    way that cannot be seen, such as in TorchScript or as the argument of a transform.
    """
    stand_ins = {name: stand_in(tensor) for name, tensor in theta.items()}
    with _Uses(stand_ins, theta) as uses:
        outputs = model(stand_ins)
    if not bool(outputs.isfinite().all()):
        return []
    layers = (uses.only_layer(name) for name in theta)
    return [layer for layer in layers if layer is not None and layer.inputs.shape[1] == len(outputs)]


def linear_layers(model: Model, theta: Named, n: int, pays: Callable[[int, Tensor], bool]) -> dict[str, Layer]:
    """The linear layers of θ whose weights are worth storing in factors, by the names of the weights.

    Convolutions are not considered: they would have to be unfolded to see their inputs.

    Args:
        model: of n samples.
        theta: θ by name.
        n: the number of samples.
        pays: ``pays(rows, weight)``: whether factors are worth it if so many rows pass through the layer; at least n
            do.
    """
    matrices = {name: tensor for name, tensor in theta.items() if tensor.dim() == 2 and pays(n, tensor)}
    if not matrices:
        return {}
    layers = find_layers(lambda watched: model({**theta, **watched}), matrices)
    return {layer.weight: layer for layer in layers if pays(layer.rows, matrices[layer.weight])}


def stand_in(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that turns every result computed from it into NaN, and takes no memory."""
    return tensor.new_full((), torch.nan).expand(tensor.shape)


class ParameterWatch(TorchFunctionMode):
    """Intercepts each call that is given one of these parameters, as the same tensor objects that the model is
    given."""

    def __init__(self, theta: Named) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in theta.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = FunctionCall(func, args, kwargs or {})
        used = [self.names[id(part)] for part in tensors((args, call.kwargs)) if id(part) in self.names]
        return self.meet(used, call) if used else call.made()

    def meet(self, used: list[str], call: FunctionCall) -> Any:
        """The tensor that the model receives as the result of the call."""
        raise NotImplementedError


class _Uses(ParameterWatch):
    """Records the uses of each parameter, given its stand-in: a layer, or None for any other use."""

    def __init__(self, stand_ins: Named, theta: Named) -> None:
        super().__init__(stand_ins)
        self._values = {id(stand_ins[name]): theta[name] for name in theta}
        self._uses: dict[str, list[Layer | None]] = {name: [] for name in theta}
        self._level = _level()

    def meet(self, used: list[str], call: FunctionCall) -> Any:
        output = call.given(self._values).made()
        if list(tensors(output)):  # reading a shape or a dtype does not use the values
            layer = self._layer(call, output)
            for name in used:
                self._uses[name].append(layer)
        return output

    def only_layer(self, name: str) -> Layer | None:
        """The one call that used the parameter, if it did so as the weight of a layer."""
        layer = self._uses[name][0] if len(self._uses[name]) == 1 else None
        if layer is None or layer.weight != name:
            return None
        shared = layer.bias is not None and len(self._uses[layer.bias]) > 1
        return replace(layer, bias=None) if shared else layer

    def _layer(self, call: FunctionCall, output: Tensor) -> Layer | None:
        """The layer of a call. Inside a transform that the model applies, outputs depend on the weight in other ways as
        well."""
        if call.function not in LAYERS or _level() != self._level:
            return None
        weight, bias, inputs = LAYERS[call.function](*call.args, **call.kwargs)
        name = self.names.get(id(weight))
        if name is None:
            return None
        # Weights are [e, d] or [e, d, height, width], and channels followed by as many dimensions as in the weight.
        return Layer(name, self.names.get(id(bias)), inputs, output.shape, channel=1 - weight.dim())


def _level() -> int | None:
    """The depth of ``torch.func`` transforms at the present call."""
    interpreter = torch._C._functorch.peek_interpreter_stack()
    return None if interpreter is None else interpreter.level()


class ShiftedOutputs(ParameterWatch):
    """Adds a tensor to the result of each call that uses one of these parameters."""

    def __init__(self, theta: Named, shifts: Named) -> None:
        super().__init__({name: theta[name] for name in shifts})
        self._shifts = shifts

    def meet(self, used: list[str], call: FunctionCall) -> Any:
        output = call.made()
        if not isinstance(output, Tensor):
            return output
        (name,) = used
        return output + self._shifts[name]


class Operands(NamedTuple):
    """Operands of a linear call: its weight, its bias, and ``inputs`` as :class:`Layer` has them."""

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operands:
    rows = torch.atleast_2d(input)
    return Operands(weight, bias, rows.reshape(1, len(rows), -1, rows.shape[-1]))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Operands:
    kernel = weight.shape[2:]
    images = input.reshape(-1, *input.shape[-3:])
    padded = F.pad(images, _sides(padding, kernel, _pair(dilation)))
    patches = F.unfold(padded, kernel, dilation=dilation, stride=stride)
    return Operands(weight, bias, patches.unflatten(1, (groups, -1)).permute(1, 0, 3, 2))


def _sides(padding: Any, kernel: torch.Size, dilation: tuple[int, int]) -> list[int]:
    """A convolution's padding as ``F.pad`` takes it: left, right, top, bottom."""
    if padding == "same":
        total = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        pairs = [(width // 2, width - width // 2) for width in total]
    else:
        pairs = [(width, width) for width in _pair(0 if padding == "valid" else padding)]
    return [width for pair in reversed(pairs) for width in pair]


LAYERS: dict[Any, Callable[..., Operands]] = {F.linear: _linear, F.conv2d: _convolution}
"""How to read the operands of each function from its arguments."""


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among the arguments, or results, of a call."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from tensors(branch)
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
