"""What learn2learn's sine example takes from torchmeta, which no torch of today can be installed beside."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset


class BatchMetaDataLoader(DataLoader[Any]):
    """Batches of tasks in random order: their inputs (tasks, samples, 1), and their targets of that shape."""

    def __init__(self, dataset: Dataset[Any], batch_size: int) -> None:
        super().__init__(dataset, batch_size=batch_size, shuffle=True)
