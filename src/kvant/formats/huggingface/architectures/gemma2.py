"""Gemma 2: norms stored without their 1, four of them per block, every second layer windowed, capped logits."""

from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.gemma3 import GEMMA_NORMS, check_scale
from kvant.formats.huggingface.architectures.hyper import integer
from kvant.formats.huggingface.architectures.keys import Key, Kind, hyperparameters, written
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import PLUS_ONE
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value
from kvant.model import Model

LAYERS_27B = 46
"""The one size whose queries are scaled by hidden size over heads instead of by head length."""

ENGINE_THETA = 10000.0
"""Base of rotary frequencies where metadata has none; upstream writes none."""

_KEYS = (
    Key("attn_logit_softcapping", "attn_logit_softcapping", Kind.NUMBER),
    Key("final_logit_softcapping", "final_logit_softcapping", Kind.NUMBER),
    Key("attention.sliding_window", "sliding_window"),
)


def check(config: Config) -> None:
    """Refuse what llama.cpp's gemma2 would compute differently."""
    check_whole_rotation(config)
    check_scale(config, "gemma2", LAYERS_27B)
    kinds = config.items("layer_types")
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(config.n_layers)]
    if kinds is not None and kinds != alternating:
        raise UnsupportedModelError(
            f"{config.path}: layer_types is {shown(kinds)}, but llama.cpp's gemma2 windows every second layer from the "
            f"first on. Such a model cannot be stored as GGUF."
        )
    for key in _KEYS:
        if not config.get(key.theirs):
            raise UnsupportedModelError(
                f"{config.path}: {key.theirs} is {shown(config.get(key.theirs))}, but llama.cpp's gemma2 always has "
                f"one. Such a model cannot be stored as GGUF."
            )
    if config.flag("use_bidirectional_attention"):
        raise UnsupportedModelError(
            f"{config.path}: use_bidirectional_attention is true, which llama.cpp's gemma2 does not compute. Such a "
            f"model cannot be stored as GGUF."
        )


def metadata(config: Config) -> dict[str, Value]:
    """Return the hyperparameters; the base of rotary frequencies only where the engine would take another."""
    found = hyperparameters(config, "gemma2")
    if found["gemma2.rope.freq_base"].value == ENGINE_THETA:
        del found["gemma2.rope.freq_base"]
    return found | written(_KEYS, config, "gemma2")


def returned(model: Model) -> dict[str, Any]:
    """Return the entries that are Gemma 2's alone; queries are scaled as the engine scales them."""
    head = integer(model, "attention.key_length", 256)
    is_27b = integer(model, "block_count") == LAYERS_27B
    width = integer(model, "embedding_length") // integer(model, "attention.head_count")
    own = {name: value for key in _KEYS for name, value in key.back(model).items()}
    return {**own, "head_dim": head, "query_pre_attn_scalar": width if is_27b else head}


GEMMA2 = Family(
    architecture="gemma2",
    classes=("Gemma2ForCausalLM",),
    model_type="gemma2",
    models="Gemma 2",
    activation="gelu_pytorch_tanh",
    rope_types=frozenset({"default", "linear"}),
    names={**BLOCK_NAMES, **GEMMA_NORMS},
    required=(*BLOCK_NAMES, *GEMMA_NORMS),
    transforms=dict.fromkeys(("attn_norm", "output_norm", *GEMMA_NORMS), PLUS_ONE),
    own_metadata=metadata,
    check=check,
    is_tied=True,
    returned=returned,
    entries=frozenset({
        "hidden_activation", "query_pre_attn_scalar", "layer_types", "use_bidirectional_attention",
        "cache_implementation", *(key.theirs for key in _KEYS),
    }),
    bias_flags={"attention_bias": ATTENTION_BIASES},
    defaults={
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
)  # fmt: skip
