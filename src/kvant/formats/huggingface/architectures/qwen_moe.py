"""Qwen's mixtures of experts: Qwen1.5-MoE and Qwen2-57B (a shared expert, biases), Qwen3-30B and Qwen3-Coder."""

from kvant.formats.huggingface.architectures.experts import EXPERT_SHAPES, EXPERT_STEMS, MLP_EXPERTS, SHARED_EXPERT
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, QK_NORMS
from kvant.formats.huggingface.architectures.qwen import WINDOWS, check_sparse, unseen_window

ROUTER = {"ffn_gate_inp": "mlp.gate"}
EXPERT_LENGTH = Key("expert_feed_forward_length", "moe_intermediate_size")

QWEN2MOE = Family(
    architecture="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    model_type="qwen2_moe",
    models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    check=check_sparse,
    names={**ATTENTION_NAMES, **ROUTER, **SHARED_EXPERT},
    rules=MLP_EXPERTS,
    required=(*ATTENTION_NAMES, *EXPERT_STEMS, *SHARED_EXPERT),
    shapes={**EXPERT_SHAPES, "ffn_gate_inp_shexp": ("1", "hidden_size")},
    biased=ATTENTION_BIASES[:3],
    experts=EXPERTS,
    keys=(EXPERT_LENGTH, Key("expert_shared_feed_forward_length", "shared_expert_intermediate_size")),
    entries=WINDOWS | {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "qkv_bias"},
    unseen_window=unseen_window,
    defaults={
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 16,
        "intermediate_size": 5632, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False, "tie_word_embeddings": False,
        "sliding_window": 4096,
    },
)  # fmt: skip

QWEN3MOE = Family(
    architecture="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    model_type="qwen3_moe",
    models="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-30B-A3B",
    check=check_sparse,
    names={**ATTENTION_NAMES, **QK_NORMS, **ROUTER},
    rules=MLP_EXPERTS,
    required=(*ATTENTION_NAMES, *QK_NORMS, *EXPERT_STEMS),
    shapes=EXPERT_SHAPES,
    bias_flags={"attention_bias": ATTENTION_BIASES},
    experts=EXPERTS,
    keys=(EXPERT_LENGTH,),
    entries=WINDOWS | {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"},
    returned=lambda _: {"norm_topk_prob": True},
    unseen_window=unseen_window,
    defaults={
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 4,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": False, "tie_word_embeddings": False, "sliding_window": 4096,
    },
)  # fmt: skip
