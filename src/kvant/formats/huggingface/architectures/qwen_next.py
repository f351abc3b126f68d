"""Qwen3-Next and Qwen3.5: three layers of Gated DeltaNet to one of gated attention, and a head that guesses ahead."""

from collections.abc import Callable, Collection
from dataclasses import replace

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.delta_net import (
    DELTA_KEYS,
    DELTA_NAMES,
    DELTA_RULES,
    DELTA_SHAPES,
    DELTA_TILED,
    NEXT_NAMES,
    NEXT_RULES,
    check_heads,
    is_linear,
)
from kvant.formats.huggingface.architectures.experts import EXPERT_SHAPES, EXPERT_STEMS, MLP_EXPERTS, SHARED_EXPERT
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS, INTEGERS, Key, booleans
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, MLP_NAMES, QK_NORMS
from kvant.formats.huggingface.architectures.nextn import (
    MTP_LAYERS,
    NEXTN_NAMES,
    NEXTN_SHAPES,
    mtp_as_blocks,
    mtp_layers,
    with_mtp,
)
from kvant.formats.huggingface.architectures.qwen import no_dense_layers
from kvant.formats.huggingface.architectures.qwen_moe import EXPERT_LENGTH, ROUTER
from kvant.formats.huggingface.architectures.rope import rope_sections
from kvant.formats.huggingface.architectures.transforms import PLUS_ONE, SQUEEZED
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value, u32

