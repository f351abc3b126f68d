"""Quantizing a whole model of a billion weights: `kvant quantize` against llama.cpp's own quantizer.

The model is F16, llama-shaped (20 layers of 2048/5632, 32k tokens, 1.03 B weights); its weights are drawn from a
Student-t distribution with 5 degrees of freedom, as heavy-tailed as real ones. Both run as whole processes with the
same number of threads, one after the other on the same directory, with the source in the page cache; tensors are
then compared byte for byte. The peer is `llama-quantize` where --peer names one, else the `model_quantize` of cyllama's
prebuilt wheel in an environment of its own (ggml 0.12: older kernels, equal rules for these presets).

    python benchmarks/quantize.py [--dir DIR] [--peer llama-quantize] [--presets Q4_K_M,...] [--runs 1] [--json]
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import kvant
from kvant.devices.detect import detect
from kvant.dtypes import F16, F32
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import GGUFWriter, TensorInfo
from kvant.kernels import isa
from kvant.metadata import f32, string, u32
from kvant.quant.presets import PRESETS
from kvant.tensors import Tensor, n_rows

WIDTH, FFN, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 32, 8, 32000
POOL = 1 << 24
CYLLAMA = "cyllama==0.2.18"

# Runs a command in a fresh small process: the peak memory of a child counts that of the process that started it.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
wall, use = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(done.stderr.decode()[-2000:])
print(json.dumps({"wall_s": wall, "cpu_s": use.ru_utime + use.ru_stime, "rss_mb": use.ru_maxrss / 1024}))
"""

