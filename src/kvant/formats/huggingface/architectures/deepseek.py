"""DeepSeek V2 and V3, and models of their classes (Moonlight, Kimi K2): latent attention, experts behind dense layers.

Keys and values come from one short vector per token. llama.cpp wants the matrix that makes them in two, by heads: that
of the keys turned over (`attn_k_b`), that of the values as it is (`attn_v_b`).

Source: llama.cpp 0.3.36 `conversion/deepseek.py` `DeepseekV2Model`, `src/models/deepseek2.cpp`; the block that guesses
further tokens is left out as upstream leaves it out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import (
    EXPERT_BIAS,
    EXPERT_SHAPES,
    EXPERT_STEMS,
    MLP_EXPERTS,
    SCORE_CORRECTION,
    SHARED_EXPERTS,
    SHARED_EXPERTS_SHAPES,
    SIGMOID,
    SOFTMAX,
    is_dense,
)
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key, Kind
from kvant.formats.huggingface.architectures.names import MLP_BIASES, MLP_NAMES, Rule
from kvant.formats.huggingface.architectures.refusals import check_values
from kvant.formats.huggingface.architectures.rope import attention_factor, check_whole_rotation, yarn_of_all
from kvant.formats.huggingface.architectures.transforms import Transform
from kvant.formats.huggingface.config import Config, shown
from kvant.formats.huggingface.lazy import reshaped, selected, transposed
from kvant.metadata import Value, boolean, f32, u32
from kvant.tensors import LazyTensor, Tensor

LITE_LAYERS = (26, 27)
LITE_LAYERS_OF_VOCABULARY = (48, 128256)
"""Numbers of layers, or of layers and tokens, by which llama.cpp knows models whose queries are made in one step."""

Q_STEPS = {
    "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_q_b": "self_attn.q_b_proj"
}  # fmt: skip
KEPT = {
    "attn_norm": "input_layernorm", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
NAMES = {**KEPT, "attn_q": "self_attn.q_proj", **Q_STEPS, **MLP_NAMES, "ffn_gate_inp": "mlp.gate", **SHARED_EXPERTS}


def _by_heads(tensor: Tensor, config: Config) -> LazyTensor:
    """The matrix of keys and values as one matrix per head, its keys' rows first."""
    shape = (config.integer("num_attention_heads"), config.integer("kv_b_length"), tensor.shape[-1])
    return reshaped(tensor, shape)


def _keys(tensor: Tensor, config: Config) -> LazyTensor:
    return transposed(selected(_by_heads(tensor, config), np.arange(config.integer("qk_nope_head_dim"))))


def _values(tensor: Tensor, config: Config) -> LazyTensor:
    first, length = config.integer("qk_nope_head_dim"), config.integer("kv_b_length")
    return selected(_by_heads(tensor, config), np.arange(first, length))


RULES = (
    *MLP_EXPERTS,
    SCORE_CORRECTION,
    Rule("attn_k_b.weight", "self_attn.kv_b_proj.weight", Transform(forward=_keys)),
    Rule("attn_v_b.weight", "self_attn.kv_b_proj.weight", Transform(forward=_values)),
)

SHAPES = {
    **EXPERT_SHAPES,
    **SHARED_EXPERTS_SHAPES,
    "attn_q": ("num_attention_heads*qk_head_dim", "hidden_size"),
    "attn_q_a": ("q_lora_rank", "hidden_size"),
    "attn_q_a_norm": ("q_lora_rank",),
    "attn_q_b": ("num_attention_heads*qk_head_dim", "q_lora_rank"),
    "attn_kv_a_mqa": ("kv_a_length", "hidden_size"),
    "attn_kv_a_norm": ("kv_lora_rank",),
    "attn_k_b": ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim"),
    "attn_v_b": ("num_attention_heads", "v_head_dim", "kv_lora_rank"),
    "attn_output": ("hidden_size", "num_attention_heads*v_head_dim"),
}


def derived(config: Config) -> Mapping[str, Any]:
    """Return the lengths of a query's head, and of what the two matrices of keys and values give."""
    nope, rope = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    return {
        "qk_head_dim": nope + rope,
        "kv_a_length": config.integer("kv_lora_rank") + rope,
        "kv_b_length": nope + config.integer("v_head_dim"),
    }


def is_v3(config: Config) -> bool:
    """Whether experts are scored as in V3: a sigmoid each, corrected while they are chosen."""
    return "DeepseekV3ForCausalLM" in (config.items("architectures") or [])


def required(config: Config, layer: int) -> tuple[str, ...]:
    """Return the stems of a layer."""
    queries = tuple(Q_STEPS) if config.get("q_lora_rank") else ("attn_q",)
    corrected = (EXPERT_BIAS,) if is_v3(config) else ()
    mlp = tuple(MLP_NAMES) if is_dense(config, layer) else (*EXPERT_STEMS, *corrected, *SHARED_EXPERTS)
    return (*KEPT, *queries, "attn_k_b", "attn_v_b", *mlp)


