"""What directories of models have in common, whoever they are for: shards, an index, and that they come whole."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvant.errors import KvantError, LimitError, OutputExistsError
from kvant.files import atomic_write, commit_file, sync_directory
from kvant.formats.base import member
from kvant.formats.safetensors.writer import file_bytes, write_safetensors
from kvant.progress import SILENT, Progress
from kvant.tensors import LazyTensor, n_bytes

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

TEMPLATES = "additional_chat_templates"

COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
"""What lies beside weights and configuration: the tokenizer, how to chat, and how to generate."""


def shard(tensors: Sequence[LazyTensor], limit: int | None) -> list[list[LazyTensor]]:
    """Share tensors out in order, so that the weights in a file are no more than `limit` bytes.

    Raises:
        LimitError: One tensor is larger than that.
    """
    groups: list[list[LazyTensor]] = [[]]
    size = 0
    for tensor in tensors:
        length = n_bytes(tensor)
        if limit is not None and length > limit:
            raise LimitError(f"{tensor.name}: its {length} bytes are above {limit}. Raise the size of a shard.")
        if limit is not None and groups[-1] and size + length > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += length
    return groups


def write_weights(
    directory: Path,
    tensors: Sequence[LazyTensor],
    metadata: Mapping[str, str],
    *,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, str]:
    """Write tensors in their order, as one file or as shards.

    Returns:
        The file of every tensor.

    Raises:
        LimitError: One tensor is larger than a file may be.
    """
    files = weight_layout(tensors, max_file_bytes)
    for name, group in files.items():
        write_safetensors(directory / name, group, metadata, overwrite=True, progress=progress)
    return {t.name: name for name, group in files.items() for t in group}


def weights_bytes(
    tensors: Sequence[LazyTensor], metadata: Mapping[str, str], *, max_file_bytes: int | None = None
) -> int:
    """Return the exact size of all files that `write_weights` makes; no tensor is read."""
    return sum(file_bytes(group, metadata) for group in weight_layout(tensors, max_file_bytes).values())


def weight_layout(tensors: Sequence[LazyTensor], limit: int | None) -> dict[str, list[LazyTensor]]:
    """Return the files of weights and what each holds; see `shard`."""
    groups = shard(tensors, limit)
    count = len(groups)
    if count == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{count:05d}.safetensors": group for i, group in enumerate(groups, 1)}


def commit_directory(partial: Path, directory: Path) -> None:
    """Move a finished model to its place; one that is there loses its configuration first and gets it last."""
    if not directory.exists():
        commit_file(partial, directory)
        return
    for path in (directory / CONFIG, directory / INDEX, *directory.glob("*.safetensors")):
        path.unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG):
        path.replace(directory / path.name)
    sync_directory(directory)


def copy_companions(source: Path, directory: Path) -> None:
    """Copy the files of `companions`.

    Raises:
        FormatError: One is a link that leads out of the source.
    """
    for name, path in companions(source).items():
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, directory / name)


def companions(source: Path) -> dict[str, Path]:
    """Return the files of `COMPANIONS` that a model has and its further chat templates, by their place in it.

    Raises:
        FormatError: One is a link that leads out of the source.
    """
    found = {name: member(source, name) for name in COMPANIONS if (source / name).exists()}
    folder = source / TEMPLATES
    for path in [] if folder.is_symlink() else sorted(folder.glob("*.jinja")):
        found[f"{TEMPLATES}/{path.name}"] = member(folder, path.name)
    return found


def check_directory(directory: Path, *, overwrite: bool) -> None:
    """Check that a model can be written here.

    Raises:
        OutputExistsError: There is a model already, or a file.
        KvantError: The directory above is missing.
    """
    if directory.exists() and not directory.is_dir():
        raise OutputExistsError(f"{directory}: is a file, not a directory. Choose another name.")
    if not directory.parent.is_dir():
        raise KvantError(f"{directory.parent}: is not a directory. Create it first.")
    if not directory.is_dir():
        return
    if not overwrite and (any(directory.glob("*.safetensors")) or (directory / CONFIG).exists()):
        raise OutputExistsError(f"{directory}: holds a model already. Choose another name or pass --overwrite.")


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document as people read it."""
    with atomic_write(path) as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
