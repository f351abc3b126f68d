from typing import Any

import numpy as np
import pytest

from kvant.devices.memory import (
    ENGINE_BYTES,
    compute_bytes,
    copied_bytes,
    engine_bytes,
    kv_cache_bytes,
    predict_ram,
    repacked_bytes,
)
from kvant.dtypes import BLOCK_TYPES

MIB = 1 << 20


class Hyper:
    """A model's hyperparameters alone."""

    def __init__(self, architecture: str, **values: Any) -> None:
        self.architecture = architecture
        self.values = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}

    def get(self, key: str, default: object = None) -> object:
        return self.values.get(key, default)

    def hyper(self, key: str, default: int | None = None) -> int:
        return int(np.max(np.asarray(self.get(f"{self.architecture}.{key}", default))))


LLAMA = Hyper(
    "llama", block_count=30, embedding_length=576, feed_forward_length=1536,
    attention__head_count=9, attention__head_count_kv=3,
)  # fmt: skip


def test_kv_cache_of_grouped_queries() -> None:
    # 30 layers, 512 cells, 3 heads of 64 for keys and for values, two bytes each.
    assert kv_cache_bytes(LLAMA, 512) == 30 * 512 * 2 * 3 * 64 * 2


@pytest.mark.parametrize(("context", "cells"), [(1, 256), (256, 256), (257, 512), (8192, 8192)])
def test_kv_cells_come_in_256s(context: int, cells: int) -> None:
    assert kv_cache_bytes(LLAMA, context) == 30 * cells * 2 * 3 * 64 * 2


def test_kv_heads_by_layer() -> None:
    model = Hyper(
        "llama", block_count=3, embedding_length=512, attention__head_count=8, attention__head_count_kv=[4, 0, 2]
    )
    assert kv_cache_bytes(model, 256) == 256 * (4 + 2) * 2 * 64 * 2


def test_gemma3_keeps_a_window_in_five_of_six_layers() -> None:
    # Figures that llama.cpp logs for Gemma 3 1B at 32768 tokens: 4 global layers of 32 MiB, 22 window layers of 1 MiB
    # for 1024 cells (window 512 and a batch of 512).
    model = Hyper(
        "gemma3", block_count=26, embedding_length=1152, feed_forward_length=6912, attention__head_count=4,
        attention__head_count_kv=1, attention__key_length=256, attention__value_length=256,
        attention__sliding_window=512,
    )  # fmt: skip
    assert kv_cache_bytes(model, 32768) == 4 * 32 * MIB + 22 * 1 * MIB
    assert kv_cache_bytes(model, 512) == 26 * 512 * 1024


def test_a_window_without_pattern_slides_nowhere() -> None:
    model = Hyper("phi3", block_count=2, embedding_length=256, attention__head_count=4, attention__sliding_window=64)
    assert kv_cache_bytes(model, 4096) == 2 * 4096 * 2 * 256 * 2


def test_one_batch_is_computed_at_a_time() -> None:
    assert compute_bytes(LLAMA, 512) == 512 * (4 * (3 * 1536 + 4 * 576) + 3 * 512)
    assert compute_bytes(LLAMA, 8192) - compute_bytes(LLAMA, 2048) == (8192 - 2048) * 512 * 3
    assert compute_bytes(LLAMA, 256) == compute_bytes(LLAMA, 512) // 2 - 256 * 256 * 3


def test_vocabulary_costs_tables() -> None:
    assert engine_bytes(LLAMA) == ENGINE_BYTES
    words = Hyper("llama")
    words.values["tokenizer.ggml.tokens"] = ["a"] * 1000
    assert engine_bytes(words) == ENGINE_BYTES + 512_000


def test_the_total_is_the_sum() -> None:
    found = predict_ram(LLAMA, 100_000_000, 4096, repacked=7)
    parts = (found.weights_bytes, found.repacked_bytes, found.kv_cache_bytes, found.compute_bytes, found.engine_bytes)
    assert found.total_bytes == sum(parts)


def test_repacked_copies() -> None:
    q4, q8 = BLOCK_TYPES["Q4_0"], BLOCK_TYPES["Q8_0"]
    types = {"token_embd.weight": q8, "blk.0.attn_q.weight": q4, "blk.0.attn_k.weight": q4, "blk.0.norm.weight": q4}
    shapes = {
        "token_embd.weight": (64, 32), "blk.0.attn_q.weight": (16, 64), "blk.0.attn_k.weight": (12, 64),
        "blk.0.norm.weight": (64,),
    }  # fmt: skip
    # Rows of attn_k do not come in eights; Q8_0 is repacked on ARM alone, where the tied embedding is copied as head.
    assert repacked_bytes(types, shapes, "x86_64") == 16 * 2 * 18
    assert repacked_bytes(types, shapes, "arm64") == 16 * 2 * 18 + 64 * 34
    assert repacked_bytes({**types, "output.weight": q8}, {**shapes, "output.weight": (64, 32)}, "arm64") == (
        16 * 2 * 18 + 64 * 34
    )
    assert repacked_bytes(types, shapes, "wasm32") == 0


def test_copies_of_single_tensors_add_up() -> None:
    types = {"token_embd.weight": "Q4_0", "blk.0.attn_q.weight": "IQ4_NL", "blk.0.attn_k.weight": "Q5_1"}
    shapes = {"token_embd.weight": (64, 32), "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (8, 32)}
    for head in ({}, {"output.weight": "Q4_0"}):
        kinds = {name: BLOCK_TYPES[kind] for name, kind in {**types, **head}.items()}
        sizes = {**shapes, "output.weight": (64, 32)}
        single = {n: copied_bytes(n, kind, sizes[n], is_tied=not head) for n, kind in kinds.items()}
        assert sum(single.values()) == repacked_bytes(kinds, sizes)
        assert single["blk.0.attn_k.weight"] == 0
        assert bool(single["token_embd.weight"]) is not bool(head)
