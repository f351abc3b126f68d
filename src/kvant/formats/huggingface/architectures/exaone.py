"""EXAONE 4: norms after attention and MLP; the model of 64 layers has windowed layers, which alone are rotated."""

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import booleans
from kvant.formats.huggingface.architectures.llama3_rope import llama3_entries, llama3_factors
from kvant.formats.huggingface.architectures.olmo import AFTER_NAMES
from kvant.formats.huggingface.architectures.refusals import check_derived_head
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.windows import windowed_layers, windows_back
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, u32

PERIOD = 4
LAYERS_32B = 64
"""The one size in which llama.cpp has windowed layers, whatever the file says."""


def check(config: Config) -> None:
    """Refuse windows at another number of layers than those of the 32B model, and none there."""
    check_whole_rotation(config)
    check_derived_head(config, "exaone4")
    has_window = bool(config.get("sliding_window"))
    if has_window != (config.n_layers == LAYERS_32B):
        raise UnsupportedModelError(
            f"{config.path}: sliding_window is {config.get('sliding_window')} at {config.n_layers} layers, but "
            f"llama.cpp's exaone4 has windowed layers at {LAYERS_32B} layers, and at no other number. Such a model "
            f"cannot be stored as GGUF."
        )


def computed(config: Config) -> dict[str, Value]:
    """Return the size of the vocabulary, the window and the layers that have it."""
    found: dict[str, Value] = {"vocab_size": u32(config.integer("vocab_size"))}
    if config.get("sliding_window"):
        found["attention.sliding_window"] = u32(config.integer("sliding_window"))
        found["attention.sliding_window_pattern"] = booleans(windowed_layers(config, PERIOD))
    return found


EXAONE4 = Family(
    architecture="exaone4",
    classes=("Exaone4ForCausalLM",),
    model_type="exaone4",
    models="EXAONE 4.0 (1.2B, 32B)",
    rope_types=frozenset({"default", "linear", "yarn", "llama3"}),
    names=AFTER_NAMES,
    required=tuple(AFTER_NAMES),
    extra_tensors=llama3_factors,
    check=check,
    computed=computed,
    entries=frozenset({"sliding_window", "sliding_window_pattern", "layer_types"}),
    config=llama3_entries,
    returned=lambda model: {"sliding_window": None, **windows_back(model, PERIOD)},
    defaults={
        "vocab_size": 102400, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "num_key_value_heads": 32,
        "tie_word_embeddings": False, "sliding_window": 4096,
    },
)  # fmt: skip
