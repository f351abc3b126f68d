"""What `inspect` says of files whose content is known."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import raw_files as raw
from kvant.dtypes import BLOCK_TYPES, F32, block_type
from kvant.formats.gguf.writer import write_gguf
from kvant.kernels import decode, encode
from kvant.metadata import Value, ValueType, array, string, u32
from kvant.recipes.inspect.inspect import inspect, role_name
from kvant.tensors import LazyTensor, array_tensor
from kvant.testing.tiny_models import write_tiny_model

TOKENIZER: dict[str, Value] = {
    "tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("qwen2"),
    "tokenizer.ggml.tokens": array(ValueType.STRING, [f"t{i}" for i in range(300)]),
    "tokenizer.ggml.merges": array(ValueType.STRING, ["a b", "c d"]),
    "tokenizer.ggml.bos_token_id": u32(1), "tokenizer.ggml.eos_token_id": u32(999),
    "tokenizer.chat_template": string("{{ messages }}"),
}  # fmt: skip
LLAMA: dict[str, Value] = {"general.architecture": string("llama"), **TOKENIZER}


def tensor(name: str, kind: str, *shape: int, values: np.ndarray | None = None) -> LazyTensor:
    """A tensor of random weights encoded as `kind`."""
    if values is None:
        values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    if kind == "F32":
        return array_tensor(name, values, F32)
    if kind == "F16":
        return array_tensor(name, values.astype(np.float16), BLOCK_TYPES["F16"])
    rows = encode(values.reshape(-1, values.shape[-1]), kind)
    return LazyTensor(name=name, shape=values.shape, block_type=block_type(kind), read=lambda a, b: rows[a:b])


def write(directory: Path, tensors: list[LazyTensor], **metadata: Value) -> Path:
    path = directory / "m.gguf"
    write_gguf(path, {**LLAMA, **metadata}, tensors)
    return path


def test_sums_by_role_and_type(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            tensor("token_embd.weight", "F16", 10, 64), tensor("output.weight", "Q8_0", 10, 64),
            tensor("blk.0.attn_q.weight", "Q4_0", 64, 64), tensor("blk.0.ffn_up.weight", "Q4_0", 64, 64),
            tensor("blk.0.attn_norm.weight", "F32", 64), tensor("rope_freqs.weight", "F32", 8),
        ],
        **{"general.file_type": u32(2), "general.name": string("Name")},
    )  # fmt: skip
    found = inspect(path)
    assert (found.format, found.architecture, found.name, found.preset) == ("gguf", "llama", "Name", "Q4_0")
    assert found.weights == 640 + 640 + 2 * 4096 + 64 + 8
    assert found.tensor_bytes == 1280 + 680 + 2 * 2304 + 256 + 32
    assert found.size_bytes == path.stat().st_size
    assert found.bpw == 8 * found.tensor_bytes / found.weights
    assert found.precision_class == "mid"
    assert [(s.name, s.tensors, s.weights, s.bytes) for s in found.by_role] == [
        ("embedding", 1, 640, 1280), ("output", 1, 640, 680), ("attention", 1, 4096, 2304), ("ffn", 1, 4096, 2304),
        ("norm", 1, 64, 256), ("other", 1, 8, 32),
    ]  # fmt: skip
    assert [(s.name, s.bytes, s.bpw) for s in found.by_type] == [
        ("Q4_0", 4608, 4.5), ("F16", 1280, 16.0), ("Q8_0", 680, 8.5), ("F32", 288, 32.0),
    ]  # fmt: skip
    assert [(t.type, t.precision_class, t.shape) for t in found.tensors[:3]] == [
        ("F16", "full", (10, 64)), ("Q8_0", "mid", (10, 64)), ("Q4_0", "low", (64, 64)),
    ]  # fmt: skip
    assert found.warnings == ()


def test_metadata_is_summarised_and_becomes_json(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(raw.small_gguf())
    document: Any = msgspec.json.decode(msgspec.json.encode(inspect(path)))
    assert document["metadata"]["n.u64"] == {"type": "UINT64", "value": 2**63}
    assert document["metadata"]["a.bool"]["value"] == {
        "item_type": "BOOL", "length": 3, "first": [False, True, True],
    }  # fmt: skip
    assert document["metadata"]["a.strings"]["value"]["first"] == ["one", "", "drei 3"]


def test_tokenizer_and_template(tmp_path: Path) -> None:
    found = inspect(write(tmp_path, [tensor("output.weight", "F32", 2, 32)]))
    assert found.tokenizer is not None
    assert (found.tokenizer.tokens, found.tokenizer.merges, found.tokenizer.pre) == (300, 2, "qwen2")
    assert (found.tokenizer.bos, found.tokenizer.eos) == ("t1", None)  # 999 is outside the vocabulary
    assert found.has_chat_template


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_hugging_face_directory(tmp_path: Path, family: str) -> None:
    found = inspect(write_tiny_model(family, tmp_path))
    assert (found.format, found.architecture) == ("huggingface", family)
    assert {s.name for s in found.by_role} == {"embedding", "attention", "ffn", "norm"}
    assert found.tokenizer is not None
    assert found.warnings == ()


def test_fallbacks_are_guessed(tmp_path: Path) -> None:
    tensors = [tensor("blk.0.attn_q.weight", "Q5_0", 4, 576), tensor("blk.1.attn_q.weight", "Q5_0", 4, 576),
               tensor("blk.0.ffn_down.weight", "Q4_K", 4, 1536), tensor("token_embd.weight", "Q8_0", 4, 576),
               tensor("blk.0.ffn_up.weight", "Q8_0", 4, 256)]  # fmt: skip
    found = inspect(write(tmp_path, tensors, **{"general.file_type": u32(15)}))
    assert found.fallbacks == (
        "2 tensors with rows of 576 weights, no multiple of 256, are Q5_0 instead of Q4_K: +576 bytes.",
        "1 tensors with rows of 576 weights, no multiple of 256, are Q8_0 instead of Q6_K: +558 bytes.",
    )
    (tmp_path / "other").mkdir()
    assert inspect(write(tmp_path / "other", tensors, **{"general.file_type": u32(2)})).fallbacks == ()


class TestWarnings:
    @pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q4_K", 4), ("Q8_0", 8)])
    def test_quantized_before(self, tmp_path: Path, kind: str, bits: int) -> None:
        rng = np.random.default_rng(3)
        tensors = []
        for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "token_embd.weight"):
            genuine = rng.standard_normal((24, 512)).astype(np.float32)
            decoded = decode(encode(genuine, kind), kind, 512)
            tensors.append(tensor(name, "F16", values=decoded))
        (sentence,) = inspect(write(tmp_path, tensors)).warnings
        assert sentence.startswith(f"the F16 weights lie on a grid of about {bits} bits: they were quantized before")

    @pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
    def test_broken_values(self, tmp_path: Path, kind: str) -> None:
        values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
        good = tensor("blk.0.attn_q.weight", kind, values=values)
        values = values.copy()
        values[0, 3] = np.nan if kind == "F16" else np.inf
        bad = tensor("blk.0.attn_k.weight", kind, values=values)
        sentence = inspect(write(tmp_path, [good, bad])).warnings[0]
        assert sentence.startswith("1 tensors hold NaN or infinity, first 'blk.0.attn_k.weight'")

    def test_what_is_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        weights = [tensor("a.weight", "F32", 2, 32)]
        write_gguf(path, {}, weights)
        assert [w.split(":")[0] for w in inspect(path).warnings] == [
            "there is no general.architecture", "there is no tokenizer",
        ]  # fmt: skip
        without = {k: v for k, v in LLAMA.items() if k != "tokenizer.chat_template"}
        write_gguf(path, without | {"general.architecture": string("megalosaur")}, weights, overwrite=True)
        first, second = inspect(path).warnings
        assert first == "architecture 'megalosaur' is not one that the engine runs: it cannot load it."
        assert second.startswith("there is no chat template")

    def test_an_architecture_that_is_run_but_not_converted_is_fine(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        write_gguf(path, LLAMA | {"general.architecture": string("jamba")}, [tensor("a.weight", "F32", 2, 32)])
        assert not any("architecture" in warning for warning in inspect(path).warnings)

    def test_a_heavy_embedding(self, tmp_path: Path) -> None:
        tensors = [tensor("token_embd.weight", "F16", 64, 64), tensor("blk.0.ffn_up.weight", "Q4_0", 64, 64)]
        (sentence,) = inspect(write(tmp_path, tensors)).warnings
        assert sentence.startswith("token_embd.weight is F16 and takes 78 % of the bytes")

    def test_control_characters(self, tmp_path: Path) -> None:
        found = inspect(write(tmp_path, [tensor("a\x1b[2J", "F32", 2, 32)]))
        assert found.warnings == (
            "1 names hold control characters, first 'a\\x1b[2J': the file may be made to deceive.",
        )


ODD_VALUES = [
    array(ValueType.INT32, [1, 2]), array(ValueType.STRING, ["a", "b"]), array(ValueType.STRING, []), string(""),
    Value(ValueType.FLOAT64, float("nan")), Value(ValueType.BOOL, True), Value(ValueType.INT64, -(2**63)),
    Value(ValueType.UINT64, 2**64 - 1), string("x" * 100_000),
]  # fmt: skip


@pytest.mark.parametrize("key", [*LLAMA, "general.file_type", "general.name"])
@pytest.mark.parametrize("value", ODD_VALUES, ids=range(len(ODD_VALUES)))
def test_keys_of_the_wrong_kind_do_no_harm(tmp_path: Path, key: str, value: Value) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {**LLAMA, key: value}, [tensor("a.weight", "F32", 2, 32)])
    msgspec.json.encode(inspect(path))


@pytest.mark.parametrize("kind", list(BLOCK_TYPES))
def test_random_bytes_of_every_type_are_inspected(tmp_path: Path, kind: str) -> None:
    block = BLOCK_TYPES[kind]
    data = np.random.default_rng(0).integers(0, 256, (64, 4 * block.block_bytes), np.uint8)
    weights = LazyTensor(
        name="blk.0.ffn_up.weight", shape=(64, 4 * block.block_length), block_type=block, read=lambda a, b: data[a:b]
    )
    found = inspect(write(tmp_path, [weights]))
    assert found.tensors[0].bytes == data.size


def test_roles() -> None:
    expected = {
        "token_embd.weight": "embedding", "output.weight": "output", "output_norm.weight": "norm",
        "blk.3.attn_q_norm.weight": "norm", "blk.3.attn_k.bias": "attention", "blk.3.ffn_gate_exps.weight": "ffn",
        "blk.3.ssm_a": "other", "rope_freqs.weight": "other",
    }  # fmt: skip
    assert {name: role_name(name) for name in expected} == expected
