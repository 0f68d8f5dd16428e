"""Selects the weights of a learner that a study saves, and rebuilds the learner from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...errors import RecordingError
from ..learners.base import OWN, LearnerAdapter, model_of
from ..learners.registry import ROOTS, adapter_named, adapter_of

MODEL, RULE = "model", "rule"
"""Prefixes of the names of weights in the files: of the learner's model, and of its parameters beside the model."""


def weights_of(learner: nn.Module) -> dict[str, Tensor]:
    """The learner's state_dict, with the names that the files use."""
    model = {f"{MODEL}.{name}": value for name, value in model_of(learner).state_dict().items()}
    beside = {name: value for name, value in learner.state_dict().items() if not name.startswith(OWN)}
    return {**model, **{f"{RULE}.{name}": value for name, value in beside.items()}}


def rebuilt(module: nn.Module, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> nn.Module:
    """A learner with the saved weights: ``module`` itself if it is a learner, otherwise a learner around that model.

    Raises:
        RecordingError: it does not fit the saved learner.
    """
    if isinstance(module, ROOTS):
        _require_same_settings(adapter_of(module), about)
        load_weights(module, {**_part(weights, MODEL, OWN), **_part(weights, RULE)}, "learner")
        return module
    load_weights(module, _part(weights, MODEL), MODEL)
    return adapter_named(about.get("rule")).rebuilt(module, _part(weights, RULE), about)


def load_weights(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load ``weights`` into ``module``, which must have exactly these.

    Raises:
        RecordingError: they do not fit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise RecordingError(
            f"the {what} that was passed is not like the one that was saved: make it as in the training script. {error}"
        ) from error


def _part(weights: Mapping[str, Tensor], part: str, prefix: str = "") -> dict[str, Tensor]:
    start = f"{part}."
    return {prefix + name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def _require_same_settings(adapter: LearnerAdapter, about: Mapping[str, Any]) -> None:
    now = adapter.settings()
    # A learner of a subclass may be loaded, and a loop may have chosen first_order for each clone.
    for name in set(adapter.settings_names) - {"learner", "rule", "first_order"}:
        if about.get(name) is not None and now[name] != about[name]:
            raise RecordingError(
                f"the learner that was passed has {name}={now[name]}, the one that was saved had {about[name]}: make "
                "it with the same arguments"
            )
