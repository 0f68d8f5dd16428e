"""Kronecker-factored curvature of one task: its layers, its pseudo-gradients, and the blocks that they make."""

from .blocks import Block, task_blocks
from .gradients import PseudoGradients

__all__ = ["Block", "PseudoGradients", "task_blocks"]
