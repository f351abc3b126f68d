"""Nemotron-H and Nemotron 3: each layer is one mixer, of Mamba 2, of attention without positions, an MLP, or experts.

The engine tells the kinds apart by metadata: a layer without key-value heads and MLP is one of Mamba 2, one without an
MLP attends. Queries and keys are reordered as upstream does, alike, which without positions changes no product of them.
transformers keeps time steps of a prompt at `time_step_min` or above, llama.cpp and transformers' steps of one token do
not: nothing here makes up for it. Layers that guess further tokens (`mtp.`) are left out, and that is said.

Source: llama.cpp 0.3.36 `conversion/nemotron.py` `NemotronHModel`, `src/models/nemotron-h.cpp`; transformers 5.24
`NemotronHConfig`, `modeling_nemotron_h`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import EXPERT_BIAS
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key, Kind, file_type, integers, written
from kvant.formats.huggingface.architectures.mamba import CONTEXT, RULES
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, Rule
from kvant.formats.huggingface.architectures.refusals import check_steps, check_tied, check_values
from kvant.formats.huggingface.architectures.rope import config_theta
from kvant.formats.huggingface.architectures.transforms import ROTARY, grouped
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value, boolean, f32, u32

KINDS = {
    "M": "mamba", "*": "attention", "-": "mlp", "E": "moe", "linear_attention": "mamba", "full_attention": "attention"
}  # fmt: skip
"""Kinds of layers by their letter in `hybrid_override_pattern`, and by transformers 5's names."""

STATE_SPACE = {"ssm_in": "mixer.in_proj", "ssm_norm": "mixer.norm", "ssm_out": "mixer.out_proj"}
ATTENTION = {
    "attn_q": "mixer.q_proj", "attn_k": "mixer.k_proj", "attn_v": "mixer.v_proj", "attn_output": "mixer.o_proj"
}  # fmt: skip
MLP = {"ffn_up": "mixer.up_proj", "ffn_down": "mixer.down_proj"}
EXPERT_NAMES = {
    "ffn_gate_inp": "mixer.gate", "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
}  # fmt: skip
LATENT = {"ffn_latent_down": "mixer.fc1_latent_proj", "ffn_latent_up": "mixer.fc2_latent_proj"}
EXPERT_RULES = (
    Rule("ffn_up_exps.weight", "mixer.experts.{}.up_proj.weight"),
    Rule("ffn_down_exps.weight", "mixer.experts.{}.down_proj.weight"),
    Rule("ffn_up_exps.weight", "mixer.experts.up_proj"),
    Rule("ffn_down_exps.weight", "mixer.experts.down_proj"),
    Rule(EXPERT_BIAS, "mixer.gate.e_score_correction_bias"),
)
STEMS = {
    "mamba": (*STATE_SPACE, "ssm_a", "ssm_d", "ssm_dt.bias", "ssm_conv1d"),
    "attention": tuple(ATTENTION),
    "mlp": tuple(MLP),
    "moe": (*EXPERT_NAMES, "ffn_up_exps", "ffn_down_exps", EXPERT_BIAS),
}
"""Stems of a layer beside its norm, by kind."""

