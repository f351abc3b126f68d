"""Phi-3, Phi-3.5 and Phi-4-mini: fused projections, rotary factors for short and long contexts, partial rotation."""

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.longrope import LONG, long_factors, phi3_entries, phi3_metadata

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp keeps both fused matrices; `ffn_up` holds the gate above the up projection."""

PHI3 = Family(
    architecture="phi3",
    classes=("Phi3ForCausalLM",),
    model_type="phi3",
    models="Phi-3, Phi-3.5-mini, Phi-4-mini",
    since="0.1",
    rope_types=frozenset({"default", *LONG}),
    entries=frozenset({"sliding_window"}),
    unseen_window=lambda config: config.integer("sliding_window") if config.get("sliding_window") else None,
    engine_biases=frozenset(),
    names=NAMES,
    required=tuple(NAMES),
    own_metadata=phi3_metadata,
    extra_tensors=long_factors,
    config=phi3_entries,
    defaults={
        "vocab_size": 32064, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
)  # fmt: skip
