"""Write a `Model` as an MLX directory, as mlx-lm does: its names, its config.json, its index."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvant.dtypes import block_type
from kvant.errors import UnsupportedModelError
from kvant.files import partial_path
from kvant.formats.huggingface.architectures.registry import family_of_model
from kvant.formats.huggingface.architectures.shapes import check_tensors
from kvant.formats.huggingface.config import Config, read_config
from kvant.formats.huggingface.directory import (
    CONFIG,
    INDEX,
    check_directory,
    commit_directory,
    copy_companions,
    weights_bytes,
    write_json,
    write_weights,
)
from kvant.formats.huggingface.mlx.layers import WEIGHT, Encoder, QuantizedLayer
from kvant.formats.huggingface.mlx.schemes import Scheme
from kvant.formats.huggingface.tokenizer.writer import write_tokenizer
from kvant.formats.huggingface.writer import TORCH_DTYPES, config_json, generation_config, transformers_tensors
from kvant.kernels.mlx import Grouping
from kvant.kernels.mlx_blocks import SAME_VALUES
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.tensors import LazyTensor, n_bytes

SHARD_BYTES = 5 << 30
"""As mlx-lm shares weights out."""

METADATA = {"format": "mlx"}
"""Of every file of weights."""

LayerEncoder = Callable[[str, Grouping], Encoder | None]
"""Gives the encoder of a layer, by its path, when its turn has come; None for that of `mx.quantize`."""

_DROPPED = ("_name_or_path", "auto_map", "vision_config", "quantization", "quantization_config")


def _default(_path: str, _grouping: Grouping) -> None:
    """The encoder of `mx.quantize` everywhere."""


def layer_shapes(tensors: Sequence[LazyTensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every layer that MLX can quantize, by its path: linear layers and embeddings."""
    return {t.name.removesuffix(WEIGHT): t.shape for t in tensors if len(t.shape) == 2 and t.name.endswith(WEIGHT)}


MODELS = frozenset({
    "LlamaForCausalLM", "MistralForCausalLM", "SmolLM3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "Gemma3ForCausalLM", "Phi3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM", "SeedOssForCausalLM",
})  # fmt: skip
"""Classes, the first of each family, whose MLX directories mlx-lm loads."""


def mlx_tensors(model: Model, dtype: str, *, keep_blocks: bool = False, threads: int = 0) -> list[LazyTensor]:
    """Return the tensors of a model under MLX's names, which are transformers', in one float type.

    With `keep_blocks`, matrices of a block type whose values MLX can hold stay blocks.

    Raises:
        UnsupportedModelError: The architecture is not supported, or has a tensor that transformers does not know.
    """
    family = family_of_model(model)
    if family.classes[0] not in MODELS and not family.experts:
        raise UnsupportedModelError(
            f"{model.path}: kvant writes no MLX directories of {family.classes[0]}: none was compared with "
            f"mlx-lm's. Use GGUF."
        )
    stack = next((name for name, tensor in model.tensors.items() if len(tensor.shape) > 2), None)
    if stack is not None:
        raise UnsupportedModelError(
            f"{model.path}: {stack} is a stack of experts, and kvant writes no MLX directories of mixtures of experts. "
            f"Use GGUF."
        )
    config = Config(values=config_json(model, family, dtype), path=model.path)
    check_tensors(model.tensors, family, config)
    kept = SAME_VALUES if keep_blocks else ()
    return transformers_tensors(model, family, config, dtype, kept=kept, threads=threads)


