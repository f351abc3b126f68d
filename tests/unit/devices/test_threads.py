"""`threads=0` means one for each core that this process may use, not one for each that the machine has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvant

# In a process of its own that may use one core: how many threads each part starts.
COUNT = """
import json, os, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from kvant.dtypes import F32, block_type
from kvant.kernels import arguments, encode
from kvant.quant.stream import Job, encode_stream
from kvant.tensors import array_tensor

started = []
start = threading.Thread.start
def counted(thread):
    started.append(thread.name)
    start(thread)
threading.Thread.start = counted

def of(work):
    started.clear()
    work()
    return len(started)

x = np.ones((64, 256), np.float32)
jobs = [Job(tensor=array_tensor(str(i), x, F32), target=block_type("Q4_K")) for i in range(8)]
print(json.dumps({
    "kernels": arguments.threads(0),
    "stream": of(lambda: list(encode_stream(jobs, piece_weights=1024))),
    "codebooks": of(lambda: encode(x, "IQ2_S", importance=np.ones(256, np.float32))),
}))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs two cores and affinity")
def test_one_core_is_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=120)
    # A piece of 64 rows is one for one thread, so that the codebook types start none.
    assert done.stdout.strip() == '{"kernels": 1, "stream": 1, "codebooks": 0}'


def test_cores_are_counted_in_one_place() -> None:
    root = Path(kvant.__file__).parent
    counts = re.compile(r"cpu_count|sched_getaffinity")
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if counts.search(path.read_text("utf-8"))}
    assert found == {"devices/limits.py", "devices/detect.py"}  # the second tells what the whole machine has