PEER = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
params = LlamaModelQuantizeParams()
params.nthread, params.ftype = int(sys.argv[4]), int(sys.argv[3])
sys.exit(model_quantize(sys.argv[1], sys.argv[2], params) or 0)
"""


def write_model(path: Path, layers: int) -> int:
    """Write the source; return its number of weights."""
    key = WIDTH // HEADS * KV_HEADS
    infos = [TensorInfo("token_embd.weight", (VOCABULARY, WIDTH), F16)]
    for layer in range(layers):
        matrices = {"attn_q": (WIDTH, WIDTH), "attn_k": (key, WIDTH), "attn_v": (key, WIDTH),
                    "attn_output": (WIDTH, WIDTH), "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH),
                    "ffn_down": (WIDTH, FFN)}  # fmt: skip
        infos += [TensorInfo(f"blk.{layer}.{name}.weight", shape, F16) for name, shape in matrices.items()]
        infos += [TensorInfo(f"blk.{layer}.{name}_norm.weight", (WIDTH,), F32) for name in ("attn", "ffn")]
    infos += [TensorInfo("output_norm.weight", (WIDTH,), F32), TensorInfo("output.weight", (VOCABULARY, WIDTH), F16)]
    metadata = {
        "general.architecture": string("llama"), "general.file_type": u32(1), "llama.block_count": u32(layers),
        "llama.context_length": u32(2048), "llama.embedding_length": u32(WIDTH), "llama.feed_forward_length": u32(FFN),
        "llama.attention.head_count": u32(HEADS), "llama.attention.head_count_kv": u32(KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5), "llama.vocab_size": u32(VOCABULARY),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    # Every tensor is a window of one pool of samples, at a place and scale of its own.
    pool = (rng.standard_t(5, POOL) * 0.02).astype(np.float32)
    with GGUFWriter(path, metadata, infos, overwrite=True) as writer:
        for info in infos:
            left = info.n_bytes // (2 if info.block_type == F16 else 4)
            if info.block_type == F32:
                writer.append(np.ones(left, np.float32).view(np.uint8))
                continue
            scale = np.float32(rng.uniform(0.5, 2))
            while left:
                start = int(rng.integers(0, POOL - 1))
                window = pool[start : start + left]
                writer.append((window * scale).astype(np.float16).view(np.uint8))
                left -= len(window)
    return sum(int(np.prod(info.shape)) for info in infos)


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of a command."""
    done = subprocess.run([sys.executable, "-I", "-c", MEASURE, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def cyllama_python(directory: Path) -> Path:
    """Python of an environment with cyllama, made if it is not there."""
    python = directory / "cyllama" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", CYLLAMA, "numpy"], check=True)
    return python


def identical(ours: Path, theirs: Path) -> bool:
    """Whether all tensors have the same types and bytes."""
    a, b = read_gguf(ours).tensors, read_gguf(theirs).tensors

    def digest(tensor: Tensor) -> str:
        return hashlib.sha256(np.ascontiguousarray(tensor.read_bytes(0, n_rows(tensor))).data).hexdigest()

    return list(a) == list(b) and all(a[n].block_type == b[n].block_type and digest(a[n]) == digest(b[n]) for n in a)


def compare(source: Path, preset: str, peer: list[str], arguments: argparse.Namespace) -> dict[str, object]:
    """Run both programs and compare."""
    ours, theirs = source.with_name("kvant.gguf"), source.with_name("peer.gguf")
    threads = str(arguments.threads)
    kind = preset if arguments.peer else str(PRESETS[preset].file_type)
    program = str(Path(sys.executable).with_name("kvant"))
    kvant_command = [program, "quantize", str(source), "-t", preset, "-o", str(ours),
                     "--overwrite", "--threads", threads, "--json"]  # fmt: skip
    runs: dict[str, list[dict[str, float]]] = {"kvant": [], "peer": []}
    same = True
    for _ in range(arguments.runs):
        for path in (ours, theirs):
            path.unlink(missing_ok=True)
        runs["kvant"].append(measure(kvant_command))
        runs["peer"].append(measure([*peer, str(source), str(theirs), kind, threads]))
        same = same and identical(ours, theirs)
    size = ours.stat().st_size
    for path in (ours, theirs):
        path.unlink()
    medians = {
        f"{who}_{key}": round(statistics.median(run[key] for run in found), 2)
        for who, found in runs.items() for key in found[0]
    }  # fmt: skip
    return {
        "preset": preset, **medians, "wall_ratio": round(medians["peer_wall_s"] / medians["kvant_wall_s"], 2),
        "cpu_ratio": round(medians["peer_cpu_s"] / medians["kvant_cpu_s"], 2), "identical": same, "size_bytes": size,
    }  # fmt: skip


def main() -> None:
    """Make the model, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="where the files go (6 GB); a temporary directory by default")
    parser.add_argument("--peer", help="path of llama-quantize; cyllama's model_quantize by default")
    parser.add_argument("--presets", default="Q8_0,Q4_0,Q4_K_M,IQ4_XS")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="kvant-benchmark-", dir=arguments.dir))
    try:
        source = directory / "model.gguf"
        n_weights = write_model(source, arguments.layers)
        name = f"llama-quantize ({arguments.peer})" if arguments.peer else f"{CYLLAMA} model_quantize"
        peer = [arguments.peer] if arguments.peer else [str(cyllama_python(directory)), "-c", PEER]
        rows = [compare(source, p, peer, arguments) for p in arguments.presets.split(",")]
    finally:
        shutil.rmtree(directory)
    report = {
        "machine": f"{detect(measure=False).cpu}, {os.cpu_count()} cores, {isa.level()}",
        "system": platform.platform(), "kvant": kvant.__version__, "peer": name, "directory": str(directory.parent),
        "weights": n_weights, "threads": arguments.threads, "results": rows,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(*(f"{key}: {value}" for key, value in report.items() if key != "results"), sep="\n")
    columns = ("preset", "kvant_wall_s", "peer_wall_s", "wall_ratio", "kvant_cpu_s", "peer_cpu_s", "cpu_ratio",
               "kvant_rss_mb", "peer_rss_mb", "identical")  # fmt: skip
    print(" ".join(f"{c:>12}" for c in columns))
    for row in rows:
        print(" ".join(f"{row[c]!s:>12}" for c in columns))


if __name__ == "__main__":
    main()
