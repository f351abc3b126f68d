"""A LoRA adapter as llama.cpp takes it beside its base (`--lora`): pairs under the base's canonical names.

Source: llama.cpp 0.3.36 `convert_lora_to_gguf.py` (keys, names), `src/llama-adapter.cpp` (scale = alpha / rank).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvant.dtypes import F32
from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.adapters.merge import floats
from kvant.formats.huggingface.adapters.reader import Adapter, Pair
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.names import Place
from kvant.formats.huggingface.architectures.registry import family_of_config
from kvant.formats.huggingface.config import Config, read_config
from kvant.formats.huggingface.lazy import renamed
from kvant.formats.huggingface.reader import complete_config
from kvant.metadata import Value, f32, string, u32
from kvant.model import Model
from kvant.tensors import LazyTensor, Tensor, array_tensor, n_rows

_MERGE = "Merge it instead: kvant convert BASE --lora DIR."


def adapter_model(adapter: Adapter, base: Path) -> Model:
    """Return an adapter as the tensors and metadata of a GGUF adapter, float32.

    Args:
        adapter: The adapter.
        base: Directory of its base, of which config.json is read.

    Raises:
        UnsupportedModelError: It changes what llama.cpp's adapters cannot.
    """
    path = Path(base) / "config.json"
    raw = read_config(Path(base))
    family = family_of_config(raw, path)
    config = complete_config(raw, family, path)
    if adapter.replaced:
        raise UnsupportedModelError(
            f"{adapter.path}: replaces {next(iter(adapter.replaced))}, which no adapter of llama.cpp does. {_MERGE}"
        )
    tensors = {t.name: t for name, pair in adapter.pairs.items() for t in _tensors(name, pair, adapter, family, config)}
    metadata: dict[str, Value] = {
        "general.architecture": string(family.architecture), "general.type": string("adapter"),
        "adapter.type": string("lora"), "adapter.lora.alpha": f32(adapter.alpha),
        "general.name": string(adapter.path.name), "general.file_type": u32(0),
        "general.quantization_version": u32(2),
    }  # fmt: skip
    return Model(metadata=metadata, tensors=tensors, path=adapter.path, files=adapter.files)


def _tensors(name: str, pair: Pair, adapter: Adapter, family: Family, config: Config) -> Iterator[LazyTensor]:
    for place in family.places(name, config):
        if place.expert is not None:
            break
        yield from _halves(place, pair, adapter, config)
        return
    raise UnsupportedModelError(
        f"{adapter.path}: changes {name}, which is no single matrix of llama.cpp's {family.architecture}. {_MERGE}"
    )


def _halves(place: Place, pair: Pair, adapter: Adapter, config: Config) -> Iterator[LazyTensor]:
    """Both matrices under canonical names: rows of the weight are rows of B, so what moves rows moves those."""
    b: Tensor = pair.b
    if place.change is not None:
        if not place.change.moves_rows:
            raise UnsupportedModelError(
                f"{adapter.path}: changes {place.name}, whose values are not stored as trained. {_MERGE}"
            )
        b = place.change.forward(b, config)
    wide = floats(b, 0, n_rows(b)) * np.float32(pair.scale * pair.rank / adapter.alpha)  # scale is alpha / rank there
    a = floats(pair.a, 0, n_rows(pair.a))
    if pair.is_embedding:
        a = np.ascontiguousarray(a.T)
    yield renamed(array_tensor("a", a, F32), f"{place.name}.lora_a")
    yield renamed(array_tensor("b", wide, F32), f"{place.name}.lora_b")
