"""Qwen2, Qwen2.5 (biases on queries, keys and values) and Qwen3 (norms on queries and keys)."""

from kvant.formats.huggingface.architectures.base import BLOCK_NAMES, Family, config_entries, hyperparameters

QWEN2 = Family(
    architecture="qwen2",
    classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    metadata=lambda config: hyperparameters(config, "qwen2"),
    config=config_entries,
    defaults={
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
)  # fmt: skip

QWEN3 = Family(
    architecture="qwen3",
    classes=("Qwen3ForCausalLM",),
    model_type="qwen3",
    block_names={**BLOCK_NAMES, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    required=(*BLOCK_NAMES, "attn_q_norm", "attn_k_norm"),
    metadata=lambda config: hyperparameters(config, "qwen3"),
    config=config_entries,
    defaults={
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 32,
        "head_dim": 128, "tie_word_embeddings": False,
    },
)  # fmt: skip
