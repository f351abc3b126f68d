"""What runs in the peers' own environments for peers.py: it knows nothing of kvant.

python benchmarks/peer_tools.py autoround MODEL WINDOWS.npy OUT --scheme q4_k_m --iters 0
python benchmarks/peer_tools.py gptq MODEL WINDOWS.npy OUT --scheme asym
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

GROUP = 32
"""Weights that share a scale: the length of a block of Q4_0 and Q4_1."""


def main() -> None:
    """Run one peer, and write what it cost beside what it made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("autoround", "gptq"))
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--extension", action="store_true")
    parser.add_argument("--observer")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    {"autoround": autoround, "gptq": gptq}[options.peer](options)
    used = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "cpu_s": used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime,
        "wall_s": time.monotonic() - start,
        "peak_mb": used.ru_maxrss / 1000,
    }
    (options.out / "cost.json").write_text(json.dumps(cost))
    print(cost)


def autoround(options: argparse.Namespace) -> None:
    """Let AutoRound tune the model for a GGUF preset and write the file; what is not given is its default."""
    from auto_round import AutoRound

    tokens = torch.from_numpy(np.load(options.windows).astype(np.int64))
    given = {"lr": options.lr} if options.lr else {}
    tuner = AutoRound(
        str(options.model), scheme=f"gguf:{options.scheme}", dataset=batches(tokens, options.batch),
        seqlen=tokens.shape[1], nsamples=len(tokens), batch_size=options.batch, iters=options.iters,
        enable_alg_ext=options.extension, enable_torch_compile=False, device_map="cpu", amp=False, **given,
    )  # fmt: skip
    tuner.quantize_and_save(str(options.out), format=f"gguf:{options.scheme}")


def batches(tokens: torch.Tensor, size: int) -> Any:
    """Return the windows of tokens, int64 [n, 512], as AutoRound reads them: a loader of batches."""
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    return torch.utils.data.DataLoader(rows, batch_size=size)


def gptq(options: argparse.Namespace) -> None:
    """Let llm-compressor round the layers by GPTQ in groups of 32, and keep its codes, scales and zero points."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    tokens = np.load(options.windows)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    weights = {
        "num_bits": 4, "type": "int", "symmetric": options.scheme == "sym", "strategy": "group", "group_size": GROUP,
        **({"observer": options.observer} if options.observer else {}),
    }  # fmt: skip
    rounding = GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
    rows = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})
    oneshot(
        model=model, dataset=rows, recipe=rounding, num_calibration_samples=len(tokens), max_seq_length=tokens.shape[1]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez(options.out / "codes.npz", allow_pickle=False, **dict(codes(model, options.scheme == "sym")))


def codes(model: torch.nn.Module, symmetric: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Yield by name what GPTQ left of each matrix.

    `NAME.codes` are uint8 [rows, columns] from 0 to 15, `NAME.scale` float32 [rows, columns / 32], and `NAME.zero` the
    code that stands for 0, float32 like the scale: weight = (code - zero) * scale.
    """
    for name, module in model.named_modules():
        if getattr(module, "weight_scale", None) is None:
            continue
        weight, scale = module.weight.detach().float(), module.weight_scale.detach().float()
        zero = torch.zeros_like(scale) if symmetric else module.weight_zero_point.detach().float()
        groups = weight.view(len(weight), -1, GROUP) / scale[..., None] + zero[..., None]
        whole = groups.round()
        assert (groups - whole).abs().max() < 0.01, f"{name}: weights are not on the grid of its scales"
        assert whole.abs().max() <= 8, f"{name}: codes are beyond 4 bits"
        assert whole.max() <= 7, f"{name}: codes are beyond 4 bits"
        yield f"{name}.codes", (whole + 8).to(torch.uint8).view(weight.shape).numpy()
        yield f"{name}.scale", scale.numpy()
        yield f"{name}.zero", (zero + 8).numpy()


if __name__ == "__main__":
    main()
