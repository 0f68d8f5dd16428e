"""The recorded run that a hook asks about: a learner, its recording, and what maps a task's rows to outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from learn2learn.algorithms.base_learner import BaseLearner
from torch import Tensor, nn

from ..recording import Recording, Study, recording_of
from ..recording.learners.base import model_of
from ..recording.learners.registry import require_learner

HEAD = "module."
"""What names of the head's parameters begin with."""


class BodyAndHead(nn.Module):
    """``head(body(x))``. Parameters are named ``body.…`` and, as in the learner's own state_dict, ``module.…``."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.module = body, head

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.module(self.body(x))
        return outputs


class Run:
    """A learner as it stands, or the one of a study.

    Args:
        source: a recorded learner, or what :func:`~l2l_influence.record` yielded.
        body: what made the features that the learner was fed; None for what was recorded of that.

    Raises:
        RecordingError: ``source`` is neither.
    """

    def __init__(self, source: BaseLearner | Study, body: nn.Module | None) -> None:
        if not isinstance(source, Study):
            require_learner(source)
        self._source, self._body = source, body

    @property
    def learner(self) -> BaseLearner:
        """The learner that trained."""
        return cast(BaseLearner, self._source.learner) if isinstance(self._source, Study) else self._source

    @property
    def recording(self) -> Recording:
        """What was recorded of it."""
        return recording_of(self.learner)

    @property
    def body(self) -> nn.Module | None:
        """A module that no task adapts, which goes before the learner's own (ANIL)."""
        return self._body or self.recording.body

    @property
    def model(self) -> nn.Module:
        """What maps a task's rows to outputs."""
        body = self.body
        model = model_of(self.learner)
        return model if body is None else BodyAndHead(body, model)

    @property
    def owner(self) -> nn.Module:
        """The module whose state_dict an edit is: the learner, or a body and the learner's parts side by side."""
        body = self.body
        return self.learner if body is None else nn.ModuleDict({"body": body, **dict(self.learner.named_children())})

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What meta-parameters can be: the model's, and those that the learner has beside its model, as it calls them
        (learned rates and transforms)."""
        beside = {name: own for name, own in self.learner.named_parameters() if not name.startswith(HEAD)}
        return {**beside, **dict(self.model.named_parameters())}

    def adapted_names(self, names: Iterable[str]) -> dict[str, str]:
        """The model's parameters that a task adapts, and what they are called in the learner's own module."""
        if self.body is None:
            return {name: name for name in names}
        return {name: name.removeprefix(HEAD) for name in names if name.startswith(HEAD)}
