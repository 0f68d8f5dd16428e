"""`Uncopied`: a base class that refuses ``copy`` and ``pickle``."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from ..errors import NotCopiedError


class Uncopied:
    """Base class of objects that are bound to the learners of this process, so that a copy would be incomplete."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise NotCopiedError(
            f"a {type(self).__name__} cannot be copied or pickled, because it is bound to the learners of this "
            "process. Save it with Study.save(path) and read it, in another process too, with Study.load(path, model). "
            "Learners can be copied and pickled; their copies have empty recordings"
        )
