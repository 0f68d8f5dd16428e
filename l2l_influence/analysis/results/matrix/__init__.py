"""Score matrices beyond memory: written shard by shard to a folder, and read from it."""

from .cut import Cut
from .dependence import Dependence
from .reading import ScoreMatrix
from .writing import Writer

__all__ = ["Cut", "Dependence", "ScoreMatrix", "Writer"]