def check(config: Config) -> None:
    """Refuse what llama.cpp's deepseek2 does not load or computes differently."""
    check_whole_rotation(config)
    if is_v3(config):
        check_values(config, "deepseek2", scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=True)
    else:
        check_values(config, "deepseek2", scoring_func="softmax", norm_topk_prob=False)
    check_values(config, "deepseek2", moe_layer_freq=1)
    if not is_v3(config) and config.get("n_group", 1) != 1:
        raise UnsupportedModelError(
            f"{config.path}: n_group is {shown(config.get('n_group'))}, but of a V2 llama.cpp chooses groups by their "
            f"two best experts, transformers by the best. Such a model cannot be stored as GGUF."
        )
    lite = config.n_layers in LITE_LAYERS
    lite |= (config.n_layers, config.integer("vocab_size")) == LITE_LAYERS_OF_VOCABULARY
    if lite == bool(config.get("q_lora_rank")):
        raise UnsupportedModelError(
            f"{config.path}: q_lora_rank is {shown(config.get('q_lora_rank'))} at {config.n_layers} layers, but "
            f"llama.cpp's deepseek2 makes queries in one step at {LITE_LAYERS[0]} and {LITE_LAYERS[1]} layers, and in "
            f"two at others. Such a model cannot be stored as GGUF."
        )
    rope = Config(values=config.rope, path=config.path)
    whole = yarn_of_all(config) and attention_factor(rope, rope.number("factor")) == 1
    if config.rope["rope_type"] == "yarn" and not whole:
        raise UnsupportedModelError(
            f"{config.path}: YaRN's mscale is {shown(rope.get('mscale'))} and mscale_all_dim "
            f"{shown(rope.get('mscale_all_dim'))}, but llama.cpp's deepseek2 lengthens whole heads alone, which takes "
            f"both to be equal. Such a model cannot be stored as GGUF."
        )


def computed(config: Config) -> dict[str, Value]:
    """Return the lengths of latent attention, how experts are weighed, and a tenth of YaRN's multiplier as upstream.

    llama.cpp attends with one latent head of keys and values, which it makes into heads (`_mla`) afterwards.
    """
    rank, of_all = config.integer("kv_lora_rank"), config.rope.get("mscale_all_dim")
    scores = SIGMOID if is_v3(config) else SOFTMAX
    return {
        "attention.head_count_kv": u32(1),
        "vocab_size": u32(config.integer("vocab_size")),
        "attention.key_length": u32(config.integer("kv_a_length")),
        "attention.value_length": u32(rank),
        "attention.key_length_mla": u32(config.integer("qk_head_dim")),
        "attention.value_length_mla": u32(config.integer("v_head_dim")),
        "rope.dimension_count": u32(config.integer("qk_rope_head_dim")),
        **({"expert_weights_norm": boolean(True)} if config.flag("norm_topk_prob") else {}),
        **({"expert_gating_func": u32(scores)} if is_v3(config) or config.get("scoring_func") else {}),
        **({"rope.scaling.yarn_log_multiplier": f32(0.1 * yarn_of_all(config))} if of_all is not None else {}),
    }


DEEPSEEK3 = Family(
    architecture="deepseek2",
    classes=("DeepseekV3ForCausalLM",),
    model_type="deepseek_v3",
    models="DeepSeek V3, V3.1 and R1, Moonlight, Kimi K2",
    rope_types=frozenset({"default", "yarn"}),
    engine_lengthening=lambda _, __: 1.0,
    names=NAMES,
    rules=RULES,
    required=required,
    shapes=SHAPES,
    derived=derived,
    check=check,
    drops_guessing=True,
    bias_flags={"attention_bias": ("attn_q_a", "attn_kv_a_mqa", "attn_output"), "mlp_bias": MLP_BIASES},
    engine_biases=frozenset(),
    experts=EXPERTS,
    keys=(
        Key("leading_dense_block_count", "first_k_dense_replace", Kind.INTEGER),
        Key("attention.q_lora_rank", "q_lora_rank"),
        Key("attention.kv_lora_rank", "kv_lora_rank"),
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("expert_shared_count", "n_shared_experts", Kind.INTEGER),
        Key("expert_weights_scale", "routed_scaling_factor", Kind.NUMBER),
    ),
    computed=computed,
    one_way="the matrices of latent attention are taken apart by head, which is not undone",
    entries=frozenset({
        "norm_topk_prob", "scoring_func", "topk_method", "moe_layer_freq", "rope_interleave", "qk_head_dim",
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "num_nextn_predict_layers", "num_mtp_layers", "ep_size",
        "seq_aux", "aux_loss_alpha",
    }),
    defaults={
        "vocab_size": 129280, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "moe_intermediate_size": 2048,
        "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
        "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
)  # fmt: skip

DEEPSEEK2 = dataclasses.replace(
    DEEPSEEK3,
    classes=("DeepseekV2ForCausalLM",),
    model_type="deepseek_v2",
    models="DeepSeek V2 Lite, DeepSeek Coder V2 Lite",
    defaults={
        "vocab_size": 102400, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "moe_intermediate_size": 1407,
        "n_shared_experts": 2, "n_routed_experts": 64, "routed_scaling_factor": 1.0, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
        "first_k_dense_replace": 0, "norm_topk_prob": False, "tie_word_embeddings": False,
    },
)  # fmt: skip
