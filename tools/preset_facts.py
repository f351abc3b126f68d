"""Ask llama.cpp which type each preset gives each tensor of real model shapes, and write the answers down as facts.

The files it is asked about are holes with a header, so that a 70B model takes no room; `--dry-run` reads no weights.
Run as `python tools/preset_facts.py --llama-quantize PATH --version b11434`; the facts go to tests/parity/data.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from kvant.formats.gguf.writer import TensorInfo, file_layout
from kvant.formats.imatrix import write_imatrix
from kvant.quant.importance import Entry, Importance
from kvant.quant.presets import PRESETS
from kvant.testing import model_shapes

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "parity" / "data" / "preset_types.json"
LINE = re.compile(r"\] +(\S+) +- \[.*?type = +(\w+), size = .*?(?:\((\w+)\))?$")


def ask(program: Path, model: Path, preset: str, imatrix: Path | None) -> dict[str, str] | str:
    """Return the type of every tensor that llama.cpp would write, or its refusal."""
    options = ["--imatrix", str(imatrix)] if imatrix else []
    command = [str(program), *options, "--dry-run", str(model), preset]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode:
        return next(line.split("failed to quantize: ", 1)[1] for line in lines if "failed to quantize: " in line)
    found: dict[str, str] = {}
    for line in lines:
        # A warning about a fallback may stand before the line of its tensor; the size is in brackets when it changes.
        match = LINE.search(line)
        if match:
            found[match[1]] = (match[3] or match[2]).upper()
    return found


def main() -> None:
    """Ask about every shape, preset, and importance at hand or not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--version", required=True)
    arguments = parser.parse_args()
    facts: dict[str, object] = {"source": f"llama-quantize --dry-run, llama.cpp {arguments.version}"}
    with tempfile.TemporaryDirectory() as scratch:
        imatrix = Path(scratch) / "some.imatrix.gguf"
        entry = Entry(sums=np.ones((1, 32), np.float32), counts=np.ones(1, np.float32))
        write_imatrix(imatrix, Importance(entries={"blk.0.ffn_up.weight": entry}, datasets=("x",), n_chunks=1))
        shapes: dict[str, object] = {}
        for name, shape in model_shapes.SHAPES.items():
            model = Path(scratch) / "model.gguf"
            tensors = model_shapes.shape_model(shape).tensors.values()
            infos = [TensorInfo(t.name, t.shape, t.block_type) for t in tensors]
            layout = file_layout(model_shapes.metadata(shape), infos)
            with model.open("wb") as file:
                file.write(layout.header)
                file.truncate(layout.total_bytes)
            answers: dict[str, object] = {}
            for preset in PRESETS:
                for suffix, given in (("", None), ("+imatrix", imatrix)):
                    answer = ask(arguments.llama_quantize, model, preset, given)
                    packed_answer = answer if isinstance(answer, str) else model_shapes.packed(answer)
                    if not suffix or packed_answer != answers[preset]:
                        answers[preset + suffix] = packed_answer
            shapes[name] = answers
            print(name, len(answers), len(infos))
        facts["shapes"] = shapes
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(facts, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
