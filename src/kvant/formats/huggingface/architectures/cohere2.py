"""Command R7B and Command A: attention and MLP side by side after one layer norm, windowed layers alone rotated."""

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import NORM_EPSILON, Key, Kind, booleans
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES
from kvant.formats.huggingface.architectures.refusals import check_derived_head, check_tied, check_values
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.windows import windowed_layers, windows_back
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, string, u32

PERIOD = 4
NAMES = {ours: theirs for ours, theirs in BLOCK_NAMES.items() if ours != "ffn_norm"}


def check(config: Config) -> None:
    """Refuse a head of its own and shares of heads that are not rotated."""
    check_whole_rotation(config)
    check_derived_head(config, "cohere2")
    check_tied(config, "cohere2", wanted=True)
    check_values(config, "cohere2", rotary_pct=1, use_parallel_block=True, use_gated_activation=True, use_qk_norm=False)


def computed(config: Config) -> dict[str, Value]:
    """Return the window, the layers that have it where they are not three of four, and the whole rotation."""
    layers = windowed_layers(config, PERIOD)
    found: dict[str, Value] = {
        "attention.sliding_window": u32(config.integer("sliding_window")),
        "vocab_size": u32(config.integer("vocab_size")),
        "rope.dimension_count": u32(config.head_dim),
        "rope.scaling.type": string("none"),
    }
    if layers != [bool((layer + 1) % PERIOD) for layer in range(config.n_layers)]:
        found["attention.sliding_window_pattern"] = booleans(layers)
    return found


COHERE2 = Family(
    architecture="cohere2",
    classes=("Cohere2ForCausalLM",),
    model_type="cohere2",
    models="Command R7B, Command A, Aya",
    rope_types=frozenset({"default"}),
    names=NAMES,
    required=tuple(NAMES),
    epsilons=(NORM_EPSILON,),
    bias_flags={"attention_bias": ATTENTION_BIASES},
    check=check,
    computes_head_dim=True,
    computed=computed,
    keys=(Key("logit_scale", "logit_scale", Kind.NUMBER),),
    entries=frozenset({
        "sliding_window", "sliding_window_pattern", "_sliding_window_pattern",
        "layer_types", "rotary_pct", "order_of_interleaved_layers",
        "position_embedding_type", "use_embedding_sharing", "use_gated_activation", "use_parallel_block",
        "use_parallel_embedding", "use_qk_norm", "layer_switch", "cache_implementation",
    }),
    returned=lambda model: windows_back(model, PERIOD),
    defaults={
        "vocab_size": 256000, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
        "sliding_window": 4096, "tie_word_embeddings": True,
    },
)  # fmt: skip
