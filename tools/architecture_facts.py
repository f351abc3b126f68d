"""Write down what GGUF files of many architectures hold: hyperparameters, names, shapes and which tensors are F32.

The files are tiny random checkpoints made with transformers and converted by upstream's converter. The facts stand in
for them in tests (tests/architectures.py). Run as `python tools/architecture_facts.py FILE.gguf ...`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "parity" / "data" / "architectures.json"
LEFT_OUT = ("tokenizer.", "GGUF.", "general.name", "general.size_label", "general.file_type", "general.quantization")


def facts(path: Path) -> dict[str, Any]:
    """Return the metadata of a file with GGUF types, and its tensors: name, type, shape and layers."""
    reader = GGUFReader(path)
    metadata = {
        key: [" ".join(kind.name for kind in field.types), _plain(field.contents())]
        for key, field in reader.fields.items()
        if not key.startswith(LEFT_OUT)
    }
    kinds: dict[str, list[int]] = {}  # layers that have a tensor, by its name, type and shape
    for tensor in reader.tensors:
        found = re.fullmatch(r"blk\.(\d+)\.(.*)", tensor.name)
        name, number = (f"blk.*.{found[2]}", int(found[1])) if found else (tensor.name, 0)
        shape = "x".join(str(int(n)) for n in reversed(tensor.shape))
        kinds.setdefault(f"{name} {'F32' if tensor.tensor_type.name == 'F32' else 'F16'} {shape}", []).append(number)
    return {"metadata": metadata, "tensors": {kind: runs(layers) for kind, layers in kinds.items()}}


def runs(layers: list[int]) -> str:
    """Write layers as runs: `0-3 5`."""
    layers = sorted(layers)
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def main() -> None:
    """Read every file given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    found = {path.stem: facts(path) for path in parser.parse_args().files}
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
