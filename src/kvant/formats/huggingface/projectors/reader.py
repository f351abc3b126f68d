"""Read the projector of a Hugging Face directory as a `Model`, in upstream's names and order; none of its code runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType
from kvant.errors import FormatError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.bounds import check_config
from kvant.formats.huggingface.checkpoint import plain_weights, weights_in_order
from kvant.formats.huggingface.config import (
    MAX_LAYERS,
    Config,
    architecture_name,
    read_config,
    read_json,
    read_optional_json,
    shown,
)
from kvant.formats.huggingface.general import general_metadata
from kvant.formats.huggingface.lazy import as_float32, renamed, reshaped, selected
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.huggingface.projectors.kinds import BY_CLASS
from kvant.formats.huggingface.projectors.table import Eyes, Source, part
from kvant.formats.huggingface.tokenizer.files import read_object
from kvant.formats.safetensors.reader import weight_files
from kvant.metadata import string, u32
from kvant.model import Model
from kvant.tensors import LazyTensor, Tensor, n_weights

FLOATS = (F32, F16, BF16)
_ENDS = (".patch_embd.weight", ".patch_merger.weight")


def eyes_of(directory: Path) -> Eyes | None:
    """Return the kind of projector that a directory's model has; None if it has none that kvant writes."""
    raw = read_optional_json(directory / "config.json")
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    eyes = BY_CLASS.get(name) if isinstance(name, str) else None
    return eyes if eyes is not None and eyes.takes(raw) else None


def read_projector_of(directory: Path, *, known_as: str = "") -> tuple[Model, Eyes]:
    """Open the projector in a model directory.

    Args:
        directory: With `config.json`, `preprocessor_config.json` and `*.safetensors`.
        known_as: Name that goes into metadata in place of the directory's.

    Raises:
        FormatError: A file is missing, malformed, or does not fit the configuration.
        UnsupportedModelError: The model has no projector of a kind that kvant writes.
    """
    path = directory / "config.json"
    flat = read_config(directory)
    name = architecture_name(flat, path)
    eyes = BY_CLASS.get(name)
    if eyes is None:
        raise UnsupportedModelError(
            f"{path}: architecture {shown(name)} has no projector that kvant writes. It writes those of "
            f"{', '.join(BY_CLASS)}."
        )
    source = _source(directory, eyes, flat, path)
    if not eyes.takes(source.whole.values):
        encoder = f"sees by the encoder {shown(source.vision.get('model_type'))}, not {eyes.encoder}"
        raise UnsupportedModelError(
            f"{path}: this model {'hears too (audio_config)' if eyes.sense else encoder}: kvant itself writes "
            f"projectors of {eyes.models}. Use upstream's converter: kvant convert {directory} --mmproj --converter "
            "upstream"
        )
    plain = plain_weights(weights_in_order(directory), flat, directory)
    tensors = _tensors(plain.tensors, eyes, source, path)
    general = general_metadata(directory, flat, sum(map(n_weights, tensors.values())), known_as=known_as)
    metadata = {
        "general.architecture": string("clip"), "general.type": string("mmproj"), **general,
        "general.file_type": u32(0), **dict(eyes.metadata(source)), "general.quantization_version": u32(2),
    }  # fmt: skip
    check_config(metadata, path)
    model = Model(
        metadata=metadata, tensors=tensors, path=directory, known_as=known_as or directory_identifier(directory),
        files=tuple(weight_files(directory)), remarks=plain.remarks,
    )  # fmt: skip
    return model, eyes


def _source(directory: Path, eyes: Eyes, flat: Mapping[str, Any], path: Path) -> Source:
    whole = Config(values=read_json(path), path=path)
    pictures = read_optional_json(directory / "preprocessor_config.json")
    processor = read_optional_json(directory / "processor_config.json")
    inner = processor.get("image_processor")
    pictures = {**pictures, **processor, **(inner if isinstance(inner, dict) else {})}
    vision = part(whole, "vision_config", path)
    defaults = eyes.defaults.get(str(vision.get("model_type")), {})
    vision = Config(values={**defaults, **vision.values}, path=path)
    return Source(
        whole=whole, vision=vision, text=Config(values=flat, path=path),
        pictures=Config(values=pictures, path=directory / "preprocessor_config.json"),
    )  # fmt: skip


