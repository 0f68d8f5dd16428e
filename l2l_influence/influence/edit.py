"""Edited meta-parameters as a state_dict for the user's learner, which is itself never touched."""

from __future__ import annotations

from collections.abc import Mapping

from learn2learn.algorithms.base_learner import BaseLearner
from torch import Tensor


def edited_state(learner: BaseLearner, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``learner.state_dict()``, copied, with ``parameters`` of ``learner.module`` in place of its own.

    A parameter that the state_dict holds under several names (tied weights, a submodule registered twice) is replaced
    under each of them.
    """
    new = {id(parameter): name for name, parameter in learner.module.named_parameters() if name in parameters}
    state = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    for name, parameter in learner.named_parameters(remove_duplicate=False):
        if id(parameter) in new:
            state[name] = parameters[new[id(parameter)]].detach().clone().to(parameter)
    return state
