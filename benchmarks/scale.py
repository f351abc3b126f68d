"""What calibrating a large model takes, by extrapolation from a slice of it: seconds and memory for so many cores.

Nothing here has run the whole model. A slice of a few layers with random weights and the real shapes is run in the
engine for its seconds per token. For every length of its rows a Hessian of that size is made ready and 64 rows are
encoded in every type, each length in a process of its own, whose memory is what it took at its peak. All of it is
measured in CPU seconds on one thread and multiplied: by layers, rows, tokens, matrices. Seconds on N cores are these
over N times --busy, the share of the time that threads work; `--threads N` measures it, on an idle machine.

    statistics = tokens x (passes x seconds per token + sum over inputs of columns^2 / 2 products)
    probes     = tokens tried x matrices x seconds per token
    weighing   = sum over matrices of factoring + 64 rows in every type that divides them
    encoding   = sum over matrices of factoring + all rows in --type; for every file that is made

Experts are run as one dense layer of the width of those used, and have a Hessian each; Gemma as a Llama of its sizes.

    python benchmarks/scale.py [--models llama-3.1-8b,gemma-3-27b] [--layers 4] [--cores 2,16] [--type Q4_K]
                               [--windows 64] [--ram 4e9] [--threads 1] [--busy 0.95] [--longest N] [--json]
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvant.calibrate.parts import Part, open_watched
from kvant.calibrate.survey import Survey
from kvant.dtypes import F32, block_type
from kvant.kernels import fitting, linalg
from kvant.quant.curvature import Curvatures
from kvant.quant.stream import Job, encode_stream
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.rounding import BYTES_PER_ELEMENT, SAMPLE_ROWS
from kvant.recipes.measure.rounding import SWEEPS as WEIGH_SWEEPS
from kvant.runtime.process import EngineProcess
from kvant.tensors import array_tensor
from kvant.testing.tiny_models import write_tiny_model

WINDOW_TOKENS = 512
TIMED_TOKENS = 128
MOMENT_ROWS = 256
BUSY_ROWS, BUSY_COLUMNS, BUSY_MATRICES = 2048, 2048, 6
PROGRAM_BYTES = 150 << 20
"""Memory of the program itself with its libraries, and of pieces of weights on their way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a published model. Source: its config.json."""

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    experts: int = 1
    used: int = 1

    def matrices(self) -> list[tuple[str, int, int, int]]:
        """Name, stack, rows and columns of the matrices of a layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            ("attn_q", 1, q, self.hidden), ("attn_k", 1, kv, self.hidden), ("attn_v", 1, kv, self.hidden),
            ("attn_output", 1, self.hidden, q), ("ffn_gate", self.experts, self.ffn, self.hidden),
            ("ffn_up", self.experts, self.ffn, self.hidden), ("ffn_down", self.experts, self.hidden, self.ffn),
        ]  # fmt: skip

    @property
    def weights(self) -> int:
        """Weights of all matrices."""
        layer = sum(stack * rows * columns for _, stack, rows, columns in self.matrices())
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def layer_products(self) -> int:
        """Products of two numbers per token in a layer."""
        return sum(rows * columns * (self.used if stack > 1 else 1) for _, stack, rows, columns in self.matrices())


