"""kvant beside AutoRound's GGUF export, and beside GPTQ's codes in GGUF blocks: KL divergence at equal file size.

    python -m venv autoround && autoround/bin/pip install auto-round gguf
    python -m venv gptq && gptq/bin/pip install llmcompressor
    python benchmarks/mixes.py MODEL --megabytes 105.4,98.4,93.5,88.2 -o WORK/kvant
    python benchmarks/peers.py MODEL WORK/kvant/mix-*.gguf --work WORK --autoround autoround/bin/python \
        --gptq gptq/bin/python [--only REGEX] [--chunks 0] [--json]

All are given the same windows of kvant's calibration text, token by token. AutoRound writes its files itself: by its
API, with its own defaults where RECIPES says nothing else, in float32, which is several times faster on a processor
without bfloat16 arithmetic. Of llm-compressor's GPTQ the codes, scales and zero points are carried over as they are,
scales and minima rounded to float16; what is no linear layer has the preset's type and llama.cpp's bytes.

What is made stays in WORK, so that a run can be stopped and started again. Against each of kvant's files stands the
peers' best among those at most half a percent larger, as in quality.py. Seconds are of a peer's process, imports and
loading included.
"""

import argparse
import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np

from kvant.evaluate.corpora import corpus
from kvant.files import sha256_file
from kvant.formats.gguf.header import read_header
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.huggingface.architectures.transforms import interleave_order
from kvant.formats.open import open_model
from kvant.recipes.measure.base import prepare_base
from kvant.recipes.measure.calibration import WINDOWS, read_text
from kvant.recipes.targets.gguf.write import quantize
from quality import against, facts, line, measured

TOOLS = Path(__file__).with_name("peer_tools.py")
BLOCK = 32
LIGHT = "--iters 50 --lr 5e-3"
"""AutoRound's own name for 50 steps at this rate is `auto-round-light`."""

RECIPES = {
    **{f"autoround-rtn-{s}": f"--scheme {s} --iters 0" for s in ("q4_k_m", "q4_0", "q4_1", "q5_1", "q3_k_m")},
    **{f"autoround-light-{s}": f"--scheme {s} {LIGHT} --extension" for s in ("q4_k_m", "q4_1", "q3_k_m")},
    **{f"autoround-{s}": f"--scheme {s}" for s in ("q4_k_m", "q4_1", "q3_k_m")},
    "gptq-Q4_0": "--scheme sym",
    "gptq-Q4_1": "--scheme asym",
}
"""What each peer is asked for; `iters=0` is what AutoRound recommends for GGUF, or `enable_alg_ext` with steps."""

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
HEADS = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}


def main() -> None:
    """Let the peers work, measure, and print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("ours", type=Path, nargs="*")
    parser.add_argument("--autoround", type=Path)
    parser.add_argument("--gptq", type=Path)
    parser.add_argument("--only", default=".")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--chunks", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    files = {name: file for name in RECIPES if re.search(options.only, name) and (file := made(name, options))}
    _, base = prepare_base(options.model, text=corpus(), context=512, chunks=options.chunks, threads=options.threads)
    peers = [measured(file, name, sha256_file(file)[:16], base, options) for name, file in files.items()]
    ours = [measured(file, file.stem, sha256_file(file)[:16], base, options) for file in options.ours]
    found = [{**facts(peer), **made_of(files[peer.name])} for peer in peers]
    rows = [against(file, peers, base.windows.domains) for file in ours]
    if options.json:
        print(json.dumps({"peers": found, "ours": rows}, indent=2))
        return
    for row in [*found, *rows]:
        print(line(row))


def made(name: str, options: argparse.Namespace) -> Path | None:
    """Return a peer's file, made if it is not there; None where the peer is not."""
    tool, _, rest = name.partition("-")
    place: Path = options.work / name
    if not (place / "cost.json").exists():
        python = getattr(options, tool)
        if python is None:
            return None
        windows = options.work / "windows.npy"
        if not windows.exists():
            cuts = read_text(open_model(options.model), "bundled", windows=options.windows, threads=options.threads)[2]
            np.save(windows, cuts.tokens)
        # -P: this directory holds a kernels.py, which transformers would take for a package of that name
        command = [python, "-P", TOOLS, tool, options.model, windows, place, *RECIPES[name].split()]
        subprocess.run(
            [*map(str, command), "--threads", str(options.threads)], check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    if tool == "gptq" and not list(place.glob("*.gguf")):
        carry_over(options.model, place / "codes.npz", rest, place / f"{rest}.gguf")
    return next(place.rglob("*.gguf"))


def carry_over(model: Path, codes: Path, preset: str, out: Path) -> None:
    """Write a preset's file, and in place of its linear layers' blocks those of GPTQ's codes and scales."""
    quantize(model, preset, out, overwrite=True)
    header = read_header(out)
    stored = {tensor.name: tensor for tensor in header.tensors}
    file = np.memmap(out, dtype=np.uint8, mode="r+")
    with np.load(codes) as found:
        for name in {key.rpartition(".")[0] for key in found}:
            _, _, layer, role = name.split(".", 3)
            tensor = stored[f"blk.{layer}.{NAMES[role]}.weight"]
            assert tensor.block_type.name == preset, f"{tensor.name} is {tensor.block_type.name}"
            values = [found[f"{name}.{part}"] for part in ("codes", "scale", "zero")]
            if NAMES[role] in HEADS:
                heads = header.metadata[HEADS[NAMES[role]]].value
                assert isinstance(heads, int)
                values = [value[interleave_order(heads, len(value))] for value in values]
            blocks = packed(*values, minimum=preset == "Q4_1").reshape(-1)
            file[tensor.offset : tensor.offset + tensor.n_bytes] = blocks
    file.flush()


def packed(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, *, minimum: bool) -> np.ndarray:
    """Return blocks of Q4_0 or Q4_1, uint8 [rows, bytes], of 4-bit codes.

    Args:
        codes: 0 to 15, uint8 [rows, columns].
        scale: float32 [rows, columns / 32].
        zero: Code that stands for 0, float32 [rows, columns / 32]; 8 throughout without a minimum.
        minimum: Q4_1, weight = code d + m, in place of Q4_0, weight = (code - 8) d.

    Source: ggml-common.h `block_q4_0`, `block_q4_1`: the first 16 codes are the low halves of the bytes.
    """
    if not minimum:
        assert (zero == 8).all()
    groups = codes.reshape(len(codes), -1, BLOCK)
    nibbles = groups[..., : BLOCK // 2] | groups[..., BLOCK // 2 :] << 4
    heads = [scale, -zero * scale] if minimum else [scale]
    halves = np.stack(heads, axis=-1).astype("<f2").view(np.uint8)
    return np.concatenate([halves, nibbles], axis=-1).reshape(len(codes), -1)


def made_of(file: Path) -> dict[str, object]:
    """Return the types in a file, and what its making cost."""
    kinds = Counter(tensor.block_type.name for tensor in read_gguf(file).tensors.values())
    place = next(parent for parent in file.parents if (parent / "cost.json").exists())
    cost = json.loads((place / "cost.json").read_text())
    return {"types": ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())), **cost}


if __name__ == "__main__":
    main()
