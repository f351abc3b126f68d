"""Mistral Small 3.x and Ministral 3 (YaRN, queries scaled by position), and Mixtral's mixtures of experts."""

import dataclasses

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import (
    EXPERT_STEMS,
    MLP_EXPERTS,
    NUMBERED,
    expert_rules,
    expert_shapes,
)
from kvant.formats.huggingface.architectures.hyper import has
from kvant.formats.huggingface.architectures.keys import EXPERTS
from kvant.formats.huggingface.architectures.llama import LLAMA, MISTRAL, llama_computed
from kvant.formats.huggingface.architectures.names import ATTENTION_NAMES, Rule
from kvant.formats.huggingface.architectures.rope import (
    check_whole_rotation,
    yarn_lengthening,
    yarn_of_all,
)
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value, f32

TEMPERATURE = "llama_4_scaling_beta"
"""Rotary parameter by which queries grow with the logarithm of their position; a Ministral 3 must have it."""

WRAPPER_ENTRIES = frozenset({
    "text_config", "vision_config", "image_token_index", "image_token_id", "projector_hidden_act",
    "vision_feature_layer", "multimodal_projector_bias", "spatial_merge_size",
})  # fmt: skip
"""Entries of the wrapper with eyes, which are no part of the language model."""


def is_ministral(config: Config) -> bool:
    """Whether the text model is a Ministral 3; the same wrapper holds Mistral Small 3.x."""
    return bool(config.get("model_type") == "ministral3")


def check_mistral3(config: Config) -> None:
    """Refuse text models that llama.cpp's mistral3 does not compute."""
    check_whole_rotation(config)
    if config.get("model_type") not in ("mistral", "ministral3", "mistral3"):
        raise UnsupportedModelError(
            f"{config.path}: the text model is {shown(config.get('model_type'))}, not mistral or ministral3, which are "
            f"those that kvant converts of this class. Use upstream's converter for it."
        )
    if is_ministral(config) and (config.rope["rope_type"] != "yarn" or config.rope.get(TEMPERATURE) is None):
        raise FormatError(
            f"{config.path}: a ministral3 needs rope_parameters of rope_type yarn with {TEMPERATURE}, but they are "
            f"{shown(config.rope)}. Add the values that the model was trained with."
        )


def mistral3_computed(config: Config) -> dict[str, Value]:
    """Return Llama's further hyperparameters and those of Ministral's YaRN."""
    found = llama_computed(config)
    if is_ministral(config):
        rope = Config(values=config.rope, path=config.path)
        if yarn_of_all(config):
            found["rope.scaling.yarn_log_multiplier"] = f32(yarn_of_all(config))
        found["attention.temperature_scale"] = f32(rope.number(TEMPERATURE))
    return found


def engine_lengthening(config: Config, factor: float) -> float:
    """Return by how much llama.cpp lengthens what it rotates: less where the file has `yarn_log_multiplier`."""
    of_all = yarn_of_all(config) if is_ministral(config) else 0.0
    return yarn_lengthening(factor) / (yarn_lengthening(factor, of_all) if of_all else 1.0)


MISTRAL3 = dataclasses.replace(
    MISTRAL,
    architecture="mistral3",
    classes=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    model_type="ministral3",
    models="Mistral Small 3.1 and 3.2, Ministral 3 (text part)",
    since="0.2",
    rope_types=frozenset({"default", "linear", "yarn"}),
    check=check_mistral3,
    computed=mistral3_computed,
    engine_lengthening=engine_lengthening,
    one_way="the class sees as well, and a GGUF holds the text part alone",
    entries=WRAPPER_ENTRIES | {"sliding_window", TEMPERATURE, "max_position_embeddings"},
    defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
)

MIXTRAL = dataclasses.replace(
    LLAMA,
    classes=("MixtralForCausalLM",),
    model_type="mixtral",
    models="Mixtral 8x7B and 8x22B",
    since="0.2",
    rope_types=frozenset({"default", "linear", "yarn"}),
    names={**ATTENTION_NAMES, "ffn_gate_inp": "block_sparse_moe.gate"},
    rules=(
        Rule("ffn_gate_inp.weight", "mlp.gate.weight"),
        *expert_rules("block_sparse_moe.experts", NUMBERED),
        *MLP_EXPERTS,
    ),
    required=(*ATTENTION_NAMES, *EXPERT_STEMS),
    shapes=expert_shapes("intermediate_size"),
    experts=EXPERTS,
    computes_head_dim=False,
    bias_flags={},
    entries=frozenset({"sliding_window", "router_jitter_noise"}),
    unseen_window=MISTRAL.unseen_window,
    config=None,
    holds=lambda model: has(model, "expert_count"),
    defaults={
        "vocab_size": 32000, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_key_value_heads": 8,
        "tie_word_embeddings": False, "rope_theta": 1000000.0, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
)  # fmt: skip
