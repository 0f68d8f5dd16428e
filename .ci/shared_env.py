"""Run a command in the tox environment that all jobs of the running Python share.

Usage: ``python .ci/shared_env.py COMMAND [ARGUMENT ...]``. Creates the environment first, or updates it.
"""

from __future__ import annotations

import os
import subprocess
import sys

ENVIRONMENT = f"py{sys.version_info.major}{sys.version_info.minor}-torchnewest"


def tox(*arguments: str) -> int:
    """Run tox and return its exit code."""
    return subprocess.call([sys.executable, "-m", "tox", *arguments])


def main(command: list[str]) -> int:
    """Set up the environment, run the command in it and return the first exit code that is not 0."""
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    print(f"Preparing {ENVIRONMENT}: the first time, this downloads torch and takes minutes.", flush=True)
    prepared = tox("run", "-q", "-e", ENVIRONMENT, "--notest")
    return prepared or tox("exec", "-qq", "-e", ENVIRONMENT, "--", *command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