SHAPES = {
    "smollm2-135m": Shape(
        family="llama", layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, tied=True
    ),
    "qwen2.5-coder-1.5b": Shape(
        family="qwen2", layers=28, hidden=1536, ffn=8960, heads=12, kv_heads=2, head_dim=128, vocabulary=151936,
        tied=True,
    ),
    "llama-3.1-8b": Shape(
        family="llama", layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256,
        tied=False,
    ),
    "gemma-3-27b": Shape(
        family="llama", layers=62, hidden=5376, ffn=21504, heads=32, kv_heads=16, head_dim=128, vocabulary=262208,
        tied=True,
    ),
    "qwen3-30b-a3b": Shape(
        family="qwen3", layers=48, hidden=2048, ffn=768, heads=32, kv_heads=4, head_dim=128, vocabulary=151936,
        tied=False, experts=128, used=8,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """CPU seconds with rows of a length: of making a Hessian ready, and per weight by type and passes of descent."""

    ready_s: float
    weigh_s: dict[str, float]
    encode_s: float
    peak_bytes: int


def time_rounding(columns: int, kind: str) -> Rounding:
    """Make a Hessian of a length ready and encode some rows; to be run in a process of its own."""
    random = np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = random.standard_normal((MOMENT_ROWS, columns), np.float32)
    rows = random.standard_normal((SAMPLE_ROWS, columns), np.float32)
    moment = linalg.gram(x, out=np.zeros((columns, columns), np.float32), threads=1)
    start = time.process_time()
    curvature = fitting.prepare(moment, damping=0.5, threads=1)
    ready_s = time.process_time() - start

    def per_weight(kind: str, sweeps: int) -> float:
        start = time.process_time()
        fitting.fit(rows, kind, curvature, sweeps=sweeps, threads=1)
        return (time.process_time() - start) / rows.size

    kinds = [name for name in sorted(fitting.FITTABLE) if columns % block_type(name).block_length == 0]
    weigh_s = {name: per_weight(name, WEIGH_SWEEPS) for name in kinds}
    encode_s = per_weight(kind if kind in kinds else kinds[0], fitting.SWEEPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Rounding(ready_s=ready_s, weigh_s=weigh_s, encode_s=encode_s, peak_bytes=peak << 10)


def time_slice(shape: Shape, layers: int, directory: Path) -> float:
    """CPU seconds per token of a slice in the engine."""
    source = write_tiny_model(
        shape.family, directory / "hf", num_hidden_layers=layers, hidden_size=shape.hidden,
        intermediate_size=shape.ffn * shape.used, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
    )  # fmt: skip
    base = directory / "slice.gguf"
    convert(source, base, to="gguf", type="F32")
    tokens = np.arange(TIMED_TOKENS, dtype=np.int32) % 256

    def seconds(times: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with EngineProcess() as engine:
            open_watched(engine, base, n_ctx=len(tokens), threads=1)
            for _ in range(times):
                engine.listen(tokens)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return (seconds(3) - seconds(1)) / 2 / len(tokens)


def time_products() -> float:
    """Products of two numbers per CPU second in sums of second moments."""
    x = np.random.default_rng(0).standard_normal((WINDOW_TOKENS, BUSY_COLUMNS), np.float32)
    out = np.zeros((BUSY_COLUMNS, BUSY_COLUMNS), np.float32)
    start = time.process_time()
    linalg.gram(x, out=out, threads=1)
    return len(x) * BUSY_COLUMNS**2 / 2 / (time.process_time() - start)


def whole(shape: Shape, slice_s: float, layers: int) -> Survey:
    """What a survey of the whole model would say, by the seconds per token of its slice."""
    token_s = slice_s / layers * (shape.layers + shape.vocabulary * shape.hidden / shape.layer_products)
    parts = []
    for layer in range(shape.layers):
        names = {columns: f"blk.{layer}.{name}" for name, _, _, columns in reversed(shape.matrices())}
        for name, stack, rows, columns in shape.matrices():
            own = f"blk.{layer}.{name}.weight"
            leader = own if name in ("attn_k", "attn_output") else f"{names[columns]}.weight"
            leader = f"blk.{layer}.attn_k.weight" if name == "attn_v" else leader
            leader = f"blk.{layer}.ffn_gate.weight" if name == "ffn_up" else own if name == "ffn_gate" else leader
            role = "experts" if stack > 1 else "linear"
            parts.append(
                Part(name=own, role=role, columns=columns, rows=rows, stack=stack, input=leader, leader=leader)
            )
    head = "token_embd.weight" if shape.tied else "output.weight"
    parts.append(
        Part(name=head, role="linear", columns=shape.hidden, rows=shape.vocabulary, stack=1, input=head, leader=head)
    )
    return Survey(parts=tuple(parts), token_s=token_s, products_s=time_products(), window_tokens=WINDOW_TOKENS)


def sums_s(shape: Shape, found: Survey, windows: int) -> float:
    """CPU seconds of second moments; of experts each token goes to those used."""
    leaders = [part for part in found.parts if part.leader == part.name]
    products = sum(part.columns**2 / 2 * (shape.used if part.stack > 1 else 1) for part in leaders)
    return windows * WINDOW_TOKENS * products / found.products_s


def busy_share(threads: int) -> float:
    """Share of so many threads' time that encoding a stream of matrices under Hessians uses."""
    random = np.random.default_rng(0)
    x = random.standard_normal((BUSY_ROWS, BUSY_COLUMNS), np.float32)
    moment = linalg.gram(x, out=np.zeros((BUSY_COLUMNS, BUSY_COLUMNS), np.float32), threads=threads)
    tensors = [array_tensor(f"blk.{i}.ffn_up.weight", x, F32) for i in range(BUSY_MATRICES)]
    curvatures = Curvatures(names=[t.name for t in tensors], hessian=lambda _: moment, sha256="")
    kind = block_type("Q4_K")
    jobs = [Job(tensor=t, target=kind, encoder=curvatures.encoder(t, kind, threads=threads)) for t in tensors]
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in encode_stream(jobs, threads=threads):
        pass
    return (time.process_time() - cpu) / (time.perf_counter() - wall) / threads


def cpu_seconds(
    shape: Shape, found: Survey, rounding: dict[int, Rounding], windows: int, ram_bytes: int
) -> dict[str, float]:
    """CPU seconds of every step for the whole model."""

    def of(columns: int) -> Rounding:  # beyond --longest: rows by the square of their length, a factor by its cube
        nearest = min(rounding, key=lambda n: abs(n - columns))
        by = columns / nearest
        r = rounding[nearest]
        grown = {kind: s * max(1.0, by) for kind, s in r.weigh_s.items()}
        return replace(r, ready_s=r.ready_s * by**3, weigh_s=grown, encode_s=r.encode_s * max(1.0, by))

    weigh = encode = 0.0
    matrices = [(stack, rows, columns, shape.layers) for _, stack, rows, columns in shape.matrices()]
    for stack, rows, columns, times in [*matrices, (1, shape.vocabulary, shape.hidden, 1 if shape.tied else 2)]:
        r = of(columns)
        weigh += times * (r.ready_s + min(rows * stack, SAMPLE_ROWS) * columns * sum(r.weigh_s.values()))
        encode += times * stack * (r.ready_s + rows * columns * r.encode_s)
    text_s = windows * WINDOW_TOKENS * found.token_s
    return {
        "statistics": found.n_passes(ram_bytes) * text_s + sums_s(shape, found, windows),
        "probes": found.probes_s(windows),
        "weighing": weigh,
        "encoding one file": encode,
    }


def ram(shape: Shape, found: Survey, ram_bytes: int, cores: int) -> dict[str, int]:
    """Bytes at the peak of every step, beside the model's file that the engine maps."""
    longest = max(columns for _, _, _, columns in shape.matrices())
    ready, weighed = 12 * longest**2, BYTES_PER_ELEMENT * longest**2
    pieces = cores * 64 * longest * 4 * 8
    return {
        "statistics": PROGRAM_BYTES + max(min(ram_bytes, found.disk_bytes), found.largest_bytes),
        "weighing": PROGRAM_BYTES + max(weighed, min(ram_bytes, weighed * cores)) + pieces,
        "encoding one file": PROGRAM_BYTES + max(ready, min(ram_bytes, ready * cores)) + pieces,
    }


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per model and number of cores."""
    ram_bytes = int(arguments.ram)
    busy = busy_share(arguments.threads) if arguments.threads > 1 else arguments.busy
    spawn = multiprocessing.get_context("spawn")
    known: dict[int, Rounding] = {}
    for name in arguments.models.split(","):
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as directory:
            found = whole(shape, time_slice(shape, arguments.layers, Path(directory)), arguments.layers)
        lengths = {min(columns, arguments.longest) for _, _, _, columns in shape.matrices()}
        for columns in sorted(lengths - set(known)):
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                known[columns] = pool.submit(time_rounding, columns, arguments.type).result()
        seconds = cpu_seconds(shape, found, {n: known[n] for n in lengths}, arguments.windows, ram_bytes)
        for cores in map(int, arguments.cores.split(",")):
            taken = ram(shape, found, ram_bytes, cores)
            yield {
                "model": name, "cores": cores, "busy": busy, "measured layers": arguments.layers,
                "longest measured rows": max(lengths), "passes over the text": found.n_passes(ram_bytes),
                "minutes": {step: s / cores / busy / 60 for step, s in seconds.items()},
                "all minutes": sum(seconds.values()) / cores / busy / 60,
                "GB": {step: b / 1e9 for step, b in taken.items()},
                "GB on disk": found.disk_bytes / 1e9,
                "CPU seconds": seconds,
                "ready GB, measured": max(known[n].peak_bytes for n in lengths) / 1e9,
            }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--layers", type=int, default=4, help="of the slice that the engine runs")
    parser.add_argument("--cores", default="2,16")
    parser.add_argument("--type", default="Q4_K", help="that all matrices are encoded in")
    parser.add_argument("--windows", type=int, default=64, help="of 512 tokens")
    parser.add_argument("--ram", type=float, default=4e9, help="bytes for sums and Hessians ahead")
    parser.add_argument("--threads", type=int, default=1, help="measure the busy share with so many")
    parser.add_argument("--busy", type=float, default=0.95, help="share of the time that cores work, if not measured")
    parser.add_argument("--longest", type=int, default=1 << 20, help="longest rows to measure; longer by their cube")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for row in measure(arguments):
        if arguments.json:
            sys.stdout.write(json.dumps(row) + "\n")
            continue
        sys.stdout.write(f"{row['model']} on {row['cores']} cores, extrapolated, never run as a whole:\n")
        for key, value in row.items():
            if key in ("model", "cores"):
                continue
            told = value if isinstance(value, dict) else {"": value}
            sys.stdout.write(f"  {key}: " + ", ".join(f"{k} {v:.4g}".strip() for k, v in told.items()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
