"""Qwen2, Qwen2.5 (biases on queries, keys and values) and Qwen3 (norms on queries and keys)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES, QK_NORMS
from kvant.formats.huggingface.architectures.pooling import POOLED, pooling
from kvant.formats.huggingface.architectures.qwen3_reranker import reranker
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.config import Config, shown

WINDOWS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})


def unseen_window(config: Config) -> int | None:
    """Return the window of the upper layers, if they have one; llama.cpp's qwen2 and qwen3 have none."""
    if not config.flag("use_sliding_window") or not config.get("sliding_window"):
        return None
    kinds, first = config.items("layer_types"), config.get("max_window_layers", 28)
    windowed = "sliding_attention" in kinds if kinds is not None else isinstance(first, int) and first < config.n_layers
    return config.integer("sliding_window") if windowed else None


def check_qwen2(config: Config) -> None:
    """Refuse heads of another length than hidden size over heads, which llama.cpp's qwen2 does not load."""
    check_whole_rotation(config)
    derived = config.integer("hidden_size") // config.integer("num_attention_heads")
    if config.head_dim != derived:
        raise UnsupportedModelError(
            f"{config.path}: head_dim is {config.head_dim}, but llama.cpp's qwen2 has heads of hidden size over heads, "
            f"{derived}. Such a model cannot be stored as GGUF."
        )


def check_sparse(config: Config) -> None:
    """Refuse mixtures with dense layers between, or whose experts are weighed otherwise than in llama.cpp."""
    check_whole_rotation(config)
    no_dense_layers(config, str(config.get("model_type")))
    wanted = config.get("model_type") == "qwen3_moe"
    if config.flag("norm_topk_prob") != wanted:
        raise UnsupportedModelError(
            f"{config.path}: norm_topk_prob is {shown(config.get('norm_topk_prob'))}, but llama.cpp's "
            f"{config.get('model_type')} computes {wanted}. Such a model cannot be stored as GGUF."
        )


def no_dense_layers(config: Config, architecture: str) -> None:
    """Refuse mixtures with dense layers between those of experts."""
    if config.integer("decoder_sparse_step", 1) != 1 or config.items("mlp_only_layers"):
        raise UnsupportedModelError(
            f"{config.path}: decoder_sparse_step and mlp_only_layers ask for dense layers between those of experts, "
            f"which llama.cpp's {architecture} does not have. Such a model cannot be stored as GGUF."
        )


QWEN2 = Family(
    architecture="qwen2",
    classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    models="Qwen2, Qwen2.5",
    since="0.1",
    check=check_qwen2,
    computed=pooling,
    modules=POOLED,
    entries=WINDOWS,
    biased=ATTENTION_BIASES[:3],
    unseen_window=unseen_window,
    defaults={
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 32,
        "tie_word_embeddings": False, "sliding_window": 4096,
    },
)  # fmt: skip


def instead(raw: Mapping[str, Any], path: Path) -> Family | None:
    """Return the family of a Qwen3 that ranks."""
    return reranker(QWEN3, raw, path)


QWEN3 = Family(
    architecture="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    model_type="qwen3",
    models="Qwen3, dense; Qwen3-Embedding, Qwen3-Reranker",
    instead=instead,
    since="0.1",
    names={**BLOCK_NAMES, **QK_NORMS},
    required=(*BLOCK_NAMES, *QK_NORMS),
    check=check_whole_rotation,
    computed=pooling,
    modules=POOLED,
    entries=WINDOWS,
    bias_flags={"attention_bias": ATTENTION_BIASES},
    unseen_window=unseen_window,
    defaults={
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 32,
        "head_dim": 128, "tie_word_embeddings": False, "sliding_window": 4096,
    },
)  # fmt: skip
