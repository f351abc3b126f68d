import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kvant import metadata
from kvant.dtypes import F32
from kvant.metadata import StringArray, ValueType
from kvant.model import Model
from kvant.tensors import array_tensor, n_bytes, n_rows, row_length


def tiny() -> Model:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    return Model(
        metadata={
            "general.architecture": metadata.string("llama"),
            "llama.block_count": metadata.u32(2),
            "llama.attention.head_count_kv": metadata.array(ValueType.INT32, np.array([1, 4], np.int32)),
        },
        tensors={"a": array_tensor("a", values, F32), "b": array_tensor("b", values[0], F32)},
        path=Path("tiny.gguf"),
        files=(),
    )


def test_counts() -> None:
    model = tiny()
    assert (model.n_weights, model.tensor_bytes) == (16, 64)
    assert (model.architecture, model.name) == ("llama", "tiny")


def test_hyperparameters_are_integers_the_largest_where_they_differ_by_layer() -> None:
    assert tiny().hyper("block_count") == 2
    assert tiny().hyper("attention.head_count_kv") == 4
    assert tiny().hyper("expert_count", 0) == 0
    with pytest.raises(KeyError, match="expert_count"):
        tiny().hyper("expert_count")


def test_a_tensor_is_read_by_rows() -> None:
    matrix, vector = tiny().tensors["a"], tiny().tensors["b"]
    assert (n_rows(matrix), row_length(matrix), n_bytes(matrix)) == (3, 4, 48)
    assert matrix.read_bytes(1, 3).view(np.float32).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert (n_rows(vector), row_length(vector)) == (1, 4)
    assert vector.read_bytes(0, 1).view(np.float32).tolist() == [[0, 1, 2, 3]]


def test_strings_are_decoded_on_access() -> None:
    words = ["a", "", "größe", "\u2581x"]
    encoded = [w.encode() for w in words] + [b"\xff"]
    ends = np.cumsum([len(e) for e in encoded])
    strings = StringArray(np.frombuffer(b"".join(encoded), np.uint8), ends - [len(e) for e in encoded], ends)
    assert list(strings) == [*words, "\ufffd"]
    assert strings[2] == "größe"
    assert strings[-1] == "\ufffd"
    assert strings[1:3] == ["", "größe"]
    assert strings.raw(4) == b"\xff"
    assert len(strings) == 5
    with pytest.raises(IndexError):
        strings[5]


def test_special_tokens_are_of_the_vocabulary() -> None:
    words = {"tokenizer.ggml.tokens": metadata.array(ValueType.STRING, ["<s>", "</s>"])}
    ids = {"tokenizer.ggml.bos_token_id": metadata.u32(0), "tokenizer.ggml.eos_token_id": metadata.u32(2)}
    model = dataclasses.replace(tiny(), metadata={**words, **ids})
    assert (model.special_text("bos"), model.special_text("eos")) == ("<s>", None)
    assert dataclasses.replace(model, metadata=words).special_text("bos") is None
    assert dataclasses.replace(model, metadata=ids).special_text("bos") is None