EXPERT_KEYS = (
    Key("expert_feed_forward_length", "moe_intermediate_size"),
    Key("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
    Key("expert_shared_count", "n_shared_experts"),
    Key("expert_weights_norm", "norm_topk_prob", Kind.FLAG),
    Key("expert_weights_scale", "routed_scaling_factor", Kind.NUMBER),
    Key("moe_latent_size", "moe_latent_size"),
)
MIXERS = (
    Key("ssm.conv_kernel", "conv_kernel"),
    Key("ssm.state_size", "ssm_state_size"),
    Key("ssm.group_count", "n_groups"),
    Key("ssm.time_step_rank", "mamba_num_heads"),
)
RMS = Key("attention.layer_norm_rms_epsilon", "rms_norm_eps|norm_eps", Kind.NUMBER)


def spelled(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entries with the kinds of layers as one list, and the length of heads under the usual name."""
    given = entries.get("layers_block_type") or entries.get("layer_types") or entries.get("hybrid_override_pattern")
    found = dict(entries)
    if isinstance(given, (str, list)):
        found["layers_block_type"] = [KINDS.get(kind, kind) if isinstance(kind, str) else shown(kind) for kind in given]
        if found.get("num_hidden_layers") is None:
            found["num_hidden_layers"] = len(given)
    if found.get("head_dim") is None and found.get("attention_head_dim") is not None:
        found["head_dim"] = found["attention_head_dim"]
    return found


def kinds(config: Config) -> list[Any]:
    """Return the kind of each layer."""
    return config.items("layers_block_type") or []


def required(config: Config, layer: int) -> tuple[str, ...]:
    """Return the stems of a layer: its norm, and those of its one mixer."""
    latent = kinds(config)[layer] == "moe" and config.get("moe_latent_size") is not None
    return ("attn_norm", *STEMS[kinds(config)[layer]], *(LATENT if latent else ()))


def inner(config: Config) -> int:
    """Return the width of the states of all heads."""
    return config.integer("mamba_num_heads") * config.integer("mamba_head_dim")


def shapes_in(config: Config, _: int | None) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the state-space layers that are sums."""
    width, groups = inner(config), config.integer("n_groups")
    convolved = width + 2 * groups * config.integer("ssm_state_size")
    return {
        "ssm_in": (width + convolved + config.integer("mamba_num_heads"), config.integer("hidden_size")),
        "ssm_conv1d": (convolved, config.integer("conv_kernel")),
        "ssm_norm": (groups, width // groups),
    }


def check(config: Config, architecture: str, feed_forward: str) -> None:
    """Refuse what llama.cpp's nemotron_h does not load or computes differently."""
    found = kinds(config)
    if len(found) != config.n_layers or any(kind not in STEMS for kind in found):
        raise FormatError(
            f"{config.path}: hybrid_override_pattern or layers_block_type is {shown(found)}, not mamba, attention, mlp "
            f"or moe for each of {config.n_layers} layers. Correct it."
        )
    if not {"mamba", "attention", feed_forward} >= set(found) or not {"mamba", "attention"} <= set(found):
        raise UnsupportedModelError(
            f"{config.path}: the kinds of layers are {shown(sorted(set(found)))}, but llama.cpp's {architecture} has "
            f"Mamba 2 and attention beside MLPs or experts, not both of these. Such a model cannot be stored as GGUF."
        )
    if inner(config) % config.integer("n_groups"):
        raise FormatError(
            f"{config.path}: n_groups is {config.integer('n_groups')}, which {inner(config)} states (mamba_num_heads "
            f"times mamba_head_dim) cannot be shared out to. Correct it."
        )
    epsilon = config.number("layer_norm_epsilon")
    check_values(config, architecture, rms_norm_eps=epsilon, norm_eps=epsilon, mlp_hidden_act="relu2")
    check_values(config, architecture, mamba_hidden_act="silu", use_conv_bias=True)
    check_steps(config, architecture)
    check_tied(config, architecture, wanted=False)


def metadata(config: Config, architecture: str, feed_forward: str) -> dict[str, Value]:
    """Return the hyperparameters: heads and MLPs of each layer, and the rest, in upstream's order."""
    heads, length = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
    has_experts = feed_forward == "moe"
    ffn = config.integer("moe_intermediate_size" if has_experts else "intermediate_size")
    found = {
        "block_count": u32(config.n_layers),
        "context_length": u32(CONTEXT),
        "embedding_length": u32(config.integer("hidden_size")),
        "feed_forward_length": integers(ffn if kind == feed_forward else 0 for kind in kinds(config)),
        "attention.head_count": u32(heads),
        "attention.head_count_kv": integers(length if kind == "attention" else 0 for kind in kinds(config)),
    }
    if config.get("rope_theta") is not None:
        found["rope.freq_base"] = f32(config_theta(config))
    rms = RMS.value(config)
    found |= {} if rms is None else {RMS.ours: rms}
    found["attention.layer_norm_epsilon"] = f32(config.number("layer_norm_epsilon"))
    experts = written((*EXPERTS, *EXPERT_KEYS), config, architecture) if has_experts else {}
    rest = {
        "vocab_size": u32(config.integer("vocab_size")),
        "rope.dimension_count": u32(config.integer("hidden_size") // heads),
        "ssm.inner_size": u32(inner(config)),
        "rope.scaling.finetuned": boolean(False),
        "attention.key_length": u32(config.head_dim),
        "attention.value_length": u32(config.head_dim),
    }
    own = {f"{architecture}.{key}": value for key, value in found.items()} | file_type()
    own |= {f"{architecture}.{key}": value for key, value in rest.items()}
    return own | written(MIXERS, config, architecture) | experts


def with_experts(raw: Mapping[str, Any], _: Path) -> Family | None:
    """Return the family of a model with layers of experts."""
    found = spelled(raw).get("layers_block_type")
    return NEMOTRON_H_MOE if isinstance(found, list) and "moe" in found else None


def _family(architecture: str, feed_forward: str, **others: Any) -> Family:
    return Family(
        architecture=architecture,
        classes=("NemotronHForCausalLM",),
        model_type="nemotron_h",
        rope_types=frozenset(),
        block="backbone.layers",
        outside={"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"},
        prefixes=("model.",),
        transforms={**ROTARY, "ssm_norm": grouped("n_groups")},
        spelled=spelled,
        required=required,
        shapes_in=shapes_in,
        counts=(),
        epsilons=(),
        biased=("ssm_dt",),
        check=partial(check, architecture=architecture, feed_forward=feed_forward),
        own_metadata=partial(metadata, architecture=architecture, feed_forward=feed_forward),
        skipped=("mtp.",),
        one_way="decay rates are stored as what they are the logarithms of, which does not give the same bytes back",
        **others,
    )


SHAPES = {
    "attn_norm": ("hidden_size",), "output_norm": ("hidden_size",), "ssm_a": ("mamba_num_heads", "1"),
    "ssm_d": ("mamba_num_heads", "1"), "ssm_out": ("hidden_size", "mamba_num_heads*mamba_head_dim"),
    "attn_q": ("num_attention_heads*head_dim", "hidden_size"),
    "attn_k": ("num_key_value_heads*head_dim", "hidden_size"),
    "attn_v": ("num_key_value_heads*head_dim", "hidden_size"),
    "attn_output": ("hidden_size", "num_attention_heads*head_dim"),
}  # fmt: skip
ENTRIES = frozenset({
    "layers_block_type", "layer_types", "hybrid_override_pattern", "attention_head_dim", "mamba_num_heads",
    "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel", "use_bias", "use_conv_bias", "mamba_proj_bias",
    "mamba_hidden_act", "mlp_hidden_act", "layer_norm_epsilon", "norm_eps", "expand", "chunk_size", "time_step_min",
    "time_step_max", "time_step_floor", "time_step_limit", "time_step_rank", "residual_in_fp32",
    "rescale_prenorm_residual", "num_logits_to_keep", "use_mamba_kernels", "mamba_ssm_cache_dtype",
    "moe_shared_expert_overlap", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
    "num_nextn_predict_layers",
    *(name for key in (*EXPERTS, *EXPERT_KEYS) for name in key.theirs.split("|")),
})  # fmt: skip
DEFAULTS = {
    "vocab_size": 131072, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-5, "ssm_state_size": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True,
}  # fmt: skip
FLAGS = {"attention_bias": ATTENTION_BIASES, "use_bias": ("ssm_in", "ssm_out"), "use_conv_bias": ("ssm_conv1d",)}
BIASES = frozenset((*ATTENTION_BIASES, "ssm_dt", "ssm_conv1d"))

NEMOTRON_H = _family(
    "nemotron_h",
    "mlp",
    models="Nemotron-H, Nemotron Nano v2, Nemotron 3 Nano and Super",
    instead=with_experts,
    names={"attn_norm": "norm", **STATE_SPACE, **ATTENTION, **MLP},
    rules=RULES,
    shapes={**SHAPES, "ffn_up": ("intermediate_size", "hidden_size"), "ffn_down": ("hidden_size", "intermediate_size")},
    bias_flags={**FLAGS, "mlp_bias": tuple(MLP)},
    engine_biases=BIASES | {*MLP},
    entries=ENTRIES,
    defaults={**DEFAULTS, "intermediate_size": 21504},
)

NEMOTRON_H_MOE = _family(
    "nemotron_h_moe",
    "moe",
    models="Nemotron 3 Nano and Super",
    names={"attn_norm": "norm", **STATE_SPACE, **ATTENTION, **EXPERT_NAMES, **LATENT},
    rules=(*RULES, *EXPERT_RULES),
    shapes={
        **SHAPES, "ffn_gate_inp": ("{experts}", "hidden_size"), "exp_probs_b": ("{experts}",),
        "ffn_up_exps": ("{experts}", "moe_intermediate_size", "?"),
        "ffn_down_exps": ("{experts}", "?", "moe_intermediate_size"),
        "ffn_up_shexp": ("moe_shared_expert_intermediate_size", "hidden_size"),
        "ffn_down_shexp": ("hidden_size", "moe_shared_expert_intermediate_size"),
        "ffn_latent_down": ("moe_latent_size", "hidden_size"), "ffn_latent_up": ("hidden_size", "moe_latent_size"),
    },
    bias_flags={**FLAGS, "mlp_bias": ("ffn_up_shexp", "ffn_down_shexp", *LATENT)},
    engine_biases=BIASES,
    experts=EXPERTS,
    entries=ENTRIES,
    defaults={
        **DEFAULTS, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1, "moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688,
        "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    },
)  # fmt: skip
