"""Kronecker-factored curvature of one task: its layers, its pseudo-gradients, and the blocks that they form."""

from .blocks import Block, task_blocks
from .gradients import PseudoGradients, apart, pull_back
from .layers import Layer, Model, linear_layers

__all__ = ["Block", "Layer", "Model", "PseudoGradients", "apart", "linear_layers", "pull_back", "task_blocks"]
