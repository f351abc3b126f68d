"""Granite 3: Llama's layout, with four multipliers."""

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import Key, Kind, hyperparameters, written
from kvant.formats.huggingface.architectures.llama import llama_computed
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, LLAMA_FLAGS, MLP_BIASES
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import ROTARY
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value

MULTIPLIERS = (
    Key("attention.scale", "attention_multiplier", Kind.NUMBER),
    Key("embedding_scale", "embedding_multiplier", Kind.NUMBER),
    Key("residual_scale", "residual_multiplier", Kind.NUMBER),
    Key("logit_scale", "logits_scaling", Kind.NUMBER),
)


def without_derived_head(config: Config) -> Config:
    """Return the configuration without a head length that llama.cpp derives itself."""
    derived = config.integer("hidden_size") // config.integer("num_attention_heads")
    left_out = {"head_dim"} if config.head_dim == derived else set()
    return Config(values={k: v for k, v in config.values.items() if k not in left_out}, path=config.path)


def metadata(config: Config) -> dict[str, Value]:
    """Return Llama's hyperparameters and the multipliers."""
    found = hyperparameters(without_derived_head(config), "granite")
    found |= {f"granite.{key}": value for key, value in llama_computed(config).items()}
    return found | written(MULTIPLIERS, config, "granite")


GRANITE = Family(
    architecture="granite",
    classes=("GraniteForCausalLM",),
    model_type="granite",
    models="Granite 3",
    since="0.1",
    transforms=ROTARY,
    check=check_whole_rotation,
    bias_flags=LLAMA_FLAGS,
    engine_biases=frozenset((*ATTENTION_BIASES, *MLP_BIASES)),
    own_metadata=metadata,
    keys=MULTIPLIERS,
    defaults={
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        **{key.theirs: 1.0 for key in MULTIPLIERS},
    },
)  # fmt: skip
