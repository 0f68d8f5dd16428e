"""The learner of a study that was read from files: what is saved of one, and how it is put together again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from learn2learn.algorithms import MAML, MetaSGD
from torch import Tensor, nn

from ...errors import RecordingError
from ..learners.base import ROOTS, model_of, rule_of

MODEL, RULE = "model", "rule"
"""What names of weights in the files begin with: of the learner's model, and of what it has beside it."""

OWN = "module."
"""What names of the model's weights begin with in a learner's state_dict."""


def weights_of(learner: nn.Module) -> dict[str, Tensor]:
    """The learner's state_dict, by the names that it has in the files."""
    model = {f"{MODEL}.{name}": value for name, value in model_of(learner).state_dict().items()}
    beside = {name: value for name, value in learner.state_dict().items() if not name.startswith(OWN)}
    return {**model, **{f"{RULE}.{name}": value for name, value in beside.items()}}


def settings_of(learner: Any) -> dict[str, Any]:
    """Its class, the rule of its steps, what of its settings these depend on, and what beside the model is frozen."""
    lr = getattr(learner, "lr", None)
    return {
        "learner": type(learner).__name__,
        "rule": rule_of(learner),
        "lr": float(lr) if isinstance(lr, (int, float)) else None,
        "first_order": bool(getattr(learner, "first_order", False)),
        "adapt_transform": bool(getattr(learner, "adapt_transform", False)),
        "fixed": [name for name, own in learner.named_parameters() if not (own.requires_grad or name.startswith(OWN))],
    }


def rebuilt(module: nn.Module, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> nn.Module:
    """A learner with the saved weights: ``module`` itself if it is one, or else one around that model.

    Raises:
        RecordingError: it is not like the one that was saved.
    """
    if isinstance(module, ROOTS):
        _require_same_settings(module, about)
        load_weights(module, {**_part(weights, MODEL, OWN), **_part(weights, RULE)}, "learner")
        return module
    load_weights(module, _part(weights, MODEL), MODEL)
    if about.get("rule") == "meta-sgd":
        return MetaSGD(module, first_order=about["first_order"], lrs=_rates(_part(weights, RULE), about["fixed"]))
    return MAML(module, lr=about["lr"] or 0.0, first_order=about["first_order"])


def _rates(saved: Mapping[str, Tensor], fixed: Collection[str]) -> nn.ParameterList:
    names = [f"lrs.{number}" for number in range(sum(name.startswith("lrs.") for name in saved))]
    return nn.ParameterList([nn.Parameter(saved[name], requires_grad=name not in fixed) for name in names])


def load_weights(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """All of ``weights`` into ``module``, which has no others.

    Raises:
        RecordingError: they do not fit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise RecordingError(f"the {what} that was passed is not like the one that was saved: {error}") from error


def _part(weights: Mapping[str, Tensor], part: str, prefix: str = "") -> dict[str, Tensor]:
    start = f"{part}."
    return {prefix + name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def _require_same_settings(learner: nn.Module, about: Mapping[str, Any]) -> None:
    now = settings_of(learner)
    for name in ("lr", "adapt_transform"):
        if about.get(name) is not None and now[name] != about[name]:
            raise RecordingError(
                f"the learner that was passed has {name}={now[name]}, the one that was saved had {about[name]}: make "
                "it with the same arguments"
            )
