"""Run learn2learn's sine example with a seed and fewer tasks and steps. Its torchmeta is the one beside this file."""

from __future__ import annotations

import numpy as np
import torch

if __name__ == "__main__":  # pytest imports this file to look for doctests, without learn2learn's examples on the path
    from maml_sine import main

    np.random.seed(0)
    torch.manual_seed(0)
    main(tasks_per_batch=2, num_tasks=402, adapt_steps=2)  # it prints the losses of batches 0 and 200
