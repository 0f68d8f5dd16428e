"""Score matrices larger than memory: written to a folder shard by shard, and read from it."""

from .fingerprint import MatrixFingerprint
from .reading import ScoreMatrix
from .shard_plan import ShardPlan
from .writing import Writer

__all__ = ["MatrixFingerprint", "ScoreMatrix", "ShardPlan", "Writer"]
