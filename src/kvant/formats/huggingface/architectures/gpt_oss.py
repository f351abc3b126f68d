"""gpt-oss: experts stored with inputs along the rows and gate and up interleaved, biases everywhere, attention sinks.

As published the experts are MXFP4 with outputs along the rows: quantized/mxfp4.py decodes them and keeps blocks.

As published its YaRN does not round the limits of its ramp (`truncate: false`), but llama.cpp's does, in every GGUF of
the model: tests/golden/families/gpt_oss.json has the divergence of the published rotation, gpt_oss_rounded.json that
of a rotation with whole limits, which is all of the rest.
"""

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import EXPERT_STEMS, expert_shapes
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, Rule
from kvant.formats.huggingface.architectures.refusals import check_values
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import TRANSPOSED, every, every_column
from kvant.formats.huggingface.config import Config, shown

FIXED = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True, "tie_word_embeddings": False}
"""Entries of config.json, and the one value of each that llama.cpp's gpt-oss computes."""

NAMES = {
    **{ours: theirs for ours, theirs in ATTENTION_NAMES.items() if ours != "ffn_norm"},
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}

RULES = (
    Rule("attn_sinks.weight", "self_attn.sinks"),
    Rule("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", every(0, 2, of=TRANSPOSED.forward)),
    Rule("ffn_up_exps.weight", "mlp.experts.gate_up_proj", every(1, 2, of=TRANSPOSED.forward)),
    Rule("ffn_down_exps.weight", "mlp.experts.down_proj", TRANSPOSED),
    Rule("ffn_gate_exps.weight", "mlp.experts.gate_up_proj.weight", every(0, 2)),  # as MXFP4 is decoded
    Rule("ffn_up_exps.weight", "mlp.experts.gate_up_proj.weight", every(1, 2)),
    Rule("ffn_down_exps.weight", "mlp.experts.down_proj.weight"),
    Rule("ffn_gate_exps.bias", "mlp.experts.gate_up_proj_bias", every_column(0, 2)),
    Rule("ffn_up_exps.bias", "mlp.experts.gate_up_proj_bias", every_column(1, 2)),
    Rule("ffn_down_exps.bias", "mlp.experts.down_proj_bias"),
)


def check(config: Config) -> None:
    """Refuse what llama.cpp's gpt-oss would compute differently."""
    check_whole_rotation(config)
    check_values(config, "gpt-oss", **FIXED)
    wanted = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(config.n_layers)]
    if config.items("layer_types") not in (None, wanted):
        raise UnsupportedModelError(
            f"{config.path}: layer_types is {shown(config.get('layer_types'))}, but llama.cpp's gpt-oss has a window "
            f"in every other layer from the first on. Such a model cannot be stored as GGUF."
        )


GPT_OSS = Family(
    architecture="gpt-oss",
    classes=("GptOssForCausalLM",),
    model_type="gpt_oss",
    models="gpt-oss-20b, gpt-oss-120b",
    names=NAMES,
    rules=RULES,
    required=(*NAMES, "attn_sinks", *EXPERT_STEMS[1:], *(f"{stem}.bias" for stem in EXPERT_STEMS[1:])),
    shapes={
        "post_attention_norm": ("hidden_size",),
        "attn_sinks": ("num_attention_heads",),
        **expert_shapes("intermediate_size"),
    },
    check=check,
    is_ramp_rounded=True,
    biased=("ffn_gate_inp",),
    bias_flags={"attention_bias": ATTENTION_BIASES},
    engine_biases=frozenset((*ATTENTION_BIASES, "ffn_gate_inp")),
    experts=EXPERTS,
    keys=(
        Key("attention.sliding_window", "sliding_window"),
        Key("expert_feed_forward_length", "intermediate_size"),
    ),
    one_way="gate and up projections of all experts are one matrix there, which is not put together again",
    entries=frozenset({*FIXED, "layer_types", "experts_per_token", "initial_context_length"}),
    defaults={
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36, "head_dim": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "num_local_experts": 128, "num_experts_per_tok": 4, **FIXED,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
)  # fmt: skip
