"""SmolLM3: Llama's layout, with every fourth layer without rotation."""

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import config_entries
from kvant.formats.huggingface.architectures.llama import llama_computed
from kvant.formats.huggingface.architectures.llama3_rope import llama3_factors
from kvant.formats.huggingface.architectures.names import LLAMA_FLAGS
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import ROTARY
from kvant.formats.huggingface.config import Config, shown

INTERVAL = 4
"""llama.cpp skips the rotation in every fourth layer, whatever the file says."""


def check(config: Config) -> None:
    """Refuse another pattern of layers without rotation."""
    check_whole_rotation(config)
    wanted = [int((layer + 1) % INTERVAL != 0) for layer in range(config.n_layers)]
    found = config.items("no_rope_layers") or [
        int((layer + 1) % config.integer("no_rope_layer_interval", INTERVAL) != 0) for layer in range(config.n_layers)
    ]
    if found != wanted:
        raise UnsupportedModelError(
            f"{config.path}: no_rope_layers is {shown(found)}, but llama.cpp's smollm3 leaves out the rotation of "
            f"every {INTERVAL}th layer only. Such a model cannot be stored as GGUF."
        )


def unseen_window(config: Config) -> int | None:
    """Return the window of layers without rotation, if they have one; llama.cpp's smollm3 has none."""
    if not config.flag("use_sliding_window") or not config.get("sliding_window"):
        return None
    kinds = config.items("layer_types")
    return config.integer("sliding_window") if kinds is None or "sliding_attention" in kinds else None


SMOLLM3 = Family(
    architecture="smollm3",
    classes=("SmolLM3ForCausalLM",),
    model_type="smollm3",
    models="SmolLM3",
    since="0.1",
    rope_types=frozenset({"default", "linear", "yarn", "llama3"}),
    transforms=ROTARY,
    check=check,
    entries=frozenset({
        "no_rope_layers", "no_rope_layer_interval", "layer_types", "use_sliding_window", "sliding_window",
        "max_window_layers",
    }),
    bias_flags=LLAMA_FLAGS,
    unseen_window=unseen_window,
    computed=llama_computed,
    extra_tensors=llama3_factors,
    config=lambda model: {**config_entries(model), "no_rope_layer_interval": INTERVAL},
    defaults={
        "vocab_size": 128256, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 4,
        "rope_theta": 2000000.0, "tie_word_embeddings": True,
    },
)  # fmt: skip
