"""`kvant` commands as processes, and a gateway as one."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

KVANT = [sys.executable, "-m", "kvant.cli.main"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KVANT, *arguments], capture_output=True, text=True, timeout=120, check=False)


@contextlib.contextmanager
def serving(*arguments: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a gateway on a free port; yield its process and its address."""
    command = [*KVANT, "serve", "--port", "0", "--json", "--drain", "5", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            yield process, json.loads("".join(lines))["url"]
        finally:
            process.kill()
