"""The resources a hook may use: memory, a progress bar, processes that share the work."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed import GroupMember, ProcessGroup

from ..bilevel.memory import DEFAULT, Memory, in_bytes


@dataclass(frozen=True)
class Resources:
    """What an analysis may use. None of these settings changes a result beyond rounding.

    >>> Resources(memory="4GiB", progress=False).memory_bytes
    4294967296

    Args:
        memory: bytes, or text such as ``"4GiB"``. One half is for what a Hessian keeps, the other for batches of tasks
            and their solutions. Test vectors and scores come on top.
        progress: show a progress bar; None shows it only on a terminal.
        process_group: processes that share the training tasks, for example ``torch.distributed.group.WORLD`` under
            ``torchrun``. Each process must ask the same questions about the same study, and gets the same answers.
            None uses this process alone.

    Raises:
        TypeError, ValueError: a setting is not one of those above.
    """

    memory: Memory = DEFAULT
    progress: bool | None = None
    process_group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        in_bytes(self.memory)
        if not (self.progress is None or isinstance(self.progress, bool)):
            raise TypeError(f"progress must be True, False or None, not {self.progress!r}")
        given: object = self.process_group  # torch types a group that this process is not in as a number
        if given is GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "this process is not in the process_group that was given: make the hook on its processes only"
            )
        if not (self.process_group is None or isinstance(self.process_group, ProcessGroup)):
            raise TypeError(
                "process_group must be a torch.distributed.ProcessGroup, such as torch.distributed.group.WORLD after "
                f"init_process_group(), or None, not {type(self.process_group).__name__}"
            )

    @property
    def memory_bytes(self) -> int:
        """``memory`` as a number of bytes."""
        return in_bytes(self.memory)
