import pytest

from architectures import LLAMA, Hyper
from kvant.devices.memory import (
    ENGINE_BYTES,
    compute_bytes,
    copied_bytes,
    engine_bytes,
    predict_ram,
    repacked_bytes,
)
from kvant.dtypes import BLOCK_TYPES

MIB = 1 << 20


def test_one_batch_is_computed_at_a_time() -> None:
    assert compute_bytes(LLAMA, 512) == 512 * (4 * (3 * 1536 + 4 * 576) + 3 * 512)
    assert compute_bytes(LLAMA, 8192) - compute_bytes(LLAMA, 2048) == (8192 - 2048) * 512 * 3
    assert compute_bytes(LLAMA, 256) == compute_bytes(LLAMA, 512) // 2 - 256 * 256 * 3


def test_vocabulary_costs_tables() -> None:
    assert engine_bytes(LLAMA) == ENGINE_BYTES
    words = Hyper("llama")
    words.values["tokenizer.ggml.tokens"] = ["a"] * 1000
    assert engine_bytes(words) == ENGINE_BYTES + 512_000


def test_models_that_make_vectors_have_room_for_the_logits_of_every_token() -> None:
    words = Hyper("llama")
    words.values["tokenizer.ggml.tokens"] = ["a"] * 1000
    plain = compute_bytes(words, 512)
    assert compute_bytes(words, 1024, 1024) > 2 * plain + 1024 * 4 * 1000  # read at once for a vector
    words.values["llama.pooling_type"] = 1
    assert compute_bytes(words, 512) == plain + 512 * 4 * 1000


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


def test_stacked_experts_are_copied_and_other_stacks_are_not() -> None:
    q4 = BLOCK_TYPES["Q4_0"]
    assert copied_bytes("blk.0.ffn_up_exps.weight", q4, (4, 16, 64), is_tied=False) == 4 * 16 * 2 * 18
    assert copied_bytes("blk.0.ffn_up_exps.weight", q4, (4, 12, 64), is_tied=False) == 0
    assert copied_bytes("blk.0.attn_k_b.weight", q4, (4, 16, 64), is_tied=False) == 0
    assert copied_bytes("per_layer_token_embd.weight", q4, (512, 64), is_tied=True) == 0


def test_a_mixture_computes_with_the_experts_it_uses() -> None:
    values = {"block_count": 4, "embedding_length": 1024, "feed_forward_length": 1024, "expert_count": 32}
    mixture = Hyper("qwen3moe", **values, expert_used_count=8, expert_feed_forward_length=256)
    # 38 MiB of the 40 that the engine reports for such a model at 2048 tokens are no mask.
    assert compute_bytes(mixture, 2048) == pytest.approx(40 * MIB, rel=0.05)
