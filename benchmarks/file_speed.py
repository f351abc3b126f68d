"""Speed of finished files in llama.cpp, in rotation, so that what else the machine does falls on all.

Speed is that of the fastest single token of a generation 256 tokens deep; the median over 32 tokens stands beside it.

    python benchmarks/file_speed.py [--threads 2] [--turns 5] [--json] FILE.gguf...
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from kvant.runtime.engines.base import SPEED
from kvant.runtime.process import EngineProcess


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    fastest: dict[Path, float] = dict.fromkeys(options.files, math.inf)
    medians: dict[Path, list[float]] = {file: [] for file in options.files}
    for _ in range(options.turns):
        for file in options.files:
            with EngineProcess() as engine:
                engine.open(file, n_ctx=2 * SPEED.n_prompt, n_threads=options.threads)
                found = engine.speed(n_prompt=SPEED.n_prompt, n_generate=SPEED.n_generate, repeats=3)
            fastest[file] = min(fastest[file], found.fastest_s)
            medians[file].append(found.tg_tok_s)
    rows = [
        {"file": file.name, "MB": file.stat().st_size / 1e6, "fastest_tok_s": 1 / fastest[file],
         "median_tok_s": statistics.median(medians[file])}
        for file in options.files
    ]  # fmt: skip
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['MB']:8.1f} MB  {row['fastest_tok_s']:7.1f}  {row['median_tok_s']:7.1f} tokens/s  {row['file']}")


if __name__ == "__main__":
    main()