def write_mlx(
    model: Model,
    directory: Path,
    *,
    dtype: str,
    scheme: Scheme | None = None,
    encoder: LayerEncoder | None = None,
    provenance: Mapping[str, str] | None = None,
    keep_blocks: bool = False,
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
    threads: int = 1,
) -> tuple[Path, ...]:
    """Write a model that mlx-lm loads.

    Args:
        model: Any model of a supported architecture.
        directory: Where to write; made if absent.
        dtype: `F32`, `F16` or `BF16`: type of what is not quantized, and of affine scales and biases.
        scheme: Grouping of the quantized layers; None for none.
        encoder: Gives the encoder of a layer when its turn has come; by default, and for None, `mx.quantize`'s.
        provenance: Entries of an object `kvant` in config.json, which mlx-lm passes over; None for no such object.
        keep_blocks: Move blocks whose values MLX can hold as they are; the scheme is then theirs, and `dtype` F16.
        overwrite: Replace the files of a model that is there.
        max_file_bytes: Write shards of at most this size; 5 GiB by default.
        progress: Told of the bytes written.
        threads: Threads over rows.

    Returns:
        The files of weights.

    Raises:
        UnsupportedModelError: The architecture is not supported.
        OutputExistsError: There is a model in `directory` and `overwrite` is false.
        ValueRangeError: A weight is NaN or infinite, or overflows `dtype`.
    """
    directory = Path(directory)
    check_directory(directory, overwrite=overwrite)
    plain = mlx_tensors(model, dtype, keep_blocks=keep_blocks, threads=threads)
    scheme = _kept_scheme(plain) if keep_blocks else scheme
    tensors = stored_tensors(plain, scheme, dtype, encoder=encoder, keep_blocks=keep_blocks, threads=threads)
    own = {"kvant": dict(provenance)} if provenance else {}
    unfinished = partial_path(directory)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        placed = write_weights(
            unfinished, tensors, METADATA, max_file_bytes=max_file_bytes or SHARD_BYTES, progress=progress
        )
        total = {"total_size": sum(map(n_bytes, tensors)), "total_parameters": model.n_weights}
        write_json(unfinished / INDEX, {"metadata": total, "weight_map": dict(sorted(placed.items()))})
        _write_tokenizer(model, unfinished, dtype)
        write_json(unfinished / CONFIG, dict(sorted((_config(model, dtype, scheme) | own).items())))
        commit_directory(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return tuple(directory / name for name in dict.fromkeys(placed.values()))


def stored_tensors(
    plain: Sequence[LazyTensor], scheme: Scheme | None, dtype: str, *, encoder: LayerEncoder | None = None,
    keep_blocks: bool = False, threads: int = 1,
) -> list[LazyTensor]:  # fmt: skip
    """Return what files of weights hold, in their order: matrices as they are, or as words, scales and biases.

    Args:
        plain: The model's tensors, from `mlx_tensors`.
        scheme: Grouping of the quantized layers; None for none.
        dtype: Type of affine scales and biases.
        encoder: See `write_mlx`, as for the others.
        keep_blocks: Matrices are blocks that are moved.
        threads: Threads over rows.
    """
    tensors: list[LazyTensor] = []
    for tensor in plain:
        path = tensor.name.removesuffix(WEIGHT)
        grouping = scheme.layers.get(path) if scheme and tensor.name.endswith(WEIGHT) else None
        if grouping is None:
            tensors.append(tensor)
            continue
        layer = QuantizedLayer(
            tensor, grouping, block_type(dtype), encoder=partial(encoder or _default, path, grouping),
            threads=threads, keeps_blocks=keep_blocks,
        )  # fmt: skip
        tensors += layer.parts()
    return tensors


def stored_bytes(tensors: Sequence[LazyTensor], *, max_file_bytes: int | None = None) -> int:
    """Return the exact size of the files of weights that `write_mlx` makes of tensors; none is encoded.

    Args:
        tensors: From `stored_tensors`.
        max_file_bytes: Size of shards; 5 GiB by default.
    """
    return weights_bytes(tensors, METADATA, max_file_bytes=max_file_bytes or SHARD_BYTES)


def _kept_scheme(tensors: Sequence[LazyTensor]) -> Scheme | None:
    """The groupings of blocks that MLX can hold; the commonest is that of the whole model."""
    layers = {
        t.name.removesuffix(WEIGHT): SAME_VALUES[t.block_type.name] for t in tensors if t.block_type.name in SAME_VALUES
    }
    if not layers:
        return None
    return Scheme(usual=Counter(layers.values()).most_common(1)[0][0], layers=layers)


def _config(model: Model, dtype: str, scheme: Scheme | None) -> dict[str, Any]:
    """The source's own configuration where it has one; mlx-lm reads keys that a GGUF does not keep."""
    if model.path.is_dir():
        entries = {key: value for key, value in read_config(model.path).items() if key not in _DROPPED}
        for key in ("torch_dtype", "dtype"):
            if key in entries:
                entries[key] = TORCH_DTYPES[dtype]
    else:
        entries = config_json(model, family_of_model(model), dtype)
    entries = _tie_as_stored(entries, is_tied="output.weight" not in model.tensors)
    if scheme is None:
        return entries
    return {**entries, "quantization": scheme.entries(), "quantization_config": scheme.entries()}


def _tie_as_stored(entries: dict[str, Any], *, is_tied: bool) -> dict[str, Any]:
    """Let a configuration say whether there is a head; mlx-lm takes a model for tied where it says nothing."""
    inner = entries.get("text_config")
    if isinstance(inner, dict):
        entries = {**entries, "text_config": {**inner, "tie_word_embeddings": is_tied}}
    return {**entries, "tie_word_embeddings": is_tied}


def _write_tokenizer(model: Model, directory: Path, dtype: str) -> None:
    """Copy the files of a Hugging Face directory, or make them from a GGUF's metadata."""
    if model.path.is_dir():
        copy_companions(model.path, directory)
        return
    write_tokenizer(model, directory)
    entries = config_json(model, family_of_model(model), dtype)
    write_json(directory / "generation_config.json", generation_config(model, entries))
