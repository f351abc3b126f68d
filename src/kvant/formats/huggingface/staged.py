"""A model's directory laid out anew for another program: its checked files, and nothing that runs.

What another program finds there is what was looked at here: weights whose headers were read, configuration that is
bounded JSON, tokenizers that are files of this directory. Pickles, Python code and everything else stay behind, and the
entries that ask for code (`auto_map`) are taken out. Large files are links to the originals.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.dtypes import BF16, F16, F32, BlockType
from kvant.errors import LimitError
from kvant.formats.base import member
from kvant.formats.huggingface.architectures.unknown import upstream_class
from kvant.formats.huggingface.checkpoint import check_adapter
from kvant.formats.huggingface.config import architecture_name, read_json
from kvant.formats.huggingface.directory import write_json
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.huggingface.tokenizer.files import MAX_FILE_BYTES, read_object
from kvant.formats.safetensors import spec
from kvant.formats.safetensors.reader import left_over, read_sharded, weight_files
from kvant.tensors import Tensor, n_bytes, n_weights

SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".md", ".tiktoken"})
"""Endings of the files beside weights that converters read; none of them runs."""

REWRITTEN = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files whose entries may ask for code."""

CODE = "auto_map"
MAX_FILES = 1000
MAX_MODULES_BYTES = 1 << 16
SINGLE = "model.safetensors"
_CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A model's directory, read as far as another program may.

    Attributes:
        directory: Where it is.
        config: config.json.
        architecture: The class that upstream's converter takes it for.
        weights: Files that hold weights.
        others: Further files, by their path within.
        tensors: What the weights hold, by name.
        remarks: What is left out or read otherwise than it looks.
    """

    directory: Path
    config: Mapping[str, Any]
    architecture: str
    weights: tuple[Path, ...]
    others: Mapping[str, Path]
    tensors: Mapping[str, Tensor]
    remarks: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that another program will see."""
        return (*self.weights, *self.others.values())

    @property
    def name(self) -> str:
        """What the directory is called, or its repository."""
        return directory_identifier(self.directory).rpartition("/")[2]

    @property
    def n_weights(self) -> int:
        """Numbers in all tensors."""
        return sum(n_weights(tensor) for tensor in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(n_bytes(tensor) for tensor in self.tensors.values())

    @property
    def exact(self) -> BlockType:
        """The type that holds every matrix as it is: that of all if they agree, F32 for a mixture or what is packed."""
        kinds = Counter(t.block_type for t in self.tensors.values() if len(t.shape) > 1)
        only = next(iter(kinds)) if len(kinds) == 1 else F32
        return only if only in (F16, BF16) else F32


def check_directory(directory: Path) -> Checked:
    """Read a directory of a class that kvant has no family of, and refuse what must not reach another program.

    Raises:
        FormatError: A file is missing, malformed, or leads out of the directory.
        UnsupportedFormatError: The weights are pickles, or an adapter's.
        LimitError: A file is larger than what it holds can be.
    """
    directory = Path(directory)
    config = read_json(directory / _CONFIG)
    name = upstream_class(config) or architecture_name(config, directory / _CONFIG)
    check_adapter(directory)
    tensors = read_sharded(directory)
    others = dict(_others(directory))
    code = [
        f"{file} asks for Python code of the model ({CODE}); none is run."
        for file in REWRITTEN
        if file in others and read_object(directory, file).get(CODE)
    ]
    dense = sorted(set(_modules(directory)))
    left = (
        [f"The modules {', '.join(dense)} after the model are left out: llama.cpp's file holds none."] if dense else []
    )
    return Checked(
        directory=directory, config=config, architecture=name, weights=weight_files(directory), others=others,
        tensors=tensors, remarks=(*left_over(directory), *code, *left),
    )  # fmt: skip


def lay_out(checked: Checked, place: Path) -> Path:
    """Write a directory of a model's checked files under `place`, named as its own is; return it.

    Raises:
        FormatError: A file has changed since it was checked.
    """
    into = place / checked.name
    into.mkdir(parents=True)
    for within, path in checked.others.items():
        target = into / within
        target.parent.mkdir(exist_ok=True)
        content = read_object(checked.directory, within) if within in REWRITTEN else {}
        if CODE in content:
            write_json(target, {key: value for key, value in content.items() if key != CODE})
        else:
            shutil.copyfile(path, target)
    names = [file.name for file in checked.weights]
    if len(names) == 1 and spec.INDEX_NAME not in checked.others:
        names = [SINGLE]  # converters look for this name
    for name, path in zip(names, checked.weights, strict=True):
        (into / name).symlink_to(path.resolve())
    return into


def _others(directory: Path) -> Iterator[tuple[str, Path]]:
    """Files beside the weights that describe the model: of the directory, and of its folders."""
    uses_index = not (directory / spec.SINGLE_NAME).exists()
    found = [*directory.iterdir(), *(p for d in directory.iterdir() if _is_folder(d) for p in d.iterdir())]
    wanted = [path for path in found if path.suffix in SUFFIXES and (path.is_file() or path.is_symlink())]
    if len(wanted) > MAX_FILES:
        raise LimitError(f"{directory}: {len(wanted)} files are more than a model has ({MAX_FILES}). Move others away.")
    for path in sorted(wanted):
        if path.name.endswith(spec.INDEX_NAME.removeprefix("model")) and (path.parent != directory or not uses_index):
            continue
        real = member(path.parent, path.name)
        if real.stat().st_size > MAX_FILE_BYTES:
            raise LimitError(
                f"{path}: {real.stat().st_size} bytes are more than the limit of {MAX_FILE_BYTES} for a file that "
                f"describes a model. Download it again."
            )
        if path.name in REWRITTEN and path.parent == directory:
            read_object(directory, path.name)
        yield path.relative_to(directory).as_posix(), real


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")


def _modules(directory: Path) -> Iterator[str]:
    """Paths of what sentence-transformers computes after the model, beside pooling and normalizing."""
    path = directory / "modules.json"
    if not path.is_file() or path.stat().st_size > MAX_MODULES_BYTES:
        return
    try:
        listed = json.loads(member(directory, path.name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return
    for entry in listed if isinstance(listed, list) else ():
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if isinstance(kind, str) and kind.endswith(".Dense") and isinstance(place, str) and place:
            yield place
