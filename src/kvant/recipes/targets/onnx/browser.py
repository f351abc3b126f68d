"""A decoder's directory as transformers.js reads it: `onnx/model_q4.onnx`, weights in files short enough for browsers.

Source: transformers.js 4.3, src/utils/dtypes.js (what a file is called) and src/utils/model-loader.js (data files).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.errors import UnsupportedFormatError
from kvant.files import disk_errors
from kvant.formats.huggingface.architectures.registry import family_of_model
from kvant.formats.huggingface.config import read_config
from kvant.formats.huggingface.directory import write_json
from kvant.formats.huggingface.writer import SPECIAL_IDS, config_json
from kvant.formats.onnx.decoder import CONFIG, Decoder
from kvant.formats.onnx.external import external_range
from kvant.formats.onnx.reader import read_onnx
from kvant.formats.onnx.spec import EXTERNAL
from kvant.kernels.nbits import nbits_type
from kvant.model import Model
from kvant.recipes.targets.onnx.plan import Dtype

MAX_CHUNK_BYTES = 1 << 30
"""Bytes of a data file; a browser's array buffers end at 2 GiB."""

ALIGNMENT = 4096
DTYPES = {2: "q2", 4: "q4", 8: "q8"}
SUFFIXES = {"q2": "_q2", "q4": "_q4", "q8": "_quantized", "q2f16": "_q2f16", "q4f16": "_q4f16"}
"""What transformers.js calls a file, by the `dtype` that is asked for."""

_COPIED = 1 << 24


def rearrange(
    directory: Path, decoder: Decoder, model: Model, types: Mapping[str, str], floats: Dtype
) -> tuple[Path, ...]:
    """Turn a directory of onnxruntime-genai into one of transformers.js, in place.

    Args:
        directory: The directory.
        decoder: What is in it.
        model: What it was made from; its configuration goes along.
        types: Blocks of every matrix; the commonest bits decide the file's name, with the floats' type.
        floats: Type of everything else.

    Returns:
        The graph and its data files.

    Raises:
        UnsupportedFormatError: transformers.js has no name for these bits with float16.
    """
    bits = [nbits_type(name).bits for name in types.values()]
    dtype = DTYPES[max(set(bits), key=bits.count)] + ("f16" if floats == "F16" else "")
    if dtype not in SUFFIXES:
        raise UnsupportedFormatError(
            f"layout: transformers.js has no {dtype}, only {', '.join(SUFFIXES)}. Use -t int4, or leave --dtype out."
        )
    folder = directory / "onnx"
    folder.mkdir()
    path = folder / f"model{SUFFIXES[dtype]}.onnx"
    with disk_errors(path):
        files = _split(decoder, path)
    for file in decoder.files:
        file.unlink()
    (directory / CONFIG).unlink()
    _write_config(directory, model, {"dtype": dtype, "use_external_data_format": {path.name: len(files)}})
    _write_tokenizer(directory)
    return path, *files


def _split(decoder: Decoder, path: Path) -> list[Path]:
    """Write a graph again with its weights in chunks; a chunk is never shorter than a tensor."""
    source = decoder.file
    graph = read_onnx(source)
    for port in (*graph.graph.input, *graph.graph.output):
        if port.name.startswith(("past_key_values.", "present.")):  # the empty cache is made by these numbers
            dims = port.type.tensor_type.shape.dim
            dims[1].dim_value, dims[3].dim_value = decoder.n_kv_heads, decoder.head_size
    files: list[Path] = []
    for tensor in graph.graph.initializer:
        if tensor.data_location != EXTERNAL:
            continue
        place, offset, length = external_range(tensor, source)
        if not files or _padded(files[-1].stat().st_size) + length > MAX_CHUNK_BYTES:
            number = len(files)
            files.append(path.with_name(f"{path.name}_data" + (f"_{number}" if number else "")))
            files[-1].touch()
        with files[-1].open("r+b") as out, place.open("rb") as data:
            at = _padded(out.seek(0, 2))
            out.seek(at)
            data.seek(offset)
            while length and (chunk := data.read(min(length, _COPIED))):
                out.write(chunk)
                length -= len(chunk)
        size = next(entry.value for entry in tensor.external_data if entry.key == "length")
        del tensor.external_data[:]
        for key, value in (("location", files[-1].name), ("offset", str(at)), ("length", size)):
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(graph.SerializeToString())
    return files


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write_config(directory: Path, model: Model, settings: Mapping[str, Any]) -> None:
    """The model's own configuration and what transformers.js is to know of the files."""
    made = config_json(model, family_of_model(model), "F32")
    found = dict(read_config(model.path)) if model.path.is_dir() else made
    found.pop("auto_map", None)
    write_json(directory / "config.json", found | {"transformers.js_config": settings})
    theirs = model.path / "generation_config.json"
    if model.path.is_dir() and theirs.is_file():
        shutil.copyfile(theirs, directory / "generation_config.json")
    else:
        write_json(directory / "generation_config.json", {key: made[key] for key, _ in SPECIAL_IDS if key in made})


def _write_tokenizer(directory: Path) -> None:
    """Put the chat template where transformers.js looks for it."""
    template, path = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if template.is_file():
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_json(path, config | {"chat_template": template.read_text(encoding="utf-8")})
        template.unlink()
