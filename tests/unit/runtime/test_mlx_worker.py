"""What MLX's process says of itself; it imports nothing of kvant, so it has its own way to ask."""

import subprocess
import sys

import pytest

from kvant.runtime import mlx_worker

PARENT = """
import subprocess, sys
large = bytearray(b"1") * (300 << 20)
print(subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True, check=True).stdout)
"""
CHILD = "from kvant.runtime.mlx_worker import peak_rss_bytes; print(peak_rss_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="where the peak is counted from the parent's")
def test_the_memory_is_not_that_of_the_process_which_started_it() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 200 << 20


def test_the_peak_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(mlx_worker, "STATUS", tmp_path_factory.mktemp("none") / "status")
    assert mlx_worker.peak_rss_bytes() > 1 << 20
