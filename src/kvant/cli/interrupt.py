"""Ctrl-C: the first one has a command unwind what it does; one that comes while it unwinds ends the process at once.

Python would raise a second KeyboardInterrupt wherever the first one has got to: in the cleaning up, in a callback, in
the interpreter's own shutdown, where it becomes a traceback. Ending without cleaning up is safe: files appear whole or
not at all, and the processes that kvant starts end when their standard input does.
"""

import os
import signal
import sys

_SHOW_CURSOR = b"\x1b[?25h\n"  # what draws progress hides it
_is_unwinding = False


def watch() -> None:
    """Take Ctrl-C from now on; for the process of a command line, from its main thread."""
    signal.signal(signal.SIGINT, _interrupt)


def go_on() -> None:
    """Say that an interrupt was dealt with: the next one is a first one again."""
    global _is_unwinding
    _is_unwinding = False


def _interrupt(number: int, _frame: object) -> None:
    global _is_unwinding
    if _is_unwinding:
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
        os._exit(128 + number)
    _is_unwinding = True
    raise KeyboardInterrupt
