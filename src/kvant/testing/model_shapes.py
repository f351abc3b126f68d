"""Shapes of real models: names and shapes of all tensors, and the metadata that rules of presets read; no weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from kvant.dtypes import F16, F32, BlockType
from kvant.metadata import Value, f32, string, u32
from kvant.model import Model
from kvant.quant.roles import file_order, is_quantizable, layer_of
from kvant.tensors import LazyTensor


@dataclass(frozen=True)
class Shape:
    """What decides the tensors of a dense or mixture model."""

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    head: int | None = None
    tied: bool = False
    experts: int = 0
    fused_qkv: bool = False
    fused_ffn: bool = False


SHAPES = {
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, tied=True),
    "tinyllama-1.1b": Shape("llama", 22, 2048, 5632, 32, 4, 32000),
    "llama-2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000),
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 128256, tied=True),
    "llama-3.1-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128256),
    "llama-65b": Shape("llama", 80, 8192, 22016, 64, 64, 32000),
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 151936, tied=True),
    "qwen2.5-72b": Shape("qwen2", 80, 8192, 29568, 64, 8, 152064),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 151936, head=128, tied=True),
    "gemma-3-270m": Shape("gemma3", 18, 640, 2048, 4, 1, 262144, head=256, tied=True),
    "gemma-3-4b": Shape("gemma3", 34, 2560, 10240, 8, 4, 262208, head=256, tied=True),
    "phi-3-mini": Shape("phi3", 32, 3072, 8192, 32, 32, 32064, fused_qkv=True, fused_ffn=True),
    "granite-3.1-2b": Shape("granite", 40, 2048, 8192, 32, 8, 49155, tied=True),
    "mixtral-8x7b": Shape("llama", 32, 4096, 14336, 32, 8, 32000, experts=8),
    "qwen3-30b-a3b": Shape("qwen3moe", 48, 2048, 768, 32, 4, 151936, head=128, experts=128),
    "falcon-7b": Shape("falcon", 32, 4544, 18176, 71, 1, 65024, head=64, fused_qkv=True),
    "two-layers": Shape("llama", 2, 256, 512, 4, 4, 512),
}  # fmt: skip


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in NumPy order."""
    width, head = shape.width, shape.head or shape.width // shape.heads
    query, key = shape.heads * head, shape.kv_heads * head
    experts = (shape.experts,) if shape.experts else ()
    suffix = "_exps" if shape.experts else ""
    yield "token_embd.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        blk = f"blk.{layer}."
        yield blk + "attn_norm.weight", (width,)
        if shape.fused_qkv:
            yield blk + "attn_qkv.weight", (query + 2 * key, width)
        else:
            yield blk + "attn_q.weight", (query, width)
            yield blk + "attn_k.weight", (key, width)
            yield blk + "attn_v.weight", (key, width)
        yield blk + "attn_output.weight", (width, query)
        yield blk + "ffn_norm.weight", (width,)
        if shape.experts:
            yield blk + "ffn_gate_inp.weight", (shape.experts, width)
        if shape.architecture != "falcon" and not shape.fused_ffn:
            yield blk + f"ffn_gate{suffix}.weight", (*experts, shape.ffn, width)
        yield blk + f"ffn_up{suffix}.weight", (*experts, shape.ffn * (2 if shape.fused_ffn else 1), width)
        yield blk + f"ffn_down{suffix}.weight", (*experts, width, shape.ffn)
    yield "output_norm.weight", (width,)
    if not shape.tied:
        yield "output.weight", (shape.vocabulary, width)


def metadata(shape: Shape) -> dict[str, Value]:
    """The hyperparameters, under their GGUF keys."""
    values: dict[str, Value] = {
        "block_count": u32(shape.layers),
        "context_length": u32(2048),
        "embedding_length": u32(shape.width),
        "feed_forward_length": u32(shape.ffn),
        "attention.head_count": u32(shape.heads),
        "attention.head_count_kv": u32(shape.kv_heads),
        "attention.layer_norm_rms_epsilon": f32(1e-5),
        "attention.layer_norm_epsilon": f32(1e-5),
        "attention.key_length": u32(shape.head or shape.width // shape.heads),
        "attention.value_length": u32(shape.head or shape.width // shape.heads),
        "attention.sliding_window": u32(512),
        "rope.dimension_count": u32(shape.head or shape.width // shape.heads),
        "vocab_size": u32(shape.vocabulary),
        "logit_scale": f32(8.0),
    }
    if shape.experts:
        values |= {
            "expert_count": u32(shape.experts),
            "expert_used_count": u32(2),
            "expert_feed_forward_length": u32(shape.ffn),
        }
    return {
        "general.architecture": string(shape.architecture),
        **{f"{shape.architecture}.{key}": value for key, value in values.items()},
    }


def shape_model(shape: Shape) -> Model:
    """A model of a shape; its weights, F16 matrices and F32 vectors, are zeros made when they are read."""

    def tensor(name: str, dims: tuple[int, ...]) -> LazyTensor:
        kind = F16 if is_quantizable(name, dims, shape.architecture) else F32
        return LazyTensor(name=name, shape=dims, block_type=kind, read=_zeros(kind, dims[-1]))

    tensors = {name: tensor(name, dims) for name, dims in tensor_shapes(shape)}
    return Model(metadata=metadata(shape), tensors=tensors, path=Path("shape.gguf"), files=())


def packed(types: dict[str, str]) -> dict[str, str]:
    """Write types per kind of tensor as runs over the layers: `{"attn_v.weight": "Q6_K*2 Q4_K*28"}`.

    The type of most kinds stands under `*` instead; F32 vectors are left out.
    """
    kinds: dict[str, list[str]] = {}
    for name in file_order(types):
        kind = name if layer_of(name) is None else name.split(".", 2)[2]
        kinds.setdefault(kind, []).append(types[name])
    runs = {
        kind: " ".join(f"{name}*{len(list(run))}" for name, run in groupby(seen))
        for kind, seen in kinds.items()
        if not kind.endswith("_norm.weight")
    }
    single = [seen[0] for kind, seen in kinds.items() if kind in runs and len(set(seen)) == 1]
    common = max(single, key=lambda name: (single.count(name), name))
    return {"*": common} | {
        kind: run for kind, run in runs.items() if {part.split("*")[0] for part in run.split()} != {common}
    }


def _zeros(kind: BlockType, n: int) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: np.zeros((stop - start, kind.row_bytes(n)), np.uint8)
