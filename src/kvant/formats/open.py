"""Open a model of any format read here."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from kvant.errors import UnsupportedModelError
from kvant.formats.base import FormatName, sniff
from kvant.formats.tied import HEAD, head_once
from kvant.model import Model


def opened(source: Model | Path | str) -> Model:
    """Return a model, which is opened where a path is given; see `open_model`."""
    return source if isinstance(source, Model) else open_model(source)


def open_with_adapter(path: Path | str, adapter: Path | str) -> Model:
    """Open a Hugging Face directory with a LoRA adapter of PEFT merged into its weights, as they are read.

    Args:
        path: The base's directory.
        adapter: The adapter's.

    Raises:
        UnsupportedModelError: The base is no Hugging Face directory, or the adapter is none that is merged.
        FormatError: Either is damaged, or they do not fit one another.
    """
    path, adapter = Path(path), Path(adapter)
    if sniff(path) != "huggingface":
        raise UnsupportedModelError(
            f"{path}: is no Hugging Face directory, and adapters are merged into those. Give the directory of the "
            f"model that {adapter} was trained on."
        )
    from kvant.formats.huggingface.adapters.reader import read_adapter
    from kvant.formats.huggingface.naming import directory_identifier
    from kvant.formats.huggingface.reader import read_huggingface

    known_as = f"{directory_identifier(path)}-{adapter.resolve().name}"
    return read_huggingface(path, known_as=known_as, adapter=read_adapter(adapter))


def open_model(path: Path | str, *, known_as: str = "", kinds: Collection[str] = ("model",)) -> Model:
    """Open a GGUF file (or any shard of one) or a Hugging Face directory; weights are mapped, a head is looked at.

    A head that only repeats the embedding is left out, with a remark: engines take the embedding then. For that a
    stored head is compared with the embedding: some rows of it, and all where those agree.

    Args:
        path: The file or directory.
        known_as: Name that goes into metadata in place of the file's or directory's own.
        kinds: What a GGUF may be: `model`, and for those that ask no more than tensors `mmproj`.

    Raises:
        FormatError: It is damaged, or no format read here.
        UnsupportedFormatError: It is an adapter, an importance file or the like.
        UnsupportedModelError: A Hugging Face model of an architecture that is not known.
    """
    path = Path(path)
    return _OPENERS[sniff(path)](path, known_as, kinds)


def open_as_stored(path: Path | str) -> Model:
    """Open what is at a path just as it is, to look at: a GGUF of any kind, with all that it stores.

    Of a Hugging Face directory whose architecture is not known, headers and configuration are told.

    Raises:
        FormatError, UnsupportedModelError: As for `open_model`.
    """
    path = Path(path)
    return _OPENERS_AS_STORED.get(sniff(path), open_model)(path)


def open_to_estimate(path: Path | str) -> Model:
    """Open what is at a path for sizes and memory: a directory of unknown architecture by the usual words of its names.

    Its eyes and ears are left away: they are no part of the language model's file.

    Raises:
        FormatError, UnsupportedFormatError: As for `open_model`.
    """
    from kvant.formats.huggingface.architectures.family import OTHER_PARTS
    from kvant.formats.huggingface.headers import usual_names

    try:
        return open_model(path)
    except UnsupportedModelError:
        if sniff(Path(path)) != "huggingface":
            raise
        model = open_as_stored(path)
        own = {n: t for n, t in model.tensors.items() if not n.removeprefix("model.").startswith(OTHER_PARTS)}
        return usual_names(dataclasses.replace(model, tensors=own))


def format_name(model: Model) -> str:
    """Return the format that an open model was read from: `gguf`, `huggingface`, or `mlx` if it is quantized so."""
    is_mlx = any(not stored.is_base for stored in model.stored.values())
    return "mlx" if is_mlx else sniff(model.path)


def _open_gguf(path: Path, known_as: str, kinds: Collection[str]) -> Model:
    from kvant.formats.gguf.kinds import check_kind

    model = dataclasses.replace(_gguf_as_stored(path), known_as=known_as or path.name)
    check_kind(model, kinds)
    return _head_once(_floats_narrowed(model))


def _gguf_as_stored(path: Path) -> Model:
    from kvant.formats.gguf.reader import read_gguf

    return dataclasses.replace(read_gguf(path), known_as=path.name)


def _open_huggingface(path: Path, known_as: str, _: Collection[str]) -> Model:
    from kvant.formats.huggingface.reader import read_huggingface

    return read_huggingface(path, known_as=known_as)


def _huggingface_as_stored(path: Path) -> Model:
    """Open a directory as a model if its architecture is known, else as its headers tell."""
    from kvant.formats.huggingface.headers import read_headers

    try:
        return _open_huggingface(path, "", ())
    except UnsupportedModelError as error:
        return read_headers(path, str(error).removeprefix(f"{path}/config.json: "))


_OPENERS: dict[FormatName, Callable[[Path, str, Collection[str]], Model]] = {
    "gguf": _open_gguf,
    "huggingface": _open_huggingface,
}
_OPENERS_AS_STORED: dict[FormatName, Callable[[Path], Model]] = {
    "gguf": _gguf_as_stored, "huggingface": _huggingface_as_stored,
}  # fmt: skip


def _floats_narrowed(model: Model) -> Model:
    """Read F64, which no engine computes with, as F32."""
    wide = [name for name, tensor in model.tensors.items() if tensor.block_type.name == "F64"]
    if not wide:
        return model
    from kvant.formats.recode import narrowed

    tensors = {name: narrowed(t) if name in wide else t for name, t in model.tensors.items()}
    remark = f"{len(wide)} tensors (first {wide[0]}) are F64 and are read as F32."
    return dataclasses.replace(model, tensors=tensors, remarks=(*model.remarks, remark), is_mended=True)


def _head_once(model: Model) -> Model:
    """Leave a head out that equals the embedding, of architectures whose engine does without."""
    from kvant.formats.huggingface.architectures.registry import FAMILIES

    if HEAD not in model.tensors or model.architecture not in {family.architecture for family in FAMILIES}:
        return model
    tensors, remark = head_once(model.tensors)
    if not remark:
        return model
    return dataclasses.replace(model, tensors=tensors, remarks=(*model.remarks, remark), is_mended=True)
