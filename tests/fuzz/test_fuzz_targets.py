"""The fuzz targets run, and a short run finds nothing; `make test` is no place for a long one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = sorted(Path(__file__).parent.glob("fuzz_*.py"))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has wheels for Linux alone")
@pytest.mark.parametrize("target", TARGETS, ids=lambda path: path.stem)
def test_short_run(target: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(target), "-runs=500", "-seed=1", "-max_len=2048"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Done 500 runs" in result.stderr
    assert "no interesting inputs" not in result.stderr  # the reader is instrumented
