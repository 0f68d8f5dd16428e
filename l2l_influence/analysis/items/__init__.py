"""Items whose influence can be asked about: tasks, query samples, support samples, and groups of these.

Items know names, counts and rows of results, and no mathematics. The mathematics of an item is its bilevel
:class:`~l2l_influence.bilevel.item_gradients.ItemGradient`.
"""

from .base import Items, Ranked, SingleItems
from .groups import By, Groups
from .samples import QuerySamples, SupportSamples
from .tasks import Tasks

KINDS: dict[str, type[SingleItems]] = {kind.what: kind for kind in (Tasks, QuerySamples, SupportSamples)}
"""Single items by the name that files use."""

__all__ = ["KINDS", "By", "Groups", "Items", "QuerySamples", "Ranked", "SingleItems", "SupportSamples", "Tasks"]
