"""The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`, minutes of compiling."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs GCC on Linux")
def test_the_kernels_are_clean() -> None:
    command = [sys.executable, str(ROOT / "tools" / "sanitize.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
