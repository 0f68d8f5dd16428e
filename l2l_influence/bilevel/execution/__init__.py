"""How functions of one task are evaluated and differentiated for a batch of tasks: all at once, or one by one."""

from .base import Execution
from .choice import CHOICES, ExecutionChoice, Found
from .mapped import Mapped
from .one_by_one import OneByOne

__all__ = ["CHOICES", "Execution", "ExecutionChoice", "Found", "Mapped", "OneByOne"]
