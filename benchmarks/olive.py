"""kvant beside Microsoft Olive: the same float32 export to int4, time, peak memory, size and quality.

    python -m venv olive && olive/bin/pip install olive-ai onnxruntime datasets
    KVANT_ONNX_PYTHON=ENV/bin/python python benchmarks/olive.py MODEL olive/bin/olive WORK [--rounds 3]

Both start from the export that kvant keeps, so that the quantize step alone is timed, processes and imports included;
the median of rounds in turn. Quality is on the bundled held-out text. Olive's `optimize` and its gptq want a data set
from the Hub even where a local file is named, and its kquant refuses int4 (0.13), so that rtn and hqq are what it is.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

import onnx

from kvant.formats.onnx.decoder import read_decoder
from kvant.formats.open import open_model
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.targets.onnx.export import exported
from onnx_llm import measured

CHUNKS = 16


def main() -> None:
    """Make all in turn, measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("olive", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    origin = read_decoder(exported(open_model(options.model)))
    source = str(options.model.absolute())
    kvant = [sys.executable, "-m", "kvant.cli.main", "quantize", source, "--to", "onnx", "--overwrite"]
    olive = [str(options.olive.absolute()), "quantize", "-m", str(origin.file), "--precision", "int4"]
    commands = {
        "kvant int4": [*kvant, "-t", "int4", "-o"],
        "olive rtn": [*olive, "--disable_telemetry", "--algorithm", "rtn", "-o"],
        "olive hqq": [*olive, "--disable_telemetry", "--algorithm", "hqq", "-o"],
    }
    places = {name: options.work / name.replace(" ", "-") for name in commands}
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            shutil.rmtree(places[name], ignore_errors=True)
            shutil.rmtree(options.work / ".olive-cache", ignore_errors=True)
            runs[name].append(measured([*command, str(places[name].absolute())], options.work))
    for name, place in places.items():
        if name.startswith("olive"):
            complete(place, origin.file.parent)
    scores = evaluate(list(places.values()), against=options.model, chunks=CHUNKS, floors=False).scores
    first = None
    print("what | seconds | x kvant | peak RSS MB | x kvant | MB | mean KLD | ± SE | top-1 % | tok/s")
    for (name, found), s in zip(runs.items(), scores, strict=True):
        seconds, peak = (statistics.median(values) for values in zip(*found, strict=True))
        first = first or (seconds, peak)
        print(
            f"{name} | {seconds:.1f} | {seconds / first[0]:.1f} | {peak / 1e6:.0f} | {peak / first[1]:.1f} | "
            f"{s.size_bytes / 1e6:.1f} | {s.kld_mean:.4f} | {s.kld_se:.4f} | {100 * s.top1:.1f} | {s.tg_tok_s or 0:.0f}"
        )


def complete(place: Path, origin: Path) -> None:
    """Put configuration and tokenizer beside Olive's graph, which is all that it writes; it renames the logits."""
    for file in origin.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, place / file.name)
    graph = onnx.load(place / "model.onnx", load_external_data=False).graph
    config = json.loads((place / "genai_config.json").read_text())
    config["model"]["decoder"]["outputs"]["logits"] = graph.output[0].name
    (place / "genai_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
