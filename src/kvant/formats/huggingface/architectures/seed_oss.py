"""Seed-OSS: Llama's layout with biases on queries, keys and values."""

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import config_entries
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES, MLP_BIASES
from kvant.formats.huggingface.architectures.rope import check_whole_rotation

NAMES = {("post_attention_norm" if ours == "ffn_norm" else ours): theirs for ours, theirs in BLOCK_NAMES.items()}

SEED_OSS = Family(
    architecture="seed_oss",
    classes=("SeedOssForCausalLM",),
    model_type="seed_oss",
    models="Seed-OSS-36B",
    names=NAMES,
    required=tuple(NAMES),
    check=check_whole_rotation,
    bias_flags={
        "attention_bias": ATTENTION_BIASES[:3], "attention_out_bias": ATTENTION_BIASES[3:], "mlp_bias": MLP_BIASES,
    },
    entries=frozenset({"attention_out_bias", "residual_dropout"}),
    config=lambda model: {**config_entries(model), "attention_bias": "blk.0.attn_q.bias" in model.tensors},
    defaults={
        "vocab_size": 155136, "max_position_embeddings": 524288, "rms_norm_eps": 1e-6, "num_key_value_heads": 8,
        "head_dim": 128, "attention_bias": True, "tie_word_embeddings": False,
    },
)  # fmt: skip