_ATTENTION = {**{k: v for k, v in ATTENTION_NAMES.items() if k not in ("attn_norm", "ffn_norm")}, **QK_NORMS}
_NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
_BLOCK = {**_NORMS, **_ATTENTION, **NEXTN_NAMES}
_PLUS_ONE = dict.fromkeys((*_NORMS, *QK_NORMS, "output_norm", *list(NEXTN_NAMES)[1:]), PLUS_ONE)
_SHAPES = {
    **DELTA_SHAPES, **NEXTN_SHAPES,
    "attn_norm": ("hidden_size",), "post_attention_norm": ("hidden_size",), "output_norm": ("hidden_size",),
    "attn_q": ("2*num_attention_heads*head_dim", "hidden_size"),
    "attn_k": ("num_key_value_heads*head_dim", "hidden_size"),
    "attn_v": ("num_key_value_heads*head_dim", "hidden_size"),
    "attn_output": ("hidden_size", "num_attention_heads*head_dim"),
    "attn_q_norm": ("head_dim",), "attn_k_norm": ("head_dim",),
}  # fmt: skip
_EXPERT_SHAPES = {**_SHAPES, **EXPERT_SHAPES, "ffn_gate_inp_shexp": ("1", "hidden_size")}
_EXPERTS = (*EXPERT_STEMS, *SHARED_EXPERT)
_EXPERT_KEYS = (EXPERT_LENGTH, Key("expert_shared_feed_forward_length", "shared_expert_intermediate_size"))
_ENTRIES = frozenset({
    "text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "language_model_only", "layer_types", "full_attention_interval", "linear_value_head_dim", "attn_output_gate",
    "mamba_ssm_dtype", "mtp_use_dedicated_embeddings", MTP_LAYERS, "mrope_section", "mrope_interleaved",
    "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",
})  # fmt: skip
_DEFAULTS = {
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "head_dim": 256, "num_attention_heads": 16,
    "tie_word_embeddings": False, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip

_EXPERT_DEFAULTS = {
    "num_key_value_heads": 2, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what llama.cpp would compute differently, or does not have."""
    check_heads(config)
    wanted = {"attn_output_gate": True, "norm_topk_prob": True, "mtp_use_dedicated_embeddings": False}
    for key, value in wanted.items():
        if config.flag(key, value) != value:
            raise UnsupportedModelError(
                f"{config.path}: {key} is {shown(config.get(key))}, but llama.cpp computes {value}. Such a model "
                f"cannot be stored as GGUF."
            )
    no_dense_layers(config, "qwen3next")


def required(linear: Collection[str], feed_forward: Collection[str]) -> Callable[[Config, int], Collection[str]]:
    """Return the stems that a block must have, by its number."""

    def of_layer(config: Config, layer: int) -> tuple[str, ...]:
        own = linear if is_linear(config, layer) else tuple(_ATTENTION)
        return (*_NORMS, *own, *feed_forward, *(NEXTN_NAMES if layer >= config.n_layers else ()))

    return of_layer


def computed(config: Config) -> dict[str, Value]:
    """Return the hyperparameters of both kinds of attention, and of MTP."""
    more = with_mtp(config) - config.n_layers
    recurrent = [is_linear(config, layer) for layer in range(config.n_layers + more)]
    found = {
        "ssm.inner_size": u32(config.integer("linear_value_head_dim") * config.integer("linear_num_value_heads")),
        "attention.recurrent_layers": booleans(recurrent),
        "full_attention_interval": u32(config.integer("full_attention_interval", 4)),
        "rope.dimension_count": u32(int(config.head_dim * config.rotary_share)),
    }
    return found | ({"nextn_predict_layers": u32(more)} if more else {})


def with_sections(config: Config) -> dict[str, Value]:
    """Return the same and the sections of rotary pairs, which llama.cpp's qwen35 does not load without."""
    return {"rope.dimension_sections": rope_sections(config, (11, 11, 10)), **computed(config)}


QWEN35 = Family(
    architecture="qwen35",
    classes=("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"),
    model_type="qwen3_5_text",
    models="Qwen3.5 and 3.6, dense (text part)",
    names={**_BLOCK, **DELTA_NAMES, **MLP_NAMES},
    rules=DELTA_RULES,
    transforms={**_PLUS_ONE, **DELTA_TILED},
    renamed=mtp_as_blocks,
    seen=mtp_layers,
    blocks=with_mtp,
    required=required((*DELTA_NAMES, "ssm_a", "ssm_dt.bias"), MLP_NAMES),
    shapes=_SHAPES,
    keys=DELTA_KEYS,
    computed=with_sections,
    check=check,
    entries=_ENTRIES,
    bias_flags={"attention_bias": ATTENTION_BIASES},
    one_way="the heads of gated DeltaNet are put in another order and taken apart, which is not undone",
    defaults={**_DEFAULTS, "vocab_size": 248320, "num_key_value_heads": 4, "intermediate_size": 12288},
)

QWEN35MOE = replace(
    QWEN35,
    architecture="qwen35moe",
    classes=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
    model_type="qwen3_5_moe_text",
    models="Qwen3.5 and 3.6, mixtures of experts (text part)",
    names={**_BLOCK, **DELTA_NAMES, **ROUTER, **SHARED_EXPERT},
    rules=(*DELTA_RULES, *MLP_EXPERTS),
    required=required((*DELTA_NAMES, "ssm_a", "ssm_dt.bias"), _EXPERTS),
    shapes=_EXPERT_SHAPES,
    counts=tuple(key for key in INTEGERS if key.ours != "feed_forward_length"),
    experts=EXPERTS,
    keys=(*_EXPERT_KEYS, *DELTA_KEYS),
    defaults={**_DEFAULTS, **_EXPERT_DEFAULTS, "vocab_size": 248320, "num_experts": 256, "num_experts_per_tok": 8},
)

QWEN3NEXT = replace(
    QWEN35MOE,
    architecture="qwen3next",
    classes=("Qwen3NextForCausalLM",),
    model_type="qwen3_next",
    models="Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
    names={**_BLOCK, **NEXT_NAMES, **ROUTER, **SHARED_EXPERT},
    rules=(*NEXT_RULES, *MLP_EXPERTS),
    transforms={**_PLUS_ONE, "ssm_conv1d": SQUEEZED},
    required=required((*NEXT_NAMES, "attn_qkv", "attn_gate", "ssm_a", "ssm_dt.bias"), _EXPERTS),
    counts=INTEGERS,
    computed=computed,
    defaults={
        **_DEFAULTS, **_EXPERT_DEFAULTS, "vocab_size": 151936, "intermediate_size": 5632, "num_experts": 512,
        "num_experts_per_tok": 10,
    },
)  # fmt: skip
