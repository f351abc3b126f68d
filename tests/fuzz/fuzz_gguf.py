"""Fuzz the GGUF reader: `python tests/fuzz/fuzz_gguf.py -runs=100000`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
import hostile_cases
import raw_files
from kvant.formats.gguf import header, layout, reader, strings

if __name__ == "__main__":
    fuzzing.instrument(header, layout, reader, strings)
    seeds = [raw_files.small_gguf(), *hostile_cases.GGUF.values()]
    fuzzing.run(hostile_cases.exercise_gguf, seeds)
