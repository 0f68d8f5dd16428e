"""The commands of ``l2l-influence``, one module each. Needs the extra ``cli``.

To add a command, write a module beside :mod:`.demo` and :mod:`.run` and import it here. Importing it registers the
command; its own optional packages and everything slow are imported inside its function, so that ``--help`` needs
neither.
"""

from . import demo, run  # noqa: F401
from .application import application

__all__ = ["application"]
