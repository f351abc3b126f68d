"""What is wrong or surprising with a model file: read from its header and from samples of its weights."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from kvant.dtypes import BlockType, Family, block_type
from kvant.errors import KvantError, PlanError
from kvant.formats.gguf.architectures import ENGINE_ARCHITECTURES
from kvant.formats.gguf.kinds import CLIP, RERANKS, makes_vectors, reranks
from kvant.kernels import decode
from kvant.model import Model
from kvant.quant.grids import sample
from kvant.quant.plan import fitting_type
from kvant.quant.presets import PRESETS
from kvant.quant.roles import EMBEDDINGS, OUTPUT, is_matrix
from kvant.recipes.inspect.grid import find_grid
from kvant.tensors import Tensor, n_bytes, n_rows, n_weights, row_length

_SUPER_BLOCK = 256
_SAMPLED_PLACES, _SAMPLED_RUN = 4, 4  # rows are read in runs: on a disk a row costs little more beside another
_SAMPLED_BYTES = 1 << 20  # of one tensor
_GRID_TENSORS = 6
_GRID_BLOCKS = 160  # of 32 weights, of one tensor
_MIN_HEAVY_SHARE = 0.25


def fallbacks(model: Model, preset: str | None) -> tuple[str, ...]:
    """Say where rows did not fit the blocks of a preset's type, so that a larger type stands in, and what it costs.

    A guess from the outside: weight matrices whose rows are no multiple of 256, of the very type that llama.cpp
    substitutes for one of the preset's, in a file that says it is a preset of 256-weight blocks.
    """
    if preset is None or _base(preset).block_length != _SUPER_BLOCK:
        return ()
    tensors: Counter[tuple[int, str, str]] = Counter()
    weights: Counter[tuple[int, str, str]] = Counter()
    for tensor in model.tensors.values():
        length = row_length(tensor)
        meant = _meant_type(_base(preset), tensor.block_type, length)
        if meant is not None:
            tensors[length, tensor.block_type.name, meant.name] += 1
            weights[length, tensor.block_type.name, meant.name] += n_weights(tensor)
    return tuple(
        f"{count} tensors with rows of {group[0]} weights, no multiple of {_SUPER_BLOCK}, are {group[1]} instead of "
        f"{group[2]}: {_cost(group, weights[group]):+,} bytes."
        for group, count in tensors.items()
    )


def _meant_type(base: BlockType, found: BlockType, length: int) -> BlockType | None:
    """The type that `found` most likely stands in for; None if it is no substitute."""
    if not found.is_quantized or length % _SUPER_BLOCK == 0:
        return None
    for name in (base.name, "Q4_K", "Q5_K", "Q6_K"):
        with contextlib.suppress(PlanError):
            if fitting_type(name, length) == found.name:
                return block_type(name)
    return None


def _cost(group: tuple[int, str, str], n: int) -> int:
    return round((block_type(group[1]).bpw - block_type(group[2]).bpw) * n / 8)


def warnings(model: Model) -> tuple[str, ...]:
    """Say what a user should know before using the model, most serious first."""
    return (
        *_broken_values(model),
        *_earlier_quantization(model),
        *_missing(model),
        *_heavy_ends(model),
        *_odd_names(model),
    )


def has_chat_template(model: Model) -> bool:
    """Whether there is a chat template that is text."""
    template = model.get("tokenizer.chat_template")
    return isinstance(template, str) and bool(template)


def _base(preset: str) -> BlockType:
    return block_type(PRESETS[preset].base)


def _broken_values(model: Model) -> Iterator[str]:
    """NaN and infinity in a sample of every tensor's rows."""
    broken = []
    for tensor in model.tensors.values():
        rows = _sample(tensor)
        if rows is not None and not np.isfinite(rows).all():
            broken.append(tensor.name)
    if broken:
        yield (
            f"{len(broken)} tensors hold NaN or infinity, first {broken[0]!r}: the model computes nothing of use. "
            "Download or train it again."
        )


