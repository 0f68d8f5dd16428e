"""The influence of single samples: of query sets (Thm 4.5) and of support sets (Thm 4.6–4.8)."""

from __future__ import annotations

from ..analysis.items import QuerySamples, SupportSamples
from ..analysis.results.result import SampleScores
from .influence import Influence

Sample = tuple[int, int]
"""(task's id, position in its query or support set)."""


class QueryInfluence(Influence[Sample, SampleScores]):
    """The influence of single query samples of the training tasks on the meta-parameters: the paper's instance-IF for
    validation data (Thm 4.5).

    Samples are named ``(task, sample)``: the task's id, and the position in its query set. Removing a sample takes its
    term out of the loss; in a mean the other samples keep their weights, and in batch statistics the sample stays. See
    :class:`~l2l_influence.hooks.hook.EstimatorHook` for the arguments.
    """

    _items = QuerySamples()


class SupportInfluence(Influence[Sample, SampleScores]):
    """The influence of single support samples of the training tasks on the meta-parameters: the paper's instance-IF for
    training data (Thm 4.6–4.8), with all of D_λ P.

    Samples are named ``(task, sample)``: the task's id, and the position in its support set. Removal is as in
    :class:`QueryInfluence`. ``removal="resolve"`` takes the difference that adapting the task anew
    without the sample makes, in place of the paper's derivative by its weight: closer to removal on small support sets,
    at the cost of one inner solve per sample. See :class:`~l2l_influence.hooks.hook.EstimatorHook` for the arguments.
    """

    _items = SupportSamples()
