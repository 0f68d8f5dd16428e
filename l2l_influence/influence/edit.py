"""Edited meta-parameters as a state_dict for the user's learner, which is itself never touched."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def edited_state(owner: nn.Module, model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``owner.state_dict()``, copied, with ``parameters`` of ``model`` in place of the same ones of its own.

    A parameter that the state_dict holds under several names (tied weights, a submodule registered twice) is replaced
    under each of them.
    """
    new = {id(parameter): name for name, parameter in model.named_parameters() if name in parameters}
    state = {name: value.detach().clone() for name, value in owner.state_dict().items()}
    for name, parameter in owner.named_parameters(remove_duplicate=False):
        if id(parameter) in new:
            state[name] = parameters[new[id(parameter)]].detach().clone().to(parameter)
    return state
