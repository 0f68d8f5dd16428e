"""Edited meta-parameters as a state_dict for the user's learner, which itself is never changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def edited_state(
    owner: nn.Module, parameters: Mapping[str, nn.Parameter], edited: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A copy of ``owner.state_dict()`` with ``edited`` in place of those of its ``parameters`` that have these names.

    A parameter that the state_dict holds under several names (tied weights, a submodule registered twice) is replaced
    under each of them.
    """
    new = {id(parameters[name]): value for name, value in edited.items()}
    state = {name: value.detach().clone() for name, value in owner.state_dict().items()}
    for name, parameter in owner.named_parameters(remove_duplicate=False):
        if id(parameter) in new:
            state[name] = new[id(parameter)].detach().clone().to(parameter)
    return state
