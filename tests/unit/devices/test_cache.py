import numpy as np
import pytest

from architectures import LLAMA, Hyper, metadata
from kvant.devices.cache import MAX_LAYERS, cache_bytes, layers_run, recurrent_layers, sliding_layers
from kvant.metadata import Value

MIB = 1 << 20


class Read:
    """The metadata of a tiny file of an architecture."""

    def __init__(self, name: str) -> None:
        self.metadata: dict[str, Value] = metadata(name)
        self.architecture = str(self.metadata["general.architecture"].value)

    def get(self, key: str, default: object = None) -> object:
        return self.metadata[key].value if key in self.metadata else default

    def hyper(self, key: str, default: int | None = None) -> int:
        return int(np.max(np.asarray(self.get(f"{self.architecture}.{key}", default))))


# Layers by what they keep, as the configurations of the models say: s a window, g everything, r a state, - nothing.
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("gemma2", "sgsg"), ("cohere2", "sssg"), ("olmo3", "sssg"), ("gptoss", "sgsg"), ("llama4", "sssg"),
        ("gemma4", "sssssgsssssg"), ("lfm2", "rgrg"), ("qwen35moe", "rrrg"), ("qwen3next", "rrrg"), ("mamba2", "rrrr"),
        ("granitehybrid", "rgrr"), ("jamba", "rgrr"), ("qwen3moe", "gggg"), ("exaone4", "sssg" * 16),
    ],
)  # fmt: skip
def test_what_layers_keep(name: str, layers: str) -> None:
    model = Read(name)
    states, (slides, _) = recurrent_layers(model), sliding_layers(model)
    found = ["r" if state else "s" if slide else "g" for state, slide in zip(states, slides, strict=True)]
    assert "".join(found) == layers


def test_latent_attention_keeps_one_key_and_no_value() -> None:
    # 4 layers of one key of 256 compressed and 32 rotary weights.
    assert cache_bytes(Read("deepseek2"), 2048) == 4 * 2048 * (256 + 32) * 2


def test_layers_that_share_keys_keep_none() -> None:
    # Of 12 layers the first 6 keep their own: 5 with a window of 256 and heads of 64, 1 with all and a head of 128.
    assert cache_bytes(Read("gemma4"), 4096) == (5 * 768 * 4 * 2 * 64 + 4096 * 4 * 2 * 128) * 2


def test_texts_read_at_once_keep_nothing() -> None:
    assert cache_bytes(Read("bert"), 4096) == 0


def test_a_window_that_the_engine_ignores() -> None:
    model = Hyper("llama", block_count=2, embedding_length=256, attention__head_count=4, attention__sliding_window=64)
    assert cache_bytes(model, 4096) == 2 * 4096 * 2 * 256 * 2


def test_heads_that_predict_ahead_keep_nothing() -> None:
    model = Hyper("glm4moe", block_count=5, nextn_predict_layers=1)
    assert layers_run(model) == 4


def test_what_a_hostile_file_says_bounds_nothing_here() -> None:
    assert cache_bytes(Hyper("qwen35", block_count=2**32 - 1, attention__head_count="x"), 256) >= 0
    assert layers_run(Hyper("llama", block_count=2**32 - 1)) == MAX_LAYERS
    assert cache_bytes(Hyper("gemma3", block_count=-4, attention__sliding_window=[]), 256) == 0


def test_kv_cache_of_grouped_queries() -> None:
    # 30 layers, 512 cells, 3 heads of 64 for keys and for values, two bytes each.
    assert cache_bytes(LLAMA, 512) == 30 * 512 * 2 * 3 * 64 * 2


@pytest.mark.parametrize(("context", "cells"), [(1, 256), (256, 256), (257, 512), (8192, 8192)])
def test_kv_cells_come_in_256s(context: int, cells: int) -> None:
    assert cache_bytes(LLAMA, context) == 30 * cells * 2 * 3 * 64 * 2


def test_kv_heads_by_layer() -> None:
    model = Hyper(
        "llama", block_count=3, embedding_length=512, attention__head_count=8, attention__head_count_kv=[4, 0, 2]
    )
    assert cache_bytes(model, 256) == 256 * (4 + 2) * 2 * 64 * 2


def test_gemma3_keeps_a_window_in_five_of_six_layers() -> None:
    # Figures that llama.cpp logs for Gemma 3 1B at 32768 tokens: 4 global layers of 32 MiB, 22 window layers of 1 MiB
    # for 1024 cells (window 512 and a batch of 512).
    model = Hyper(
        "gemma3", block_count=26, embedding_length=1152, feed_forward_length=6912, attention__head_count=4,
        attention__head_count_kv=1, attention__key_length=256, attention__value_length=256,
        attention__sliding_window=512,
    )  # fmt: skip
    assert cache_bytes(model, 32768) == 4 * 32 * MIB + 22 * 1 * MIB
    assert cache_bytes(model, 512) == 26 * 512 * 1024


def test_a_window_without_pattern_slides_nowhere() -> None:
    model = Hyper("phi3", block_count=2, embedding_length=256, attention__head_count=4, attention__sliding_window=64)
    assert cache_bytes(model, 4096) == 2 * 4096 * 2 * 256 * 2
