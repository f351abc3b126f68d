"""Fuzz locks, JSON that a file is made again from: `python tests/fuzz/fuzz_lock.py -runs=100000`."""

import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.recipes.rebuild import lock

HASH = b'"' + b"0a" * 32 + b'"'
SEEDS = tuple(
    text.replace(b"HASH", HASH)
    for text in (
        b'{"format":1,"kvant":"1","versions":{"numpy":"2"},"source":{"name":"m","files":{"a":HASH},"metadata_sha256":HASH},'
        b'"plan":{"preset":"Q4_0","file_type":2,"types":{"a":"Q4_0"}},"output":{"file":"o.gguf","size_bytes":9,'
        b'"sha256":HASH}}',
        b'{"format":1,"kvant":"1","versions":{},"source":{"name":"m","files":{},"metadata_sha256":HASH},'
        b'"calibration":{"text":"t.txt","text_sha256":HASH,"windows":1,"seed":2,"statistics_sha256":HASH},'
        b'"importance":{"file":"i","sha256":HASH},"encoder":{"damping":0.1,"damping_by_columns":1e9,'
        b'"embedding_damping":0.2,"sweeps":3},"plan":{"preset":"","file_type":0,"types":{}},'
        b'"output":{"file":"o","size_bytes":0,"sha256":HASH}}',
    )
)


def exercise(path: Path) -> None:
    """Read a lock; its names are names of files, and what is written reads the same."""
    found = lock.read_lock(path)
    names = [
        found.output.file,
        found.importance and found.importance.file,
        found.calibration and found.calibration.text,
    ]
    assert all("/" not in name and "\0" not in name for name in names if name)
    path.write_bytes(msgspec.json.encode(found))
    assert lock.read_lock(path) == found


if __name__ == "__main__":
    fuzzing.instrument(lock)
    fuzzing.run(exercise, SEEDS, is_json=True)
