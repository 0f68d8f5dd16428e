"""A recorded learner as an analysis reads it: the model that maps rows to outputs, and which parameters are what."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import cast

from learn2learn.algorithms.base_learner import BaseLearner
from torch import Tensor, nn

from ..errors import InfluenceError
from ..recording import Recording, Study, recording_of
from ..recording.learners.base import model_of
from ..recording.learners.registry import adapter_of, require_learner
from .editing import edited_state

HEAD = "module."
"""Prefix of the names of a head's parameters."""


class BodyAndHead(nn.Module):
    """``head(body(x))``. Parameters are named ``body.…`` and, as in the learner's own state_dict, ``module.…``."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.module = body, head

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.module(self.body(x))
        return outputs


class LearnerView:
    """The learner of a study, or a recorded learner, as it stands; it is never changed.

    Args:
        source: a recorded learner, or the study that :func:`~l2l_influence.record` yielded.
        body: the module that computed the features fed to the learner; None for the recorded one.

    Raises:
        RecordingError: ``source`` is neither.
    """

    def __init__(self, source: BaseLearner | Study, body: nn.Module | None = None) -> None:
        if not isinstance(source, Study):
            require_learner(source)
        self._source, self._body = source, body

    @property
    def learner(self) -> BaseLearner:
        """The learner that was trained."""
        return cast(BaseLearner, self._source.learner) if isinstance(self._source, Study) else self._source

    @property
    def recording(self) -> Recording:
        """The recording of the learner."""
        return recording_of(self.learner)

    @property
    def body(self) -> nn.Module | None:
        """A module in front of the learner that no task adapts (ANIL)."""
        return self._body or self.recording.body

    @property
    def model(self) -> nn.Module:
        """Maps a task's rows to outputs."""
        body = self.body
        model = model_of(self.learner)
        return model if body is None else BodyAndHead(body, model)

    def model_at(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A copy of :attr:`model` with the parameters and buffers of ``state``, a state_dict like the :attr:`owner`'s.

        Raises:
            InfluenceError: ``state`` does not belong to such a learner.
        """
        moved = copy.deepcopy(self.model)
        prefix = HEAD if self.body is None else ""
        own = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix) and (prefix or name.startswith((HEAD, "body.")))
        }
        try:
            moved.load_state_dict(own)
        except RuntimeError as error:
            raise InfluenceError(
                f"a checkpoint does not fit: it has to be maml.state_dict() of this learner ({error})"
            ) from error
        return moved

    @property
    def owner(self) -> nn.Module:
        """The module whose state_dict an edit is: the learner, or a body and the learner's parts side by side."""
        body = self.body
        return self.learner if body is None else nn.ModuleDict({"body": body, **dict(self.learner.named_children())})

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that can be a meta-parameter: the model's parameters, and those that the learner has beside its model
        (learned rates and transforms), by the learner's names."""
        beside = {name: own for name, own in self.learner.named_parameters() if not name.startswith(HEAD)}
        return {**beside, **dict(self.model.named_parameters())}

    def adapted_names(self, names: Iterable[str]) -> dict[str, str]:
        """The model's parameters that a task adapts, and their names in the learner's own module."""
        own = {name: name for name in names}
        if self.body is not None:
            own = {name: name.removeprefix(HEAD) for name in names if name.startswith(HEAD)}
        known = adapter_of(self.learner).adapted()
        return {name: inside for name, inside in own.items() if inside in known}

    def starts(self, adapted: Mapping[str, str]) -> dict[str, Tensor]:
        """Start values of the adapted parameters that are not in λ, by name: each task starts them anew."""
        known = adapter_of(self.learner).adapted()
        return {name: start for name, inside in adapted.items() if (start := known[inside]) is not None}

    def edited_state(self, edited: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The :attr:`owner`'s state_dict, copied, with these meta-parameters."""
        return edited_state(self.owner, self.parameters, edited)
