"""What is bound to the learners and the loop of this process, and would be less than it seems as a copy."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from ...errors import NotCopiedError


class Uncopied:
    """Goes before a class whose instances ``copy`` and ``pickle`` are to refuse."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise NotCopiedError(
            f"a {type(self).__name__} cannot be copied or pickled: what was recorded is bound to the learners of this "
            "process. Save it with Study.save(path), and read it, in another process too, with Study.load(path, "
            "model). Learners can be copied and pickled, without what was recorded of them"
        )
