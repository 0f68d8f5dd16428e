"""GBML: gradient steps through learned transforms of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from learn2learn.algorithms import GBML
from learn2learn.optim import ParameterUpdate
from torch import Tensor, nn

from ...bilevel.functional import FunctionalModule
from ...bilevel.inner import LearnedTransforms
from ...bilevel.layout import Layout, Named
from ...errors import UncoveredParameterError
from .base import LearnedRule, LearnerAdapter, names_of


class GBMLAdapter(LearnerAdapter):
    """learn2learn's ``GBML``: θ ← θ − lr · transform(gradient). The transforms' parameters are meta-parameters too.

    A saved study must be loaded into a GBML, because the files do not hold the classes of the transforms.
    """

    rule = "gbml"
    root = GBML
    needs_learner = True
    settings_names: ClassVar[tuple[str, ...]] = (*LearnerAdapter.settings_names, "adapt_transform")

    def step_rule(self, adapted: Mapping[str, str]) -> LearnedRule:
        """The transforms: one, or none, for each parameter of the model, in order."""
        self._require_root()
        learner = self.learner
        update, own = learner.compute_update, dict(learner.module.named_parameters())
        self._require_known(update, len(own))
        indices = dict(zip(own, update.transforms_indices, strict=True))
        transforms = FlatTransforms(
            {name: own[inside] for name, inside in adapted.items()},
            {name: indices[inside] for name, inside in adapted.items()},
            update.transforms_modules,
        )
        copied, named = FunctionalModule(transforms), names_of(learner)
        names = {inside: named[id(p)] for inside, p in transforms.named_parameters() if inside in copied.parameters}
        steps = LearnedTransforms(float(learner.lr), copied, names, learner.adapt_transform)
        parameters = {names[inside]: value for inside, value in copied.parameters.items()}
        self._require_apart(parameters)
        # ParameterUpdate keeps the gradients' graph wherever the transforms are adapted, whatever first_order says.
        return LearnedRule(steps, parameters, steps.adapted)

    def steps_like(self, original: Any) -> bool:
        """A clone may be made with another ``adapt_transform``."""
        settings = self.learner.adapt_transform, self.learner.diff_sgd.lr
        return original is None or settings == (original.adapt_transform, original.lr)

    def settings(self) -> dict[str, Any]:
        """The settings of any learner, and ``adapt_transform``."""
        return {**super().settings(), "adapt_transform": bool(self.learner.adapt_transform)}

    def _require_known(self, update: Any, count: int) -> None:
        if type(update) is not ParameterUpdate or len(update.transforms_indices) != count:
            raise UncoveredParameterError(
                f"GBML took its steps with a {type(update).__name__} instead of a learn2learn.optim.ParameterUpdate "
                "made for the model's parameters, so its steps are unknown. Pass inner='proximal' and proximal= (a "
                "number) to attribute the initialisation alone"
            )
        if isinstance(self.learner.lr, Tensor) and self.learner.lr.requires_grad:
            raise UncoveredParameterError(
                "GBML's lr= is a parameter that is learned, which is not supported: make lr a number, and learn a "
                "transform instead"
            )


class FlatTransforms(nn.Module):
    """The transforms of a learn2learn ``ParameterUpdate`` as one map from θ's flat gradient to its update.

    Args:
        theta: θ, which gives the shapes of the parts.
        indices: the index in ``transforms`` for each tensor of θ; None for a tensor without a transform.
        transforms: of all tensors.
    """

    def __init__(self, theta: Named, indices: Mapping[str, int | None], transforms: nn.ModuleList) -> None:
        super().__init__()
        self.transforms, self._indices, self._layout = transforms, indices, Layout(theta)

    def forward(self, gradient: Tensor) -> Tensor:
        """The update for a flat gradient of θ: ``[Q] -> [Q]``."""
        parts = self._layout.unravel(gradient)
        return self._layout.ravel({name: self._update(name, part) for name, part in parts.items()})

    def _update(self, name: str, part: Tensor) -> Tensor:
        index = self._indices[name]
        if index is None:
            return part
        update: Tensor = self.transforms[index](part)
        return update
