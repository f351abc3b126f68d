"""Add an adapter to the weights of its base, row by row as they are read, in float32."""

from collections.abc import Collection, Mapping

import numpy as np

from kvant.dtypes import F32
from kvant.errors import FormatError
from kvant.formats.huggingface.adapters.reader import Adapter, Pair
from kvant.formats.huggingface.lazy import renamed
from kvant.kernels import decode
from kvant.kernels.linalg import matmul, matmul_tn
from kvant.tensors import LazyTensor, Tensor, n_rows, row_length

HEAD = "lm_head.weight"


def merged(weights: Mapping[str, Tensor], adapter: Adapter) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a base with an adapter in them, and a sentence that says what was done.

    Weights that change are float32: what they are rounded to is decided where they are written.

    Args:
        weights: Tensors of the base under transformers' names.
        adapter: The adapter.

    Raises:
        FormatError: The adapter changes a weight that the base does not have, or one of another shape.
    """
    found = _with_head(weights, {*adapter.pairs, *adapter.replaced})
    for name, pair in adapter.pairs.items():
        known = _known(name, found, adapter)
        wanted = (pair.a.shape[1], pair.b.shape[0]) if pair.is_embedding else (pair.b.shape[0], pair.a.shape[1])
        if found[known].shape != wanted:
            raise FormatError(
                f"{adapter.path}: {name} is changed by {list(wanted)}, but the base has {list(found[known].shape)}. "
                f"Give the base that it was trained on{_named(adapter)}."
            )
        found[known] = _sum(found[known], pair)
    for name, tensor in adapter.replaced.items():
        known = _known(name, found, adapter)
        if tensor.shape != found[known].shape:
            raise FormatError(
                f"{adapter.path}: {name} is {list(tensor.shape)}, but the base has {list(found[known].shape)}: it was "
                f"trained with another vocabulary. Give that base, or merge it with peft: merge_and_unload(), then "
                f"save_pretrained()."
            )
        found[known] = tensor
    others = f", {len(adapter.replaced)} tensors replaced" if adapter.replaced else ""
    return found, f"{adapter.path}: LoRA adapter merged into {len(adapter.pairs)} weights{others}, in float32."


def _with_head(weights: Mapping[str, Tensor], changed: Collection[str]) -> dict[str, Tensor]:
    """Return the weights with a head of its own, where that of a tied model is changed: the embedding to begin with."""
    embedding = next((name for name in weights if name.endswith("embed_tokens.weight")), None)
    if HEAD not in changed or HEAD in weights or embedding is None:
        return dict(weights)
    return {**weights, HEAD: renamed(weights[embedding], HEAD)}


def _known(name: str, weights: Mapping[str, Tensor], adapter: Adapter) -> str:
    """Return the base's name of a weight: a bare text model and one in a wrapper call it otherwise."""
    for candidate in (name, name.removeprefix("model."), f"model.{name}", name.replace("language_model.", "", 1)):
        if candidate in weights:
            return candidate
    raise FormatError(
        f"{adapter.path}: changes {name}, which the base does not have. Give the base that it was trained on"
        f"{_named(adapter)}."
    )


def _named(adapter: Adapter) -> str:
    return f" ({adapter.base})" if adapter.base else ""


def _sum(tensor: Tensor, pair: Pair) -> LazyTensor:
    length = row_length(tensor)

    def read(start: int, stop: int) -> np.ndarray:
        values = decode(tensor.read_bytes(start, stop), tensor.block_type, length)
        if stop <= start:
            return values.view(np.uint8)
        a = floats(pair.a, 0, n_rows(pair.a))
        b = floats(pair.b, 0, n_rows(pair.b)) if pair.is_embedding else floats(pair.b, start, stop)
        if pair.is_embedding:
            product = matmul_tn(np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b.T))
        else:
            product = matmul(b, a)
        return np.asarray(values + np.float32(pair.scale) * product, np.float32).view(np.uint8)

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=F32, read=read)


def floats(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Return rows of a matrix as float32."""
    return decode(tensor.read_bytes(start, stop), tensor.block_type, row_length(tensor))
