"""Ask whether upstream's converter may be installed: whichever command needs it, on a terminal and there alone."""

import os
import sys

from kvant.cli import console


def agreed(plan: str) -> bool:
    """Say what would be installed and ask; True makes it so for the rest of this process.

    Where nobody can answer, or the answer is no, nothing is installed.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    from kvant.runtime.converter.environment import AGREED

    if os.environ.get(AGREED):  # asked already
        return False
    console.ask(f"This model needs upstream's converter. To be installed: {plan}. Install it? [y/N] ")
    answer = sys.stdin.readline().strip().lower()
    os.environ[AGREED] = "yes" if answer in ("y", "yes") else "no"
    return os.environ[AGREED] == "yes"
