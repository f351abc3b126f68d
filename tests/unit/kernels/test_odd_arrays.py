"""Every public kernel with odd arrays, in a process of its own: tests/odd_arrays.py says what is tried."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).parents[2] / "odd_arrays.py"
QUICK = ("kernels", "numbers", "F32", "F16", "Q4_0", "Q4_K", "IQ4_XS", "IQ3_XXS")


def tried(*parts: str) -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT), *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *wrong, last = done.stdout.splitlines()
    assert not wrong, "\n".join(wrong[:40])
    assert int(last.removesuffix(" calls")) > 1000


def test_kernels_give_the_same_or_refuse() -> None:
    tried(*QUICK)


@pytest.mark.slow
def test_all_block_types_give_the_same_or_refuse() -> None:
    tried()
