"""Compare importance with what llama.cpp's own llama-imatrix measures on the same tokens.

`python tools/imatrix_parity.py --llama-imatrix PATH MODEL` runs both on kvant's calibration windows and prints how far
they are apart. With `--golden` it writes what llama-imatrix finds on a tiny random model to tests/parity/data/imatrix,
in both layouts, with the tokens. Upstream tokenizes a text as a whole and kvant each domain apart, so upstream runs
once for each domain and adds up; `-b 512` because with windows in one batch it can leave out their last tokens.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from kvant.evaluate.corpora import corpus, text_file
from kvant.evaluate.windows import Windows, cut
from kvant.formats.imatrix import read_imatrix
from kvant.quant.importance import Importance
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.base import f32_file
from kvant.recipes.measure.importance import calibrate
from kvant.runtime.process import EngineProcess
from kvant.testing.tiny_models import write_tiny_model

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "parity" / "data" / "imatrix"
GOLDEN_CONTEXT = 64
TEXT = (
    "The ferry left at seven, and by noon the harbour of Ελλάδα was a line of white. 12 crates, 345 letters, 1 piano.\n"
    "for crate in hold:\n    if crate.weight > 20:\n        print(crate.name, crate.weight)\n"
) * 8


def upstream(program: Path, model: Path, texts: dict[str, int], directory: Path, context: int, ending: str) -> Path:
    """Run llama-imatrix over the first windows of each text, files in `directory` by name; return what it wrote."""
    before: list[str] = []
    for name, count in texts.items():
        out = f"{name}.imatrix.{ending}"
        command = [
            program.resolve(), "-m", model.resolve(), "-f", name, "-c", context, "-b", context, "--chunks", count,
            "--no-ppl", "--output-format", ending, "-o", out, *before,
        ]  # fmt: skip
        subprocess.run(list(map(str, command)), cwd=directory, check=True, capture_output=True)
        before = ["--in-file", out]
    return directory / out


def windows_of(file: Path, texts: Path | None, context: int, count: int) -> Windows:
    """Cut the bundled calibration text, or a file, as kvant does."""
    with EngineProcess() as engine:
        engine.open(file, n_ctx=context, n_threads=1, vocab_only=True)
        text = text_file(texts) if texts else corpus("default", "calibration")
        return cut(engine, text, context=context, chunks=count)


def write_golden(program: Path, version: str) -> None:
    """Write tokens and both importance files of a tiny model."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        convert(
            write_tiny_model("llama", directory / "hf", num_hidden_layers=1),
            directory / "m.gguf",
            to="gguf",
            type="F32",
        )
        (directory / "text.txt").write_text(TEXT, encoding="utf-8")
        windows = windows_of(directory / "m.gguf", directory / "text.txt", GOLDEN_CONTEXT, 0)
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for ending in ("gguf", "dat"):
            texts = {"text.txt": len(windows.tokens)}
            found = upstream(program, directory / "m.gguf", texts, directory, GOLDEN_CONTEXT, ending)
            (GOLDEN / f"tiny.{ending}").write_bytes(found.read_bytes())
    facts = {"source": f"llama-imatrix of {version}", "tokens": windows.tokens.tolist()}
    (GOLDEN / "tokens.json").write_text(json.dumps(facts) + "\n")


def compare(program: Path, model: Path, count: int) -> None:
    """Print the relative differences of all channels of a model."""
    file, _ = f32_file(model)
    windows = windows_of(file, None, 512, count)
    with tempfile.TemporaryDirectory() as scratch:
        directory, counts = Path(scratch), {}
        for part in corpus("default", "calibration").parts:
            (directory / f"{part.domain}.txt").write_text(part.text, encoding="utf-8")
            counts[f"{part.domain}.txt"] = windows.domains.count(part.domain)
        theirs = read_imatrix(upstream(program, file, counts, directory, 512, "gguf"))
        calibrate(model, directory / "ours.gguf", windows=count)
        ours = read_imatrix(directory / "ours.gguf")
    print(f"{theirs.n_chunks} and {ours.n_chunks} chunks of {theirs.chunk_size} and {ours.chunk_size} tokens")
    apart = np.concatenate([differences(ours, theirs, name) for name in theirs.entries])
    print(f"{apart.size} channels of {len(theirs.entries)} tensors; relative difference of the mean of x²:")
    print(f"median {np.median(apart):.1e}, 99 % {np.quantile(apart, 0.99):.1e}, largest {apart.max():.1e}")


def differences(ours: Importance, theirs: Importance, name: str) -> np.ndarray:
    """Relative difference of every channel of a tensor."""
    a, b = ours.entries[name].weights(), theirs.entries[name].weights()
    return np.asarray(np.abs(a - b) / b).ravel()


def main() -> None:
    """Compare, or write the golden files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--llama-imatrix", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--golden", metavar="VERSION")
    arguments = parser.parse_args()
    if arguments.golden:
        write_golden(arguments.llama_imatrix, arguments.golden)
    if arguments.model:
        compare(arguments.llama_imatrix, arguments.model, arguments.windows)


if __name__ == "__main__":
    main()
