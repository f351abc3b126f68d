"""Make the tables of tests/golden/projectors: what upstream's converter makes of tiny projectors, at F16.

    python tools/projector_goldens.py ENVIRONMENT [NAME ...]     # the one of tools/upstream_converter.py

A table holds `config` (config.json) and `source` (names and shapes of tensors, as published checkpoints have them);
tests/projector_cases.py writes a checkpoint of it, and upstream's converter fills in `tensors` and `metadata`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from family_cases import digest  # noqa: E402
from projector_cases import CASES, TABLES, table, write_checkpoint  # noqa: E402
from upstream_converter import RUNNER, make  # noqa: E402


def main() -> None:
    """Make the tables named, or all."""
    from gguf import GGUFReader

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    converter = make(arguments.environment)
    for name in arguments.names or CASES:
        case = table(name)
        with tempfile.TemporaryDirectory() as scratch:
            source, out = write_checkpoint(case, Path(scratch) / "tiny"), f"{scratch}/theirs.gguf"
            command = [converter.python, "-c", RUNNER, str(converter.source), "", str(converter.script)]
            subprocess.run(
                [*command, str(source), "--mmproj", "--outtype", "f16", "--outfile", out], check=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            reader = GGUFReader(out)
            case["tensors"] = {
                t.name: [t.tensor_type.name, [int(n) for n in reversed(t.shape)], digest(np.asarray(t.data).tobytes())]
                for t in reader.tensors
            }
            case["metadata"] = {
                f.name: f.contents() for f in reader.fields.values() if not f.name.startswith("GGUF.")
            }  # fmt: skip
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in case.items()]
        (TABLES / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{name}: {len(case['tensors'])} tensors")


if __name__ == "__main__":
    main()
