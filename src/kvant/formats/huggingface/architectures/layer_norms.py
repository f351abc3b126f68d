"""Decoders of layer norms and GELU: StarCoder 2, Phi-1, Phi-1.5 and Phi-2, and StableLM with its gated MLP.

llama.cpp's GELU takes its values from a table of float16 on CPUs, so that it differs from transformers by more than
rounding: their figure is that of the table.
"""

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import NORM_EPSILON, hyperparameters
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, BLOCK_NAMES, Rule
from kvant.formats.huggingface.architectures.refusals import check_derived_head, check_tied, check_values
from kvant.formats.huggingface.architectures.rope import check_whole_rotation, config_theta
from kvant.formats.huggingface.architectures.transforms import AS_FLOAT32
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, boolean, u32

_ENGINE_THETA = 10000.0
_LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
_FFN = {"ffn_up": ("intermediate_size", "hidden_size")}


def partly_rotated(config: Config, architecture: str) -> dict[str, Value]:
    """Return the hyperparameters of a decoder that rotates a share of each head; a base only if llama.cpp's differs."""
    found = hyperparameters(config, architecture, epsilons=(NORM_EPSILON,))
    if config_theta(config) == _ENGINE_THETA:
        found.pop(f"{architecture}.rope.freq_base")
    head = config.integer("hidden_size") // config.integer("num_attention_heads")
    return found | {f"{architecture}.rope.dimension_count": u32(int(config.rotary_share * head))}


def check_starcoder2(config: Config) -> None:
    """Refuse a model without biases, which llama.cpp does not load."""
    check_whole_rotation(config)
    check_derived_head(config, "starcoder2")
    check_values(
        config, "starcoder2", use_bias=True, norm_type="layer_norm", mlp_type="default", scale_attn_weights=True
    )


STARCODER2 = Family(
    architecture="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    model_type="starcoder2",
    models="StarCoder 2",
    activation="gelu_pytorch_tanh",
    names={**ATTENTION_NAMES, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    required=(*ATTENTION_NAMES, "ffn_up", "ffn_down"),
    shapes=_FFN,
    epsilons=(NORM_EPSILON,),
    biased=(*_LINEAR, "attn_norm", "ffn_norm", "output_norm"),
    engine_biases=frozenset((*_LINEAR, "attn_norm", "ffn_norm", "output_norm")),
    check=check_starcoder2,
    unseen_window=lambda config: config.integer("sliding_window") if config.get("sliding_window") else None,
    entries=frozenset({
        "sliding_window", "use_bias", "norm_type", "mlp_type", "residual_dropout", "embedding_dropout",
        "activation_function", "layer_types", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
    }),
    defaults={
        "vocab_size": 49152, "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh",
    },
)  # fmt: skip

_PHI_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip


def check_phi2(config: Config) -> None:
    """Refuse norms of queries and keys and a head without bias, which llama.cpp does not load."""
    check_derived_head(config, "phi2")
    check_tied(config, "phi2", wanted=False)
    check_values(config, "phi2", qk_layernorm=False)


PHI2 = Family(
    architecture="phi2",
    classes=("PhiForCausalLM",),
    model_type="phi",
    models="Phi-1, Phi-1.5, Phi-2",
    activation="gelu_pytorch_tanh",
    names=_PHI_NAMES,
    outside={"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm", "output": "lm_head"},
    required=tuple(_PHI_NAMES),
    shapes=_FFN,
    epsilons=(NORM_EPSILON,),
    biased=(*_PHI_NAMES, "output_norm", "output"),
    engine_biases=frozenset((*_PHI_NAMES, "output_norm", "output")),
    check=check_phi2,
    own_metadata=lambda config: partly_rotated(config, "phi2"),
    entries=frozenset({"qk_layernorm"}),
    defaults={
        "vocab_size": 51200, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False, "hidden_act": "gelu_new",
    },
)  # fmt: skip


def check_stablelm(config: Config) -> None:
    """Refuse a head that is the embedding and heads of a length of their own."""
    check_derived_head(config, "stablelm")
    check_tied(config, "stablelm", wanted=False)


def _stablelm_stems(config: Config, _: int) -> tuple[str, ...]:
    """The stems of a block: without a norm of the MLP where both parts work side by side."""
    left_out = {"ffn_norm"} if config.flag("use_parallel_residual") else set()
    norms = ("attn_q_norm", "attn_k_norm") if config.flag("qk_layernorm") else ()
    return (*(stem for stem in BLOCK_NAMES if stem not in left_out), *norms)


def _stablelm_metadata(config: Config) -> dict[str, Value]:
    side_by_side = boolean(config.flag("use_parallel_residual"))
    return {**partly_rotated(config, "stablelm"), "stablelm.use_parallel_residual": side_by_side}


STABLELM = Family(
    architecture="stablelm",
    classes=("StableLmForCausalLM",),
    model_type="stablelm",
    models="StableLM 2 and 3B",
    names=BLOCK_NAMES,
    rules=(
        Rule("attn_q_norm.weight", "self_attn.q_layernorm.norms.{}.weight", AS_FLOAT32, "num_attention_heads"),
        Rule("attn_k_norm.weight", "self_attn.k_layernorm.norms.{}.weight", AS_FLOAT32, "num_key_value_heads"),
    ),
    required=_stablelm_stems,
    shapes={
        "attn_q_norm": ("num_attention_heads", "head_dim"), "attn_k_norm": ("num_key_value_heads", "head_dim"),
    },
    epsilons=(NORM_EPSILON,),
    biased=("attn_norm", "ffn_norm", "output_norm"),
    bias_flags={"use_qkv_bias": ATTENTION_BIASES[:3]},
    engine_biases=frozenset((*ATTENTION_BIASES[:3], "attn_norm", "ffn_norm", "output_norm")),
    check=check_stablelm,
    own_metadata=_stablelm_metadata,
    entries=frozenset({"use_parallel_residual", "qk_layernorm", "use_qkv_bias"}),
    returned=lambda model: {
        "use_parallel_residual": bool(model.get("stablelm.use_parallel_residual")),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in model.tensors,
    },
    defaults={
        "vocab_size": 50304, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25, "tie_word_embeddings": False,
    },
)  # fmt: skip
