"""EmbeddingGemma: Gemma 3 that looks both ways, with the two dense layers that follow the pooling.

Source: llama.cpp 0.3.36 `conversion/gemma.py` `EmbeddingGemma`, `src/models/gemma-embedding.cpp`.
"""

import dataclasses

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.gemma3 import GEMMA3
from kvant.formats.huggingface.architectures.gemma3 import check as check_gemma3
from kvant.formats.huggingface.architectures.gemma3 import computed as gemma3_metadata
from kvant.formats.huggingface.architectures.pooling import POOLED, folders, pooling
from kvant.formats.huggingface.config import Config, read_json, shown
from kvant.formats.huggingface.lazy import renamed
from kvant.formats.safetensors.reader import read_sharded
from kvant.metadata import Value, u32
from kvant.tensors import LazyTensor

_BOTH_WAYS = "use_bidirectional_attention"


def check(config: Config) -> None:
    """Refuse what Gemma 3 refuses, and a model that looks back only."""
    if not config.flag(_BOTH_WAYS):
        raise UnsupportedModelError(
            f"{config.path}: {_BOTH_WAYS} is not true, but llama.cpp's gemma-embedding looks both ways. Name "
            f"Gemma3ForCausalLM in architectures for a model that continues text."
        )
    values = {key: value for key, value in config.values.items() if key != _BOTH_WAYS}
    check_gemma3(Config(values=values, path=config.path))


def dense_layers(config: Config) -> dict[str, LazyTensor]:
    """Return the matrices of the dense layers by their names here: `dense_2`, `dense_3`.

    Raises:
        UnsupportedModelError: A layer has a bias or an activation function, or there are others.
    """
    found: dict[str, LazyTensor] = {}
    for folder in folders(config, "Dense"):
        name = {"2_Dense": "dense_2", "3_Dense": "dense_3"}.get(folder.name)
        entries, weights = read_json(folder / "config.json"), read_sharded(folder)
        activation = str(entries.get("activation_function", "torch.nn.modules.linear.Identity"))
        if name is None or set(weights) != {"linear.weight"} or not activation.endswith("Identity"):
            raise UnsupportedModelError(
                f"{folder}: holds {shown(sorted(weights))} with the activation {activation}, but llama.cpp's "
                f"gemma-embedding has 2_Dense and 3_Dense without biases and activations. Remove it from modules.json "
                f"to convert the model without."
            )
        found[name] = renamed(weights["linear.weight"], f"{name}.weight")
    return found


def computed(config: Config) -> dict[str, Value]:
    """Return Gemma 3's window, the pooling, and the sizes of the dense layers."""
    sizes = {name: tensor.shape for name, tensor in dense_layers(config).items()}
    return {
        **gemma3_metadata(config), **pooling(config),
        **{f"{name}_feat_in": u32(shape[1]) for name, shape in sizes.items()},
        **{f"{name}_feat_out": u32(shape[0]) for name, shape in sizes.items()},
    }  # fmt: skip


EMBEDDING_GEMMA = dataclasses.replace(
    GEMMA3,
    architecture="gemma-embedding",
    classes=("Gemma3TextModel",),
    models="EmbeddingGemma",
    since="0.2",
    has_head=False,
    modules=POOLED | {"Dense"},
    check=check,
    computed=computed,
    extra_tensors=lambda config: list(dense_layers(config).values()),
    config=None,
    one_way="its pooling is in files of sentence-transformers, which a GGUF does not hold",
    entries=GEMMA3.entries | {_BOTH_WAYS, "_sliding_window_pattern"},
)
