"""Read `config.json` and its siblings: bounded JSON, checked numbers, and a reason for everything that is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.formats.base import member
from kvant.formats.lookalikes import pointer, start_of

MAX_JSON_BYTES = 1 << 24
"""Largest configuration file read; real ones have a few kilobytes, model.safetensors.index.json a few hundred."""

MAX_INTEGER = (1 << 31) - 1
"""Largest hyperparameter: GGUF stores them in 32 bits, and layer counts bound the loops over them."""

MAX_NUMBER = 3.4e38
"""Largest hyperparameter that is no integer: GGUF stores them as float32."""

ORIGINAL_LENGTH = "original_max_position_embeddings"

ROPE_ENTRIES = frozenset({
    "rope_type", "type", "rope_theta", "factor", ORIGINAL_LENGTH, "partial_rotary_factor", "attention_factor", "mscale",
    "mscale_all_dim", "beta_fast", "beta_slow", "truncate", "low_freq_factor", "high_freq_factor", "short_factor",
    "long_factor",
})  # fmt: skip
"""What rotary parameters may hold; everything else in them is read by nobody."""

MAX_HEAD_DIM = 1 << 16
"""More than any published model has in an attention head; rotary factors are computed for each pair in it."""

MAX_LAYERS = 1024
"""More blocks than any published model has; the number of tensors looked for grows with it."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FormatError: Absent, not UTF-8, not JSON, not an object, or a link that leads out of the directory.
        LimitError: Larger than `MAX_JSON_BYTES`.
    """
    document = read_document(path)
    if not isinstance(document, dict):
        raise FormatError(f"{path}: holds a {type(document).__name__}, not an object. Download the file again.")
    return document


def read_document(path: Path) -> Any:
    """Read JSON of any kind; see `read_json`.

    Raises:
        FormatError: Absent, not UTF-8, not JSON, or a link that leads out of the directory.
        LimitError: Larger than `MAX_JSON_BYTES`.
    """
    if path.is_symlink():
        member(path.parent, path.name)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise LimitError(f"{path}: {size} bytes are more than the {MAX_JSON_BYTES} that are read. Check the file.")
        document = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text that can be written again
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise FormatError(f"{path}: {reason}. Download the file again or check the directory.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, LimitError):
            raise
        instead = pointer(start_of(path))
        if instead:
            raise UnsupportedFormatError(f"{path}: {instead}") from error
        raise FormatError(f"{path}: is not valid JSON ({error}). Download the file again.") from error
    return document


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is no such file."""
    return read_json(path) if path.is_file() else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The entries of a model's `config.json`, with the values transformers assumes for those left out.

    Attributes:
        values: Entries of the file over the family's defaults.
        path: The file, for messages.
    """

    values: Mapping[str, Any]
    path: Path

    def get(self, key: str, default: Any = None) -> Any:
        """Return an entry as it is; `default` if absent or null."""
        found = self.values.get(key)
        return default if found is None else found

    def integer(self, key: str, default: int | None = None, *, least: int = 1, limit: int = MAX_INTEGER) -> int:
        """Return an integer entry.

        Raises:
            FormatError: Absent without a default, not an integer, or outside `least`..`limit`.
        """
        value = self.get(key, default)
        if value is None:
            raise FormatError(f"{self.path}: has no {key}. Add the value that the model was trained with.")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
            raise FormatError(f"{self.path}: {key} is {shown(value)}, not an integer in {least}..{limit}. Correct it.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number.

        Raises:
            FormatError: Absent without a default, or not a finite number.
        """
        return finite(self.get(key, default), key, self.path)

    def items(self, key: str) -> list[Any] | None:
        """Return a list entry; None if absent.

        Raises:
            FormatError: It is no list.
        """
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise FormatError(f"{self.path}: {key} is {shown(value)}, not a list. Correct it.")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean entry; 0 and 1 are as good.

        Raises:
            FormatError: It is none.
        """
        value = self.get(key, default)
        if not isinstance(value, bool) and value not in (0, 1):
            raise FormatError(f"{self.path}: {key} is {shown(value)}, not true or false. Correct it.")
        return bool(value)

    @property
    def head_dim(self) -> int:
        """Length of an attention head: `head_dim`, else hidden size over heads."""
        heads = self.integer("num_attention_heads")
        return self.integer("head_dim", max(1, self.integer("hidden_size") // heads), limit=MAX_HEAD_DIM)

    @property
    def n_layers(self) -> int:
        """Number of blocks, at most `MAX_LAYERS`."""
        return self.integer("num_hidden_layers", limit=MAX_LAYERS)

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary parameters of the full attention, read as transformers reads them whichever way they are spelled.

        Of `rope_scaling` and `rope_parameters` the first counts where both are there; a family whose windowed layers
        have a base of their own (Gemma 3) puts `rope_scaling` over its `rope_parameters.full_attention`. A base or
        share in them comes before one in config.json itself; an original length there comes after.

        Keys: `rope_type`, and as present those of `ROPE_ENTRIES`.

        Source: transformers 5.24 `modeling_rope_utils.RotaryEmbeddingConfigMixin`, `configuration_gemma3`.
        """
        scaling, parameters = self._rope_entry("rope_scaling"), self._rope_entry("rope_parameters")
        if self.is_rope_by_layer:
            found: Mapping[str, Any] = {**_mapping(parameters.get("full_attention")), **scaling}
        else:
            found = scaling or parameters
            found = _mapping(found.get("full_attention", found))
        rope = {key: value for key, value in found.items() if value is not None}
        rope["rope_type"] = str(rope.get("rope_type") or rope.get("type") or "default").lower()
        for key in ("rope_theta", "partial_rotary_factor"):
            if rope.get(key) is None and self.get(key) is not None:
                rope[key] = self.get(key)
        if self.get(ORIGINAL_LENGTH) is not None:
            rope[ORIGINAL_LENGTH] = self.get(ORIGINAL_LENGTH)
        return rope

    @property
    def rotary_share(self) -> float:
        """Share of each head that is rotated, above 0 and at most 1: `partial_rotary_factor`, else all of it.

        Raises:
            FormatError: It is none.
        """
        share = finite(self.rope.get("partial_rotary_factor", 1.0), "partial_rotary_factor", self.path)
        if not 0 < share <= 1:
            raise FormatError(f"{self.path}: partial_rotary_factor is {share:g}, not above 0 and up to 1. Correct it.")
        return share

    @property
    def is_rope_by_layer(self) -> bool:
        """Whether windowed layers have rotary parameters of their own."""
        return self.get("rope_local_base_freq") is not None

    @property
    def local_rope(self) -> dict[str, Any]:
        """Rotary parameters of layers with a sliding window, as they are stated; always with their `rope_type`."""
        stated = _mapping(self._rope_entry("rope_parameters").get("sliding_attention"))
        local = {key: value for key, value in stated.items() if value is not None}
        return {**local, "rope_type": str(local.get("rope_type") or local.get("type") or "default").lower()}

    @property
    def local_rope_theta(self) -> float | None:
        """Base of the rotary frequencies in layers with a sliding window; None if there is no own one."""
        value = self.local_rope.get("rope_theta", self.get("rope_local_base_freq"))
        return None if value is None else finite(value, "rope_local_base_freq", self.path)

    def _rope_entry(self, key: str) -> Mapping[str, Any]:
        found = self.get(key) or {}
        if not isinstance(found, Mapping):
            raise FormatError(f"{self.path}: {key} is {shown(found)}, not an object. Correct it.")
        return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def finite(value: Any, key: str, path: Path) -> float:
    """Return `value` as a float.

    Raises:
        FormatError: It is not a number, or none that float32 holds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_NUMBER:
        raise FormatError(f"{path}: {key} is {shown(value)}, not a number that fits 32 bits. Correct it.")
    return float(value)


def shown(value: object) -> str:
    """Return a value from a file as messages quote it: one line, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_config(directory: Path) -> dict[str, Any]:
    """Read a model's `config.json`; the entries of its text part go over the others.

    Raises:
        FormatError: The file is absent or malformed.
    """
    path = directory / "config.json"
    config = read_json(path)
    if isinstance(config.get("text_config"), dict):
        inner = {key: value for key, value in config["text_config"].items() if value is not None}
        config = {**config, **inner, "architectures": config.get("architectures")}
    if not isinstance(config.get("model_type", ""), str):
        raise FormatError(f"{path}: model_type is {shown(config['model_type'])}, not a name. Correct it.")
    return config


def architecture_name(config: Mapping[str, Any], path: Path) -> str:
    """Return the first entry of `architectures`.

    Raises:
        FormatError: There is none.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise FormatError(f"{path}: architectures is {shown(names)}, not a list of class names. Add the model's class.")
    return names[0]
