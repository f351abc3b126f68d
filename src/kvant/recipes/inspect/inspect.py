"""Say what a model file holds, how precise it is and what is wrong with it."""

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from kvant.devices.active import active_weights
from kvant.dtypes import Family, precision_class
from kvant.formats.gguf.companions import read_projector
from kvant.formats.gguf.kinds import MODEL, PROJECTOR, kind_of
from kvant.formats.huggingface.headers import usual_name, usual_names
from kvant.formats.open import format_name, open_as_stored
from kvant.metadata import StringArray, Value, ValueType
from kvant.model import Model
from kvant.quant.grids import grid_of
from kvant.quant.presets import PRESETS
from kvant.quant.roles import EMBEDDINGS, OUTPUT
from kvant.recipes.inspect.findings import fallbacks, has_chat_template, warnings
from kvant.tensors import Tensor, n_bytes, n_weights

_SHOWN_ITEMS = 8
_LEAST_SHARE = 0.5  # of the blocks of floats that restore a grid, for it to be named


class TensorReport(msgspec.Struct, frozen=True):
    """One tensor.

    Attributes:
        shape: Lengths of its axes in NumPy order.
        role: `embedding`, `output`, `attention`, `ffn`, `norm` or `other`.
        grid: Type that holds weights which lie on a grid, or comes nearest; None if they lie on none.
        grid_share: Share of its blocks that restore every weight, of a sample.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    type: str
    bpw: float
    precision_class: str
    bytes: int
    grid: str | None = None
    grid_share: float | None = None


class Share(msgspec.Struct, frozen=True):
    """Tensors that have a role or a type in common."""

    name: str
    tensors: int
    weights: int
    bytes: int
    bpw: float


class ArraySummary(msgspec.Struct, frozen=True):
    """A metadata array: its length and first items."""

    item_type: str
    length: int
    first: tuple[bool | int | float | str, ...]


class Entry(msgspec.Struct, frozen=True):
    """A metadata value with its GGUF type."""

    type: str
    value: bool | int | float | str | ArraySummary


class TokenizerReport(msgspec.Struct, frozen=True):
    """What turns text into token ids.

    Attributes:
        model: Its kind, llama.cpp's name: `gpt2` is byte-level BPE, `llama` is SentencePiece.
        pre: The pre-tokenizer's name.
        bos: Text of the token that begins a text; None if there is none.
        eos: Text of the token that ends a turn.
    """

    model: str
    pre: str | None
    tokens: int
    merges: int
    bos: str | None
    eos: str | None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """All that `kvant inspect` tells.

    Attributes:
        format: `gguf`, `huggingface` or `mlx`.
        preset: Name of the published mix that the file says it is; None if it does not say.
        size_bytes: Bytes of all its files.
        tensor_bytes: Bytes of the weights alone.
        active_weights: Weights that one token reads: of embeddings a row, of stacked experts those that are used.
        bpw: Bits per weight over all tensors.
        by_role: Shares of the roles, in their fixed order.
        by_type: Shares of the block types, largest first.
        fallbacks: Where rows did not fit the preset's type, one sentence each.
        warnings: What a user should know before using it, one sentence each.
    """

    path: str
    files: tuple[str, ...]
    format: str
    architecture: str
    name: str
    preset: str | None
    size_bytes: int
    tensor_bytes: int
    weights: int
    active_weights: int
    bpw: float
    precision_class: str
    by_role: tuple[Share, ...]
    by_type: tuple[Share, ...]
    tokenizer: TokenizerReport | None
    has_chat_template: bool
    fallbacks: tuple[str, ...]
    warnings: tuple[str, ...]
    metadata: dict[str, Entry]
    tensors: tuple[TensorReport, ...]


ROLES = ("embedding", "output", "attention", "ffn", "norm", "other")


def inspect(source: Model | Path) -> Inspection:
    """Inspect a GGUF file (or any shard of one), a Hugging Face directory, or a model that is open.

    Raises:
        FormatError: It is damaged, or no format read here.
        UnsupportedModelError: A Hugging Face model of an architecture that is not known.
    """
    model = source if isinstance(source, Model) else open_as_stored(source)
    reports = tuple(_report(model, tensor) for tensor in model.tensors.values())
    bpw = 8 * model.tensor_bytes / max(1, model.n_weights)
    preset = _preset(model)
    return Inspection(
        path=str(model.path),
        files=tuple(map(str, model.files)),
        format=format_name(model),
        architecture=model.architecture,
        name=model.name,
        preset=preset,
        size_bytes=sum(file.stat().st_size for file in model.files),
        tensor_bytes=model.tensor_bytes,
        weights=model.n_weights,
        active_weights=active_weights(model if format_name(model) == "gguf" else usual_names(model)),
        bpw=bpw,
        precision_class=precision_class(bpw).value,
        by_role=_shares(reports, [t.role for t in reports], order=ROLES),
        by_type=_shares(reports, [t.type for t in reports]),
        tokenizer=_tokenizer(model),
        has_chat_template=has_chat_template(model),
        fallbacks=fallbacks(model, preset),
        warnings=(*model.remarks, *_kind(model), *warnings(model)),
        metadata={key: _entry(value) for key, value in model.metadata.items()},
        tensors=reports,
    )


def _kind(model: Model) -> tuple[str, ...]:
    """Say of a GGUF that is no model what it is."""
    kind = kind_of(model)
    if kind == MODEL:
        return ()
    said = f"this file is of the kind {kind}: no model that could be run by itself."
    if kind != PROJECTOR:
        return (said,)
    eyes = read_projector(model.path)
    return (
        f"{said} By it ({eyes.kind}) models of width {eyes.width} have {' and '.join(eyes.abilities) or 'nothing'}.",
    )


def role_name(name: str) -> str:
    """Return what a tensor does, one of `ROLES`, from its canonical name."""
    if name.partition(".")[0] not in ("blk", "output", "token_embd"):  # a checkpoint's own name
        name = usual_name(name)
    if name in EMBEDDINGS:
        return "embedding"
    if name == OUTPUT:
        return "output"
    if "norm" in name:
        return "norm"
    if "attn_" in name or ".attn" in name:
        return "attention"
    return "ffn" if "ffn_" in name else "other"


def _report(model: Model, tensor: Tensor) -> TensorReport:
    kind, stored = tensor.block_type, model.stored.get(tensor.name)
    found = grid_of(model, tensor.name)
    found = found if found is not None and (stored is not None or found.share >= _LEAST_SHARE) else None
    grid, share = (found.kind, found.share) if found else (None, None)
    if stored is not None:
        bpw = 8 * stored.n_bytes / max(1, n_weights(tensor))
        return TensorReport(
            name=tensor.name, role=role_name(tensor.name), shape=tensor.shape, type=stored.kind, bpw=bpw,
            precision_class=precision_class(bpw).value, bytes=stored.n_bytes, grid=grid,
            grid_share=share,
        )  # fmt: skip
    return TensorReport(
        name=tensor.name,
        role=role_name(tensor.name),
        shape=tensor.shape,
        type=kind.name,
        bpw=kind.bpw,
        precision_class="integer" if kind.family is Family.INTEGER else kind.precision_class.value,
        bytes=n_bytes(tensor),
        grid=grid,
        grid_share=share,
    )


def _shares(tensors: Iterable[TensorReport], groups: Iterable[str], order: tuple[str, ...] = ()) -> tuple[Share, ...]:
    """Add tensors up by group; groups in the order given, else by their bytes, largest first."""
    sums: dict[str, np.ndarray] = {}
    for tensor, group in zip(tensors, groups, strict=True):
        one = np.array([1, math.prod(tensor.shape), tensor.bytes], object)
        sums[group] = sums.get(group, np.zeros(3, object)) + one
    names = [name for name in order if name in sums] or sorted(sums, key=lambda name: -sums[name][2])
    return tuple(
        Share(name, int(n), int(weights), int(size), 8 * size / max(1, weights))
        for name in names
        for n, weights, size in [sums[name]]
    )


def _preset(model: Model) -> str | None:
    number = None if model.stored else model.get("general.file_type")
    if type(number) is not int:  # an array would compare item by item
        return None
    return next((p.name for p in PRESETS.values() if p.file_type == number), None)


def _entry(value: Value) -> Entry:
    if value.type is not ValueType.ARRAY:
        return Entry(value.type.name, _plain(value.value))
    assert value.item_type is not None
    assert not isinstance(value.value, bool | int | float)
    first = tuple(_plain(item) for item in value.value[:_SHOWN_ITEMS])
    return Entry(value.type.name, ArraySummary(value.item_type.name, len(value.value), first))


def _plain(value: object) -> bool | int | float | str:
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, bool | int | float) else str(value)


def _tokenizer(model: Model) -> TokenizerReport | None:
    tokens = model.get("tokenizer.ggml.tokens")
    kind = model.get("tokenizer.ggml.model")
    if kind is None and tokens is None:
        return None
    pre = model.get("tokenizer.ggml.pre")
    return TokenizerReport(
        model=str(kind),
        pre=None if pre is None else str(pre),
        tokens=_length(tokens),
        merges=_length(model.get("tokenizer.ggml.merges")),
        bos=model.special_text("bos"),
        eos=model.special_text("eos"),
    )


def _length(items: object) -> int:
    return len(items) if isinstance(items, StringArray | list | tuple | np.ndarray) else 0
