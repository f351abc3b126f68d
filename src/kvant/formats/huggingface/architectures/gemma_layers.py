"""What Gemma 3n and 4 share: layers of two kinds, keys and values of earlier layers, and embeddings per layer."""

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.config import Config, shown

WINDOWED, FULL = "sliding_attention", "full_attention"

PER_LAYER_NAMES = {
    "inp_gate": "per_layer_input_gate", "proj": "per_layer_projection", "post_norm": "post_per_layer_input_norm",
}  # fmt: skip
"""Where a block takes the embedding of its own in."""

PER_LAYER_OUTSIDE = {
    "per_layer_token_embd": "model.embed_tokens_per_layer", "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}  # fmt: skip


def per_layer_shapes(config: Config, layer: int | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors of embeddings per layer, in a block or outside of them; -1 for any length."""
    if not config.get("hidden_size_per_layer_input"):
        return {}
    length, hidden = config.integer("hidden_size_per_layer_input"), config.integer("hidden_size")
    if layer is not None:
        return {"inp_gate": (length, hidden), "proj": (hidden, length), "post_norm": (hidden,)}
    all_layers = config.n_layers * length
    return {
        "per_layer_token_embd": (-1, all_layers), "per_layer_model_proj": (all_layers, hidden),
        "per_layer_proj_norm": (length,),
    }  # fmt: skip


def layer_kinds(config: Config, period: int) -> list[str]:
    """Return for each layer whether it is windowed or attends to everything; by default each `period`-th does.

    Raises:
        FormatError: `layer_types` has another length, or kinds that there are not.
    """
    default = [WINDOWED if (layer + 1) % period else FULL for layer in range(config.n_layers)]
    kinds = config.items("layer_types") or default
    if len(kinds) != config.n_layers or not set(kinds) <= {WINDOWED, FULL}:
        raise FormatError(
            f"{config.path}: layer_types is {shown(kinds)}, not {WINDOWED} or {FULL} for each of {config.n_layers} "
            f"layers. Correct it."
        )
    return list(kinds)


def n_shared(config: Config) -> int:
    """Return how many of the last layers use keys and values of earlier ones."""
    return config.integer("num_kv_shared_layers", 0, least=0)


def has_keys(config: Config, layer: int) -> bool:
    """Whether a layer computes keys and values of its own."""
    return layer < config.n_layers - n_shared(config)


def check_sharing(config: Config, kinds: list[str]) -> None:
    """Refuse layers that would share other keys and values in llama.cpp: there, those of the last two before them."""
    first = config.n_layers - n_shared(config)
    if first < config.n_layers and (first < 2 or kinds[first - 2 : first] != [WINDOWED, FULL]):
        raise UnsupportedModelError(
            f"{config.path}: the last {n_shared(config)} layers share the keys and values of earlier ones, but those "
            f"just before are {shown(kinds[max(0, first - 2) : first])}, not a windowed and a full one, whose "
            f"llama.cpp takes. Such a model cannot be stored as GGUF."
        )
