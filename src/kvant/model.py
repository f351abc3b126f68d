"""A model in memory: named tensors and metadata. It knows no file format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kvant.metadata import StringArray, Value
from kvant.tensors import Tensor, n_bytes, n_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How well a type holds weights that lie on a grid.

    Attributes:
        kind: The type: a block type, or the float that stands in where no block type does.
        n_blocks: Blocks that were looked at.
        n_exact: Those whose every weight is the source's, to the bit; the codes are the grid's own.
        n_near: Those, and the ones that miss by no more than the last place of the source's float type.
        error: Largest difference of a weight.
        is_sampled: Some blocks were looked at, not all.
    """

    kind: str
    n_blocks: int
    n_exact: int
    n_near: int
    error: float
    is_sampled: bool

    @property
    def share(self) -> float:
        """Share of the blocks that are exact."""
        return self.n_exact / max(1, self.n_blocks)

    @property
    def holds(self) -> bool:
        """Whether every block is exact or misses by next to nothing, so that the tensor may be carried over."""
        return self.n_near == self.n_blocks


def _no_grid(*, proven: bool) -> Grid | None:  # noqa: ARG001 - what the field is called with
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How a file holds a tensor that is no block type here and is decoded as it is read.

    Attributes:
        kind: The field's name, e.g. MLX's `4bit-g64`.
        n_bytes: Bytes of all its parts.
        blocks: Gives the tensor in the smallest type that holds the same values: a block type, or the float that does;
            None if that is not looked for.
        grid: Gives how well that type holds it, of a sample of blocks or proven of all; None where nothing is known.
        is_base: What it decodes to may stand for the original that variants are measured against.
    """

    kind: str
    n_bytes: int
    blocks: Callable[[], Tensor | None]
    grid: Callable[..., Grid | None] = _no_grid
    is_base: bool = False


BASE_TYPES = frozenset({"MXFP4", "NVFP4"})
"""Block types that makers publish weights in: a model of floats and these is an original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as every part of kvant sees it.

    Attributes:
        metadata: Hyperparameters, tokenizer and template under their GGUF keys, in file order.
        tensors: Tensors by canonical name (llama.cpp's: `token_embd.weight`, `blk.0.attn_q.weight`), in file order.
            Values are laid out as llama.cpp expects them (rotary rows interleaved, Gemma's norms with their 1 added);
            formats/huggingface translates both ways.
        path: Where it was read from.
        files: Every file that holds a part of it.
        known_as: Name that goes into the metadata of what is made from it: its directory's or file's, if empty.
        stored: Of tensors that are decoded from something else, what that is; they are quantized already.
        remarks: What reading left out or took otherwise than it looks, a sentence each, for whoever uses the model.
        origin: Directory that its file was converted from by another program; its tokenizer is the model's own.
        is_mended: Its weights are not those that other programs find at `path`: they must come from here.
    """

    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    path: Path
    files: tuple[Path, ...]
    known_as: str = ""
    stored: Mapping[str, Stored] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    origin: Path | None = None
    is_mended: bool = False

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture: `llama`, `qwen2`, ..."""
        return str(self.get("general.architecture", "unknown"))

    @property
    def name(self) -> str:
        """The model's own name, or its file's."""
        return str(self.get("general.name", self.path.stem))

    @property
    def n_weights(self) -> int:
        """Weights in all tensors."""
        return sum(n_weights(t) for t in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors as stored, without headers and padding."""
        return sum(self.stored[t.name].n_bytes if t.name in self.stored else n_bytes(t) for t in self.tensors.values())

    @property
    def quantized_types(self) -> list[str]:
        """What its weights are quantized as; empty for a full-precision model."""
        kinds = {t.block_type.name for t in self.tensors.values() if t.block_type.is_quantized}
        return sorted(kinds | {stored.kind for stored in self.stored.values()})

    @property
    def is_base(self) -> bool:
        """Whether variants may be measured against it: it is of full precision, or its original is quantized so."""
        kinds = {t.block_type.name for t in self.tensors.values() if t.block_type.is_quantized}
        return kinds <= BASE_TYPES and all(stored.is_base for stored in self.stored.values())

    def get(self, key: str, default: object = None) -> object:
        """Return a metadata value without its type; `default` if absent."""
        found = self.metadata.get(key)
        return default if found is None else found.value

    def hyper(self, key: str, default: int | None = None) -> int:
        """Return an integer hyperparameter of the architecture, e.g. `block_count`; the largest where it is per layer.

        Raises:
            KeyError: Absent and no default given.
        """
        full = f"{self.architecture}.{key}"
        value = self.get(full, default)
        if value is None:
            raise KeyError(full)
        return int(np.max(np.asarray(value)))

    def special_text(self, role: str) -> str | None:
        """Return the text of its `bos` or `eos` token; None if it names none of its vocabulary."""
        number, tokens = self.get(f"tokenizer.ggml.{role}_token_id"), self.get("tokenizer.ggml.tokens")
        if type(number) is not int or not isinstance(tokens, StringArray | list | tuple):
            return None
        return str(tokens[number]) if 0 <= number < len(tokens) else None
