"""Tiny GGUF files of many architectures with random weights, as upstream's converter lays them out.

Hyperparameters, names and shapes are facts of files that upstream made; tools/architecture_facts.py wrote them down.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kvant.dtypes import F16, F32, BlockType
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.formats.gguf.writer import write_gguf
from kvant.metadata import NUMPY_DTYPES, Value, ValueType, string, u32
from kvant.tensors import array_tensor

N_VOCAB = 512


class Hyper:
    """A model's hyperparameters alone."""

    def __init__(self, architecture: str, **values: Any) -> None:
        self.architecture = architecture
        self.values = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}

    def get(self, key: str, default: object = None) -> object:
        return self.values.get(key, default)

    def hyper(self, key: str, default: int | None = None) -> int:
        return int(np.max(np.asarray(self.get(f"{self.architecture}.{key}", default))))


LLAMA = Hyper(
    "llama", block_count=30, embedding_length=576, feed_forward_length=1536,
    attention__head_count=9, attention__head_count_kv=3,
)  # fmt: skip


@cache
def facts() -> dict[str, dict[str, Any]]:
    """What the files hold, by a name for each."""
    text = (Path(__file__).parent / "parity" / "data" / "architectures.json").read_text()
    return dict(json.loads(text))


def write_architecture(name: str, path: Path, *, is_hollow: bool = False, **changes: Value) -> Path:
    """Write the tiny file of a name, without a tokenizer; a hollow one in no time, with zeros for weights.

    `changes` go over its metadata, `__` for each dot.
    """
    values = {**metadata(name), **{key.replace("__", "."): value for key, value in changes.items()}}
    if not is_hollow:
        write_gguf(path, values, [array_tensor(*one) for one in arrays(name)])
        return path
    layout = file_layout(values, [TensorInfo(*one) for one in shapes(name)])
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.total_bytes)
    return path


def write_encoder(path: Path) -> Path:
    """Write a tiny BERT with random weights and a vocabulary of letters, which the engine makes vectors with."""
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{c}" for c in letters), *letters]
    words += [f"[unused{i}]" for i in range(N_VOCAB - len(words))]
    values = {
        **metadata("bert"), "tokenizer.ggml.model": string("bert"), "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": Value(ValueType.ARRAY, words, ValueType.STRING),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, np.ones(N_VOCAB, np.int32), ValueType.INT32),
        "tokenizer.ggml.unknown_token_id": u32(1), "tokenizer.ggml.cls_token_id": u32(2),
        "tokenizer.ggml.bos_token_id": u32(2), "tokenizer.ggml.seperator_token_id": u32(3),
        "tokenizer.ggml.padding_token_id": u32(0), "tokenizer.ggml.token_type_count": u32(2),
    }  # fmt: skip
    write_gguf(path, values, [array_tensor(*one) for one in arrays("bert")])
    return path


def metadata(name: str) -> dict[str, Value]:
    """Return the hyperparameters of a file, with a vocabulary of numbers alone."""
    found = {key: _value(*entry) for key, entry in facts()[name]["metadata"].items()}
    architecture = found["general.architecture"].value
    return {**found, "tokenizer.ggml.model": string("none"), f"{architecture}.vocab_size": u32(N_VOCAB)}


def shapes(name: str) -> Iterator[tuple[str, tuple[int, ...], BlockType]]:
    """Yield name, shape and type of its tensors."""
    for kind, runs in facts()[name]["tensors"].items():
        pattern, type_name, dims = kind.split(" ")
        for run in runs.split(" "):
            first, _, last = run.partition("-")
            for layer in range(int(first), int(last or first) + 1):
                shape = tuple(map(int, dims.split("x")))
                yield pattern.replace("*", str(layer)), shape, F32 if type_name == "F32" else F16


def arrays(name: str) -> Iterator[tuple[str, np.ndarray, BlockType]]:
    """Yield its tensors: matrices of small random numbers, everything else near 1."""
    rng = np.random.default_rng(0)
    for tensor, shape, kind in shapes(name):
        values = rng.normal(0, 0.05, shape) + (1 if len(shape) == 1 else 0)
        yield tensor, values.astype(np.float32 if kind is F32 else np.float16), kind


def _value(types: str, value: Any) -> Value:
    kind, *item = (ValueType[name] for name in types.split(" "))
    if not item:
        return Value(kind, value)
    return Value(kind, value if item[0] is ValueType.STRING else np.array(value, NUMPY_DTYPES[item[0]]), item[0])
