"""A child's first code: `python launch.py POLICY -m MODULE ...` or `... SCRIPT ...` confines itself, then runs that.

With nothing to run it says what holds.

It runs in whatever environment has the engine, where kvant need not be installed, and before anything starts a thread:
what is taken from one thread does not reach those that run already.
"""

import importlib
import os
import runpy
import signal
import sys
from pathlib import Path

HELD = "KVANT_CONFINED"
"""Variable that tells the engine what holds, with commas between."""


def main() -> None:
    """Confine this process and become the engine."""
    home = str(Path(__file__).resolve().parents[1])
    sys.path.insert(0, home)
    confine = importlib.import_module("sandbox.confine")
    policy = importlib.import_module("sandbox.policy").Policy
    sys.path.remove(home)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its owner's business
    os.environ[HELD] = ",".join(confine.confine(policy.from_json(sys.argv[1])))
    del sys.argv[:2]
    if not sys.argv:
        sys.stdout.write(os.environ[HELD])
    elif sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