def _earlier_quantization(model: Model) -> Iterator[str]:
    """A grid under float weights; of what is stored as one, and may be carried over, that is said elsewhere."""
    matrices = [
        t for t in model.tensors.values()
        if t.block_type.family is Family.FLOAT and is_matrix(t.shape) and row_length(t) >= 32 and n_rows(t) >= 8
        and not (t.name in model.stored and model.stored[t.name].is_base)
    ]  # fmt: skip
    if not matrices:
        return
    step = max(1, len(matrices) // _GRID_TENSORS)
    samples = [s for t in matrices[step // 2 :: step][:_GRID_TENSORS] if (s := _sample(t)) is not None]
    found = Counter(bits for sample in samples if (bits := find_grid([sample[:, : _width(sample)]])) is not None)
    if found and found.total() * 2 >= len(samples):
        bits = found.most_common(1)[0][0]
        kinds = "/".join(sorted({t.block_type.name for t in matrices}))
        held = next(
            (grid for t in matrices[step // 2 :: step][:_GRID_TENSORS] if (grid := sample(t)) and grid.holds), None
        )
        advice = f"{held.kind} holds them as they are: -t keep" if held else "Use the original weights"
        yield (
            f"the {kinds} weights lie on a grid of about {bits} bits: they were quantized before. Quantizing again "
            f"adds a second error, and nothing measured against this file sees the first. {advice}."
        )


def _width(sample: np.ndarray) -> int:
    """Weights of each sampled row that are looked at: enough for the blocks wanted, from the row's start."""
    return max(32, _GRID_BLOCKS * 32 // len(sample) // 32 * 32)


def _sample(tensor: Tensor) -> np.ndarray | None:
    """Some rows over the whole of a tensor, decoded, float32 [rows, n]; None for integers and empty tensors."""
    rows, kind = n_rows(tensor), tensor.block_type
    if kind.family is Family.INTEGER or not n_bytes(tensor):
        return None
    run = min(rows, _SAMPLED_RUN)
    starts = {place * (rows - run) // (_SAMPLED_PLACES - 1) for place in range(_SAMPLED_PLACES)}
    blocks = min(row_length(tensor) // kind.block_length, max(1, _SAMPLED_BYTES // (16 * kind.block_bytes)))
    width = blocks * kind.block_bytes
    stored = np.concatenate([tensor.read_bytes(start, start + run)[:, :width] for start in sorted(starts)])
    try:
        return decode(stored, kind, blocks * kind.block_length)
    except KvantError:  # a type that opens but has no decoder here
        return None


def _missing(model: Model) -> Iterator[str]:
    if model.architecture == CLIP:  # loaded beside a model, and needs no tokenizer
        return
    if "general.architecture" not in model.metadata:
        yield "there is no general.architecture: no engine can load this file."
    elif model.architecture not in ENGINE_ARCHITECTURES:
        if model.path.is_dir():  # its headers alone are read, and no tokenizer
            return
        yield f"architecture {model.architecture[:80]!r} is not one that the engine runs: it cannot load it."
    if "tokenizer.ggml.tokens" not in model.metadata:
        yield "there is no tokenizer: the file cannot turn text into tokens by itself."
    elif reranks(model):
        yield f"it {RERANKS}"
    elif not has_chat_template(model) and not makes_vectors(model):
        yield "there is no chat template: chat programs fall back on one that the model may not have learned."


def _heavy_ends(model: Model) -> Iterator[str]:
    """A full-precision embedding or head that takes much of a quantized file."""
    total = model.tensor_bytes
    if not any(t.block_type.is_quantized for t in model.tensors.values()):
        return
    for name in (*EMBEDDINGS, OUTPUT):
        tensor = model.tensors.get(name)
        if tensor is None or tensor.block_type.is_quantized or n_bytes(tensor) < _MIN_HEAVY_SHARE * total:
            continue
        yield (
            f"{name} is {tensor.block_type} and takes {100 * n_bytes(tensor) / total:.0f} % of the bytes in a file "
            "that is quantized otherwise. Quantize it too; Q8_0 halves it at almost no loss."
        )


def _odd_names(model: Model) -> Iterator[str]:
    odd = [name for name in (*model.metadata, *model.tensors) if not name.isprintable()]
    if odd:
        yield f"{len(odd)} names hold control characters, first {odd[0][:80]!r}: the file may be made to deceive."
