"""Every benchmark runs once with as little as it takes, so that none rots; nothing is timed.

Not run are those that need other projects' environments: NEED_MORE says which. Their types are checked all the same.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvant.formats.imatrix import write_imatrix
from kvant.formats.open import open_model
from kvant.quant.importance import Entry, Importance
from kvant.recipes.convert.convert import convert
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NEED_MORE = {"compatibility", "olive", "onnx_llm", "onnx_models", "onnx_whisper", "quantize"}

# Arguments, and what rows of the output hold. HF, F16, Q8 and IMATRIX are the tiny model's, WORK an empty folder.
RUNS = {
    "ablation": ("HF --presets Q8_0 --windows 1 --chunks 1 --work WORK", ["name Q8_0: preset, H", "name Q8_0: mix, A"]),
    "allocate": ("", ["as Qwen2.5-1.5B  4.5 bits", "as Qwen2.5-14B  whole curve", "decode time"]),
    "attacks": ("--only idle --seconds 0.2", ["idle"]),
    "decode_time": ("HF --turns 1 --threads 1", ["Q8_0", "Q4_0"]),
    "decoders": ("--types Q4_K --runs 1", ["Q4_K"]),
    "evaluate": ("F32 Q8 --chunks 1 --context 128 --threads 1", []),
    "file_speed": ("Q8 F16 --turns 1 --threads 1", ["tiny-Q8_0.gguf", "tiny-F16.gguf"]),
    "fitting": ("--model HF --tensors blk.0.ffn_down.weight --types Q8_0 --rows 4", ["Q8_0"]),
    "gguf_reader": ("--runs 1", ["open and list tensors", "and all strings as text"]),
    "kernels": ("--types Q4_K --rounds 1", ["Q4_K"]),
    "linalg": ("--rounds 1 --shapes 32x64x32 --factor 64", []),
    "mixes": ("HF --megabytes 9 --windows 1 --threads 1 -o WORK", []),
    "quality": ("HF Q8 --imatrix IMATRIX --presets Q8_0,Q4_0 --chunks 1 --threads 1 --work WORK", []),
    "scale": ("--models smollm2-135m --layers 1 --cores 2 --longest 256", ["smollm2-135m on 2 cores, extrapolated"]),
    "serve": ("Q8 --rounds 1 --tokens 4 --streams 2", []),
    "soak": ("Q8 --minutes 0.1 --clients 2 --models 2 --kill-every 2", ["requests", "evictions_by_metrics"]),
    "store_kill": ("--kills 2 --bytes 20000", []),
    "transcode": ("--rows 32 --columns 256 --runs 1", []),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the words in capitals."""
    root = tmp_path_factory.mktemp("given")
    source = write_tiny_model("llama", root / "hf")
    convert(source, root / "tiny-F32.gguf", to="gguf", type="F32")
    convert(source, root / "tiny-F16.gguf", to="gguf", type="F16")
    quantize(source, "Q8_0", root / "tiny-Q8_0.gguf")
    name = "blk.0.ffn_up.weight"
    width = open_model(source).tensors[name].shape[-1]
    entry = Entry(sums=np.ones((1, width), np.float32), counts=np.ones(1, np.float32))
    write_imatrix(root / "imatrix.gguf", Importance(entries={name: entry}, datasets=("none",), n_chunks=1))
    names = {"F32": "tiny-F32.gguf", "F16": "tiny-F16.gguf", "Q8": "tiny-Q8_0.gguf", "IMATRIX": "imatrix.gguf"}
    return {"HF": str(source)} | {word: str(root / name) for word, name in names.items()}


def test_every_benchmark_is_run_or_named() -> None:
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == set(RUNS) | NEED_MORE


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_benchmark_runs(name: str, given: dict[str, str], tmp_path: Path) -> None:
    arguments, rows = RUNS[name]
    words = {**given, "WORK": str(tmp_path / "work")}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *(words.get(w, w) for w in arguments.split())]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = done.stdout.splitlines()
    assert found, done.stderr
    assert [row for row in rows if not any(row in line for line in found)] == [], done.stdout