def _tensors(weights: Mapping[str, Tensor], eyes: Eyes, source: Source, path: Path) -> dict[str, LazyTensor]:
    found: dict[str, LazyTensor] = {}
    embedding, token = eyes.token
    for theirs, tensor in weights.items():
        if embedding and theirs.endswith("embed_tokens.weight"):
            found[embedding] = _row(tensor, embedding, token, path.parent)
            continue
        name = theirs.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.", 1)
        if name.startswith((*eyes.skipped, *eyes.ignored)):
            continue
        places = eyes.canonical(name, source)
        if not places:
            raise UnsupportedModelError(
                f"{theirs}: is no tensor of a projector {eyes.kind} that kvant knows. Check that architectures in "
                f"{path} names the right class."
            )
        if tensor.block_type not in FLOATS:
            raise UnsupportedFormatError(
                f"{theirs}: its type {tensor.block_type} is not a plain float. Start from the full-precision model."
            )
        for stem, ours in places:
            if ours in found:
                raise FormatError(f"{path.parent}: {ours} comes from two tensors. Keep the weights of one model only.")
            change = eyes.changes.get(stem)
            changed = renamed(change(tensor, source.vision) if change else tensor, ours)
            found[ours] = as_float32(changed) if len(changed.shape) <= 1 else changed
    _check(found, eyes, source, path)
    return found


def _row(embeddings: Tensor, name: str, token: str, directory: Path) -> LazyTensor:
    """Return a token's row of the language model's embedding, F32.

    The engine asks for it (`clip.cpp`, PROJECTOR_TYPE_PIXTRAL). Upstream's converter has code for it (`llava.py`), but
    llama-cpp-python 0.3.36's drops the embedding before (`MmprojModel.filter_tensors`): its file does not load.

    Raises:
        FormatError: The tokenizer has no such token, or the embedding no such row.
    """
    known = read_object(directory, "tokenizer_config.json").get("added_tokens_decoder")
    listed = read_object(directory, "tokenizer.json").get("added_tokens")
    numbered = [(entry, key) for key, entry in known.items()] if isinstance(known, dict) else []
    numbered += [(entry, entry.get("id")) for entry in listed if isinstance(entry, dict)] if listed else []
    found = next((key for entry, key in numbered if isinstance(entry, dict) and entry.get("content") == token), None)
    if not str(found).isdecimal() or int(str(found)) >= embeddings.shape[0]:
        raise FormatError(
            f"{directory}: its token {token} is {found}, which the embedding of {embeddings.shape[0]} rows has no row "
            "for, and the projector needs it. Take the model's own tokenizer files."
        )
    row = selected(embeddings, np.array([int(str(found))]))
    return as_float32(reshaped(renamed(row, name), (row.shape[-1],)))


def _check(found: Mapping[str, Tensor], eyes: Eyes, source: Source, path: Path) -> None:
    """Refuse a projector that lacks tensors, as one whose shard is missing.

    Raises:
        FormatError: It does.
    """
    layers = source.vision.integer(eyes.layers, limit=MAX_LAYERS)
    wanted = [f"v.blk.{layer}.{stem}.weight" for layer in range(layers) for stem in eyes.names]
    lacking = next(
        (name for name in ("v.patch_embd.weight", *filter(None, eyes.token[:1]), *wanted) if name not in found), None
    )
    if lacking is not None:
        raise FormatError(f"{path.parent}: its projector lacks {lacking}. Download the model again, all of its files.")
    rows = found["v.blk.0.ffn_up.weight"].shape
    if rows != (source.vision.integer("intermediate_size"), source.vision.integer("hidden_size")):
        raise FormatError(f"{path}: v.blk.0.ffn_up.weight of {list(rows)} is not as vision_config says. Correct it.")


def stored_type(name: str, shape: tuple[int, ...], eyes: Eyes, target: BlockType) -> BlockType:
    """Return the type that upstream's converter gives a tensor when `target` is asked for.

    Source: `ModelBase.prepare_tensors`, `MmprojModel.tensor_force_quant` and those of the kinds.
    """
    stem = name.rpartition(".weight")[0]
    if len(shape) <= 1 or name.endswith("_norm.weight"):
        return F32
    if stem in (*eyes.always_f32, *eyes.always_f16):
        return F32 if stem in eyes.always_f32 else F16
    if any(end in name for end in _ENDS):
        return F16 if target is F16 else F32
    if not name.endswith(".weight"):
        return F32
    return F16 if shape[-1] % target.block_length else target
