"""A decoder as ONNX: kvant's fitted blocks against the model builder's own recipes at equal size.

    KVANT_ONNX_PYTHON=ENV/bin/python python benchmarks/onnx_llm.py MODEL WORK [--speed]

WORK keeps what is made. Sizes are of graph and weights; quality is on the bundled held-out text. Prints the quantize
step's time and peak memory too, for kvant and for the builder.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.targets.onnx.exporters import exporters

RECIPES = {
    "builder int4": "",
    "builder k_quant": "algo_config=k_quant",
    "builder k_quant_mixed": "algo_config=k_quant_mixed",
}
CHUNKS = 16


def main() -> None:
    """Make all variants and print one table."""
    model, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    costs = {}
    for name, options in RECIPES.items():
        costs[name] = build(model, work / name.replace(" ", "-"), options)
    mixed = size(work / "builder-k_quant_mixed")
    ours = {
        "kvant int4": ["-t", "int4"],
        "kvant int4 fitted": ["-t", "int4", "--calibrate", "bundled"],
        "kvant fitted, size of k_quant_mixed": ["--calibrate", "bundled", "--max-size", str(mixed)],
        "kvant fitted, size of int4": ["--calibrate", "bundled", "--max-size", str(size(work / "builder-int4"))],
    }
    for name, arguments in ours.items():
        out = work / name.replace(" ", "-").replace(",", "")
        command = [sys.executable, "-m", "kvant.cli.main", "quantize", str(model), "--to", "onnx", "-o", str(out)]
        costs[name] = timed([*command, *arguments], out)
    paths = {name: work / name.replace(" ", "-").replace(",", "") for name in costs}
    found = evaluate(list(paths.values()), against=model, chunks=CHUNKS, speed="--speed" in sys.argv, floors=False)
    base = next(s for s in found.scores if s.path.endswith("k_quant_mixed"))
    print("variant | MB | bpw | KLD | ± SE | KLD / k_quant_mixed | top-1 % | ppl | tg tok/s | quantize s | peak RSS MB")
    for (name, (seconds, peak)), s in zip(costs.items(), found.scores, strict=True):
        speed = "-" if s.tg_tok_s is None else f"{s.tg_tok_s:.1f}"
        print(
            f"{name} | {s.size_bytes / 1e6:.2f} | {s.bpw:.2f} | {s.kld_mean:.5f} | {s.kld_se:.5f} | "
            f"{s.kld_mean / base.kld_mean:.2f} | {100 * s.top1:.2f} | {s.ppl:.2f} | {speed} | {seconds:.1f} | "
            f"{peak / 1e6:.0f}",
            flush=True,
        )


def build(model: Path, out: Path, options: str) -> tuple[float, int]:
    """Run the model builder."""
    command = [exporters()[0], "-I", "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out)]
    more = ["--extra_options", options] if options else []
    return timed([*command, "-p", "int4", "-e", "cpu", "-c", str(out.parent / "cache"), *more], out)


def timed(command: list[str], out: Path) -> tuple[float, int]:
    """Run a command unless what it makes is there; return seconds and the peak memory of its process."""
    if (out / "genai_config.json").is_file():
        return float("nan"), 0
    return measured(command)


def measured(command: list[str], work: Path | None = None) -> tuple[float, int]:
    """Run a command, in a directory; return seconds and the peak memory of its largest process, bytes."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        os._exit(done.returncode)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{command}: failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def size(directory: Path) -> int:
    """Return the bytes of graph and weights."""
    return sum((directory / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


if __name__ == "__main__":
    main()
