"""Write a `Model` as a Hugging Face directory: decoded safetensors, config.json, tokenizer."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kvant.dtypes import block_type
from kvant.errors import FormatError, UnsupportedModelError
from kvant.files import partial_path
from kvant.formats.huggingface.architectures.base import Family
from kvant.formats.huggingface.architectures.registry import family_of_architecture
from kvant.formats.huggingface.architectures.shapes import check_tensors
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.directory import (
    CONFIG,
    INDEX,
    check_directory,
    commit_directory,
    write_json,
    write_weights,
)
from kvant.formats.huggingface.lazy import renamed
from kvant.formats.huggingface.tokenizer_write import write_tokenizer
from kvant.formats.recode import recoded
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.tensors import LazyTensor, Tensor, n_bytes

TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
GENERATED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that go into config.json instead."""

SPECIAL_IDS = (
    ("bos_token_id", "tokenizer.ggml.bos_token_id"),
    ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ("pad_token_id", "tokenizer.ggml.padding_token_id"),
)


def write_huggingface(
    model: Model,
    directory: Path,
    *,
    dtype: str = "BF16",
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
    threads: int = 0,
) -> tuple[Path, ...]:
    """Write a model that transformers loads; quantized tensors are decoded.

    Args:
        model: Any model of a supported architecture.
        directory: Where to write; made if absent.
        dtype: `F32`, `F16` or `BF16`, for every tensor.
        overwrite: Replace the files of a model that is there.
        max_file_bytes: Write shards of at most this size.
        progress: Told of the bytes written.
        threads: Threads of the encoders; 0 for one per core.

    Returns:
        The files of weights.

    Raises:
        UnsupportedModelError: The architecture is not supported, or has a tensor that transformers does not know.
        OutputExistsError: There is a model in `directory` and `overwrite` is false.
        ValueRangeError: A weight overflows `dtype`.
    """
    directory = Path(directory)
    check_directory(directory, overwrite=overwrite)
    family = family_of_architecture(model.architecture, model.path)
    entries = config_json(model, family, dtype)
    config = Config(values=entries, path=model.path)
    check_tensors(model.tensors, family, config)
    tensors = transformers_tensors(model, family, config, dtype, threads=threads)
    partial = partial_path(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        placed = write_weights(partial, tensors, {"format": "pt"}, max_file_bytes=max_file_bytes, progress=progress)
        files = tuple(dict.fromkeys(placed.values()))
        if len(files) > 1:
            index = {"metadata": {"total_size": sum(map(n_bytes, tensors))}, "weight_map": placed}
            write_json(partial / INDEX, index)
        write_tokenizer(model, partial)
        ids = {key: entries[key] for key, _ in SPECIAL_IDS if key in entries}
        write_json(partial / "generation_config.json", ids)
        write_json(partial / CONFIG, entries)
        commit_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuple(directory / name for name in files)


def config_json(model: Model, family: Family, dtype: str) -> dict[str, Any]:
    """Return the content of config.json."""
    entries: dict[str, Any] = {
        "architectures": [family.classes[0]],
        "model_type": family.model_type,
        "torch_dtype": TORCH_DTYPES[dtype],
        "hidden_act": family.activation,
        **family.config(model),
        "vocab_size": vocabulary_size(model),
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }
    if family.architecture != "qwen2" and any(name.endswith("attn_q.bias") for name in model.tensors):
        entries["attention_bias"] = True  # Qwen2 has these biases without being told
    if any(name.endswith("ffn_down.bias") for name in model.tensors):
        entries["mlp_bias"] = True
    for key, source in SPECIAL_IDS:
        value = model.get(source)
        if value is not None:
            entries[key] = value
    return entries


def vocabulary_size(model: Model) -> int:
    """Return the number of embedding rows.

    Raises:
        FormatError: There is no embedding.
    """
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(f"{model.path}: has no token_embd.weight of two axes. Convert from the original model again.")
    return embedding.shape[0]


def transformers_tensors(
    model: Model, family: Family, config: Config, dtype: str, *, kept: Collection[str] = (), threads: int = 0
) -> list[LazyTensor]:
    """Return the tensors under transformers' names and in its layout, sorted by name.

    Those of the types `kept` stay as they are stored; all others become `dtype`.

    Raises:
        UnsupportedModelError: A tensor has no counterpart.
    """
    target, found = block_type(dtype), []
    for name, tensor in model.tensors.items():
        if name in GENERATED:
            continue
        theirs, stem = family.transformers_name(name), family.stem(name)
        if theirs is None or stem is None:
            raise UnsupportedModelError(
                f"{name}: transformers' {family.classes[0]} has no such tensor. This model can stay GGUF only."
            )
        transform = family.transforms.get(stem)
        changed = transform.back(tensor, config) if transform else tensor
        kind = tensor.block_type if tensor.block_type.name in kept else target
        found.append(renamed(recoded(changed, kind, threads=threads), theirs))
    return sorted(found, key=lambda tensor: tensor.name)


def in_transformers_order(model: Model) -> dict[str, Tensor]:
    """Return a model's tensors by canonical name, rows in transformers' order, stored as they are.

    Raises:
        UnsupportedModelError: The architecture is not supported.
    """
    family = family_of_architecture(model.architecture, model.path)
    config = Config(values=config_json(model, family, "F32"), path=model.path)
    found: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        transform = family.transforms.get(family.stem(name) or "")
        found[name] = transform.back(tensor, config) if transform else tensor
    return found
