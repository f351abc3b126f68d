"""Write a `Model` as a Hugging Face directory: decoded safetensors, config.json, tokenizer."""

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvant.dtypes import F32, BlockType, block_type
from kvant.errors import FormatError, UnsupportedModelError
from kvant.files import partial_path
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.registry import family_of_class, family_of_model
from kvant.formats.huggingface.architectures.shapes import check_tensors
from kvant.formats.huggingface.config import MAX_LAYERS, Config, architecture_name, read_config
from kvant.formats.huggingface.directory import (
    CONFIG,
    INDEX,
    check_directory,
    commit_directory,
    copy_companions,
    write_json,
    write_weights,
)
from kvant.formats.huggingface.lazy import renamed, rows_of
from kvant.formats.huggingface.tokenizer.writer import write_tokenizer
from kvant.formats.recode import recoded
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.tensors import LazyTensor, Tensor, array_tensor, n_bytes, n_rows

TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
GENERATED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that go into config.json instead."""

REPLACED = frozenset({
    "text_config", "vision_config", "quantization", "quantization_config", "compression_config", "kvant", "dtype",
    "rope_parameters", "rope_scaling", "_name_or_path", "auto_map",
})  # fmt: skip
"""Entries of a source's config.json that are not true of what is written, or are written otherwise."""

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
    family = family_of_model(model)
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
        write_json(partial / "generation_config.json", generation_config(model, entries))
        if not (model.path / "tokenizer.json").is_file():
            write_tokenizer(model, partial)
        if model.path.is_dir():
            copy_companions(model.path, partial)
        write_json(partial / CONFIG, with_own_entries(entries, model))
        commit_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuple(directory / name for name in files)


def with_own_entries(entries: dict[str, Any], model: Model) -> dict[str, Any]:
    """Return the content of config.json with what a source directory's own says beyond it, and its own class."""
    if not model.path.is_dir():
        return entries
    own = read_config(model.path)
    family = family_of_class(architecture_name(own, model.path), model.path)
    kept = {key: value for key, value in own.items() if key not in entries and key not in REPLACED}
    if own.get("max_position_embeddings"):  # of a GGUF it may be less: what its engine sees of the context
        kept["max_position_embeddings"] = own["max_position_embeddings"]
    return {**entries, "architectures": [family.classes[0]], "model_type": family.model_type, **kept}


def config_json(model: Model, family: Family, dtype: str) -> dict[str, Any]:
    """Return the content of config.json."""
    entries: dict[str, Any] = {
        "architectures": [family.classes[0]],
        "model_type": family.model_type,
        "torch_dtype": TORCH_DTYPES[dtype],
        "hidden_act": family.activation,
        **family.config_entries(model),
        "vocab_size": vocabulary_size(model),
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }
    for flag, stems in family.bias_flags.items():
        has = any(f"blk.{layer}.{stem}.bias" in model.tensors for stem in stems for layer in range(MAX_LAYERS))
        if has or family.defaults.get(flag):
            entries.setdefault(flag, has)
    for key, source in SPECIAL_IDS:
        value = model.get(source)
        if value is not None:
            entries[key] = value
    return entries


def generation_config(model: Model, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of generation_config.json: special tokens as config.json's `entries` have them, and others."""
    found = {key: entries[key] for key, _ in SPECIAL_IDS if key in entries}
    suppressed = model.get("tokenizer.ggml.suppress_tokens")
    return found if suppressed is None else {**found, "suppress_tokens": np.asarray(suppressed).tolist()}


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
        for theirs, changed in _transformers_tensor(name, tensor, family, config):
            kind = tensor.block_type if tensor.block_type.name in kept else target
            found.append(renamed(recoded(changed, kind, threads=threads), theirs))
    found += _zero_biases(model, family, config, target)
    return sorted(found, key=lambda tensor: tensor.name)


def _transformers_tensor(name: str, tensor: Tensor, family: Family, config: Config) -> Iterator[tuple[str, Tensor]]:
    """Yield what transformers has in place of a tensor: itself, or the matrix of each expert.

    Raises:
        UnsupportedModelError: It has no such tensor.
    """
    place = family.theirs(name)
    if place is None or (place[1].change is not None and place[1].change.back is None):
        raise UnsupportedModelError(
            f"{name}: transformers' {family.classes[0]} has no such tensor. This model can stay GGUF only."
        )
    theirs, rule = place
    change = rule.change.back if rule.change else None
    if "{}" not in theirs:
        yield theirs, change(tensor, config) if change else tensor
        return
    count, *shape = tensor.shape
    for number in range(count):
        step = n_rows(tensor) // count
        part = rows_of(tensor, number * step, (number + 1) * step, tuple(shape))
        yield theirs.replace("{}", str(number)), change(part, config) if change else part


def _zero_biases(model: Model, family: Family, config: Config, target: BlockType) -> Iterator[LazyTensor]:
    """Biases that config.json asks for and a GGUF lacks: one entry asks for those of several matrices."""
    for layer in range(config.n_layers):
        for stem in sorted(family.biases(config)):
            name = f"blk.{layer}.{stem}"
            theirs, weight = family.transformers_name(f"{name}.bias"), model.tensors.get(f"{name}.weight")
            if theirs is not None and weight is not None and f"{name}.bias" not in model.tensors:
                yield recoded(array_tensor(theirs, np.zeros(weight.shape[0], np.float32), F32), target)


def in_transformers_order(model: Model) -> dict[str, Tensor]:
    """Return a model's tensors by canonical name, rows in transformers' order, stored as they are.

    Raises:
        UnsupportedModelError: The architecture is not supported.
    """
    family = family_of_model(model)
    config = Config(values=config_json(model, family, "F32"), path=model.path)
    found: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        place = family.theirs(name)
        change = place[1].change if place else None
        found[name] = change.back(tensor, config) if change and change.back else tensor
    return found
