"""OLMo 2 and 3: norms after attention and MLP, over all queries and all keys; OLMo 3 with windowed layers."""

import dataclasses

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.hyper import has
from kvant.formats.huggingface.architectures.keys import booleans
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES, QK_NORMS
from kvant.formats.huggingface.architectures.refusals import check_derived_head, check_tied
from kvant.formats.huggingface.architectures.rope import check_whole_rotation, config_theta
from kvant.formats.huggingface.architectures.windows import windowed_layers, windows_back
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, f32, u32

PERIOD = 4
"""Every fourth layer of OLMo 3 attends to everything."""

POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_BARE = {ours: theirs for ours, theirs in BLOCK_NAMES.items() if not ours.endswith("_norm")}
AFTER_NAMES = {**_BARE, **QK_NORMS, **POST_NORMS}
"""A block whose norms come after attention and MLP."""


def check(config: Config) -> None:
    """Refuse what llama.cpp's olmo2 would compute differently: it rotates all layers by one base."""
    check_whole_rotation(config)
    check_derived_head(config, "olmo2")
    check_tied(config, "olmo2", wanted=False)
    local = config.local_rope
    if local["rope_type"] != "default" or (config.local_rope_theta or config_theta(config)) != config_theta(config):
        raise UnsupportedModelError(
            f"{config.path}: rope_parameters of sliding_attention differ from a plain rotation by the base of the "
            f"other layers, which is all that llama.cpp's olmo2 computes. Such a model cannot be stored as GGUF."
        )


def windows(config: Config) -> dict[str, Value]:
    """Return the base of rotary frequencies in layers with a window, the window, and the layers that have it."""
    if not config.get("sliding_window"):
        return {}
    return {
        "rope.freq_base_swa": f32(config_theta(config)),
        "attention.sliding_window": u32(config.integer("sliding_window")),
        "attention.sliding_window_pattern": booleans(windowed_layers(config, PERIOD)),
    }


OLMO2 = Family(
    architecture="olmo2",
    classes=("Olmo2ForCausalLM",),
    model_type="olmo2",
    models="OLMo 2",
    names=AFTER_NAMES,
    required=tuple(AFTER_NAMES),
    shapes={
        "attn_q_norm": ("num_attention_heads*head_dim",), "attn_k_norm": ("num_key_value_heads*head_dim",),
    },
    bias_flags={"attention_bias": ATTENTION_BIASES},
    check=check,
    holds=lambda model: not has(model, "attention.sliding_window"),
    defaults={
        "vocab_size": 50304, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
)  # fmt: skip

OLMO3 = dataclasses.replace(
    OLMO2,
    classes=("Olmo3ForCausalLM",),
    model_type="olmo3",
    models="Olmo 3",
    computed=windows,
    entries=frozenset({"sliding_window", "layer_types"}),
    holds=lambda model: has(model, "attention.sliding_window"),
    returned=lambda model: windows_back(model, PERIOD),
    defaults={**OLMO2.defaults, "rope_theta": 500000.0, "sliding_window": 4096},
)
