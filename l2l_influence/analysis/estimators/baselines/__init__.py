"""What a user might take in the place of influence functions, behind the same interface.

```python
for name, make in BASELINES.items():
    own = {"checkpoints": checkpoints} if name == "tracin" else {}
    names, matrix = make(study, loss=loss, level="task", **own).score_matrix(test)
```
"""

from ....recording.outer_steps.checkpoints import Checkpoints
from .ascent import AscentSteps
from .base import Baseline
from .chance import Random
from .ekfac import SingleLevelEKFAC
from .own import GradientNorm, QueryLoss
from .similarity import CosineSimilarity, GradientSimilarity
from .table import BASELINES
from .tracin import TracIn
from .trak import ProjectedGradients

__all__ = [
    "BASELINES",
    "AscentSteps",
    "Baseline",
    "Checkpoints",
    "CosineSimilarity",
    "GradientNorm",
    "GradientSimilarity",
    "ProjectedGradients",
    "QueryLoss",
    "Random",
    "SingleLevelEKFAC",
    "TracIn",
]
