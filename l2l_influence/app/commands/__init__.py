"""The commands of ``l2l-influence``, one module each. Needs the extra ``cli``.

To add a command, write a module beside :mod:`.demo` and :mod:`.run` and import it here. Importing it registers the
command. The module imports its optional packages inside the function, so that the other commands and ``--help`` work
without them.
"""

from . import demo, run  # noqa: F401
from .application import application

__all__ = ["application"]
