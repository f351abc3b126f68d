"""Directories as onnxruntime-genai reads them: genai_config.json, a decoder graph, a tokenizer.

Source: onnxruntime-genai 0.18, src/config.cpp.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import FormatError, LimitError, UnsupportedModelError
from kvant.files import atomic_write
from kvant.formats.base import member
from kvant.formats.onnx.reader import data_files, read_onnx
from kvant.formats.onnx.spec import ELEMENT_BITS

if TYPE_CHECKING:
    import onnx

CONFIG = "genai_config.json"
SPINNING = "session.intra_op.allow_spinning"
"""The session option that says whether idle threads wait by spinning, `0` or `1`."""
MAX_CONFIG_BYTES = 1 << 20
CACHES = ("cos_cache", "sin_cache")
"""Tables of rotary angles: computed, and no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a decoder's tensors amount to.

    Attributes:
        n_params: Weights; a matrix that is used twice counts once.
        tensor_bytes: Bytes of all tensors as stored.
    """

    n_params: int
    tensor_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A checked directory.

    Attributes:
        file: Its graph.
        files: Every file that holds a part of the graph.
        n_vocab: Tokens in the vocabulary.
        n_layers: Layers.
        n_kv_heads: Heads of keys and values.
        head_size: Their length.
        n_ctx_train: Tokens it was made for.
        sizes: Weights and bytes.
        notes: What the graph says of itself, by key.
        logits: Name of the output that has the logits.
        spinning: Whether idle threads wait by spinning; None if it does not say.
    """

    file: Path
    files: tuple[Path, ...]
    n_vocab: int
    n_layers: int
    n_kv_heads: int
    head_size: int
    n_ctx_train: int
    sizes: Sizes
    notes: Mapping[str, str]
    logits: str
    spinning: bool | None


def is_decoder(path: Path) -> bool:
    """Say whether a path is a directory of this layout."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """Return genai_config.json.

    Raises:
        FormatError: It is missing, too long or no JSON object.
    """
    path = member(directory, CONFIG)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise LimitError(f"{path}: is longer than {MAX_CONFIG_BYTES} bytes. Export the model again.")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except JSON_ERRORS as error:
        raise FormatError(f"{path}: {error}. Export the model again.") from error
    return found


def keep_session_options(directory: Path, threads: int, spinning: bool) -> None:
    """Write threads, and whether idle ones spin, where onnxruntime-genai reads them.

    Raises:
        FormatError: genai_config.json is damaged.
    """
    config = read_config(directory)
    options = config["model"]["decoder"].setdefault("session_options", {})
    options["intra_op_num_threads"] = threads
    options[SPINNING] = str(int(spinning))
    with atomic_write(directory / CONFIG) as file:
        file.write(msgspec.json.format(msgspec.json.encode(config), indent=4) + b"\n")


def read_decoder(directory: Path) -> Decoder:
    """Check a directory and say what is in it; see `read_onnx` for the checks.

    Raises:
        FormatError: It is damaged or hostile.
        UnsupportedModelError: It is no plain decoder.
    """
    directory = Path(directory)
    model = read_config(directory).get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise UnsupportedModelError(f"{directory / CONFIG}: describes no decoder. Give a text model's directory.")
    file = member(directory, str(decoder.get("filename", "model.onnx")))
    graph = read_onnx(file)

    outputs = decoder.get("outputs")
    logits = str(outputs.get("logits", "logits")) if isinstance(outputs, dict) else "logits"
    names = [output.name for output in graph.graph.output]
    if logits not in names:
        raise FormatError(
            f"{file}: has no output {logits[:80]!r}, which {CONFIG} says has the logits, but "
            f"{', '.join(names[:3])[:200]}. Correct model.decoder.outputs.logits, or export the model again."
        )

    def number(source: dict[str, Any], key: str, most: int) -> int:
        value = source.get(key)
        if not isinstance(value, int) or not 0 < value <= most:
            raise FormatError(f"{directory / CONFIG}: {key} is {value!r}, not 1 to {most}. Export the model again.")
        return value

    return Decoder(
        file=file, files=data_files(graph, file), n_vocab=number(model, "vocab_size", 1 << 24),
        n_layers=number(decoder, "num_hidden_layers", 1 << 16),
        n_kv_heads=number(decoder, "num_key_value_heads", 1 << 16), head_size=number(decoder, "head_size", 1 << 16),
        n_ctx_train=number(model, "context_length", 1 << 31), sizes=sizes(graph),
        notes={entry.key: entry.value for entry in graph.metadata_props}, logits=logits,
        spinning=_spinning(decoder),
    )  # fmt: skip


def _spinning(decoder: Mapping[str, Any]) -> bool | None:
    options = decoder.get("session_options")
    value = options.get(SPINNING) if isinstance(options, dict) else None
    return None if value is None else str(value) != "0"


def sizes(model: "onnx.ModelProto") -> Sizes:
    """Count weights and bytes of a graph's initializers."""
    counted: dict[str, int] = {}
    codes: set[str] = set()
    origin = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "MatMulNBits":
            counted[node.input[1]] = attributes["K"].i * attributes["N"].i
            codes.update(node.input[1:4])
        elif node.op_type == "GatherBlockQuantized":
            at = node.input[0]
            while at in origin and origin[at].op_type == "Reshape":
                at = origin[at].input[0]
            codes.update((at, *node.input[2:4]))
            bits = attributes["bits"].i if "bits" in attributes else 4
            counted.setdefault(at, _elements(model, at) * (8 // bits if _is_byte(model, at) else 1))
    total = 0
    for tensor in model.graph.initializer:
        total += math.prod(tensor.dims) * ELEMENT_BITS.get(tensor.data_type, 0) // 8
        if tensor.name not in codes and tensor.name not in CACHES:
            counted.setdefault(tensor.name, math.prod(tensor.dims))
    return Sizes(n_params=sum(counted.values()), tensor_bytes=total)


def _find(model: "onnx.ModelProto", name: str) -> "onnx.TensorProto | None":
    return next((t for t in model.graph.initializer if t.name == name), None)


def _elements(model: "onnx.ModelProto", name: str) -> int:
    tensor = _find(model, name)
    return 0 if tensor is None else math.prod(tensor.dims)


def _is_byte(model: "onnx.ModelProto", name: str) -> bool:
    tensor = _find(model, name)
    return tensor is not None and tensor.data_type == 2  # uint8
