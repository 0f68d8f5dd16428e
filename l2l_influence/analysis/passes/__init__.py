"""Passes over training and test tasks, and the values that they find."""

from .packed_tensors import PackedTensors
from .passes import Pass, Walk, each_task, walk
from .targets import Targets, TestGradient

__all__ = ["PackedTensors", "Pass", "Targets", "TestGradient", "Walk", "each_task", "walk"]
