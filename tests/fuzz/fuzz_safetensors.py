"""Fuzz the safetensors reader: `python tests/fuzz/fuzz_safetensors.py -runs=100000`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
import hostile_cases
from kvant.errors import KvantError
from kvant.formats.safetensors import header, reader
from raw_files import entry, safetensors

VALID = safetensors(
    {"__metadata__": {"a": "b"}, "t": entry("F32", [2, 2], 0, 16), "u": entry("BF16", [3], 16, 22)}, bytes(22)
)


def exercise(path: Path) -> None:
    """Read the input as it is and, where its header's length is wrong, once more with the right one."""
    try:
        hostile_cases.exercise_safetensors(path)
    except KvantError:
        data = path.read_bytes()
        end = data.rfind(b"}") + 1
        path.write_bytes(max(0, end - 8).to_bytes(8, "little") + data[8:])
        hostile_cases.exercise_safetensors(path)


if __name__ == "__main__":
    fuzzing.instrument(header, reader)
    seeds = [VALID, *hostile_cases.SAFETENSORS.values()]
    fuzzing.run(exercise, seeds)
