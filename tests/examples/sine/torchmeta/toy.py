"""What learn2learn's sine example takes from torchmeta, which no torch of today can be installed beside."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

Samples = tuple[np.ndarray, np.ndarray]


class Sinusoid(Dataset[Samples]):
    """Sines of random amplitude and phase; samples are drawn anew each time, as double precision columns."""

    def __init__(self, num_samples_per_task: int, num_tasks: int) -> None:
        self.amplitudes = np.random.uniform(0.1, 5.0, num_tasks)
        self.phases = np.random.uniform(0.0, np.pi, num_tasks)
        self.shape = (num_samples_per_task, 1)

    def __len__(self) -> int:
        return len(self.amplitudes)

    def __getitem__(self, index: int) -> Samples:
        inputs = np.random.uniform(-5.0, 5.0, self.shape)
        return inputs, self.amplitudes[index] * np.sin(inputs - self.phases[index])
