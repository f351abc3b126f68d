"""LoRA adapters of PEFT: the product by its definition in float64, what is refused, and the file for llama.cpp.

Against peft 0.19 itself (merge_and_unload) the merged tiny models differ by 6e-8, embeddings by 4e-6; the tensors for
llama.cpp are those of its convert_lora_to_gguf.py to the byte.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.huggingface.adapters.reader import read_adapter
from kvant.formats.huggingface.architectures.transforms import interleave_order
from kvant.formats.huggingface.lora_gguf import adapter_model
from kvant.formats.open import open_model, open_with_adapter
from kvant.recipes.convert.convert import convert, convert_adapter
from kvant.tensors import Tensor, n_rows
from kvant.testing.tiny_models import FAMILIES, write_safetensors, write_tiny_model

RANK, HIDDEN, VOCAB = 4, 256, 512
Q, EMBEDDING = "model.layers.1.self_attn.q_proj", "model.embed_tokens"
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 12, "base_model_name_or_path": "org/base"}


def write_adapter(directory: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    named = {f"base_model.model.{name}": np.asarray(value, np.float32) for name, value in tensors.items()}
    write_safetensors(directory / "adapter_model.safetensors", named, "F32")
    return directory


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def pair(module: str = Q, n_out: int = HIDDEN, n_in: int = HIDDEN, rank: int = RANK) -> dict[str, np.ndarray]:
    return {f"{module}.lora_A.weight": random(rank, n_in), f"{module}.lora_B.weight": random(n_out, rank)}


def values(tensor: Tensor) -> np.ndarray:
    assert tensor.block_type.name == "F32"
    return np.ascontiguousarray(tensor.read_bytes(0, n_rows(tensor))).view(np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("base") / "little-llama", dtype="F32")


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 3.0), ({"use_rslora": True}, 6.0), ({"alpha_pattern": {"q_proj": 2}}, 0.5),
     ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2}}, 3.0)],
)  # fmt: skip
def test_what_is_added_is_the_scaled_product(base: Path, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    added = pair()
    model = open_with_adapter(base, write_adapter(tmp_path / "tuned", added, **config))
    plain = open_model(base)
    order = interleave_order(8, HIDDEN)
    product = added[f"{Q}.lora_B.weight"].astype(np.float64) @ added[f"{Q}.lora_A.weight"]
    wanted = values(plain.tensors["blk.1.attn_q.weight"]) + scale * product[order]
    assert np.abs(values(model.tensors["blk.1.attn_q.weight"]) - wanted).max() < 5e-5
    same = [name for name in plain.tensors if name != "blk.1.attn_q.weight"]
    assert all(np.array_equal(values(plain.tensors[n]), values(model.tensors[n])) for n in same)
    assert any("merged into 1 weights" in remark for remark in model.remarks)
    assert model.known_as == "little-llama-tuned"
    assert model.is_mended
    assert {path.name for path in model.files} >= {"adapter_model.safetensors", "adapter_config.json"}


def test_embeddings_get_the_transposed_product_and_a_tied_head_becomes_its_own(base: Path, tmp_path: Path) -> None:
    a, b = random(RANK, VOCAB), random(HIDDEN, RANK)
    head = random(VOCAB, HIDDEN)
    tensors = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b, "lm_head.weight": head}
    model, plain = open_with_adapter(base, write_adapter(tmp_path / "a", tensors)), open_model(base)
    wanted = values(plain.tensors["token_embd.weight"]) + 3 * (b.astype(np.float64) @ a).T
    assert np.abs(values(model.tensors["token_embd.weight"]) - wanted).max() < 5e-5
    assert np.array_equal(values(model.tensors["output.weight"]), head)


def test_rows_are_read_in_any_window(base: Path, tmp_path: Path) -> None:
    tensor = open_with_adapter(base, write_adapter(tmp_path / "a", pair())).tensors["blk.1.attn_q.weight"]
    whole = np.asarray(tensor.read_bytes(0, HIDDEN))
    for start, stop in ((0, 1), (5, 5), (17, 100), (255, 256)):
        assert np.array_equal(tensor.read_bytes(start, stop), whole[start:stop])


@pytest.mark.parametrize(
    ("tensors", "config", "error", "words"),
    [
        (pair(), {"peft_type": "IA3"}, UnsupportedModelError, "peft_type is 'IA3'.*merge_and_unload"),
        (pair(), {"use_dora": True}, UnsupportedModelError, "use_dora is True"),
        (pair(), {"lora_alpha": 0}, FormatError, "lora_alpha is 0"),
        (pair(), {"lora_alpha": "x"}, FormatError, "lora_alpha is 'x'"),
        (pair(), {"alpha_pattern": {r"layers\.[01]": 3}}, UnsupportedModelError, "expression"),
        (pair(), {"alpha_pattern": [1]}, FormatError, "not an object"),
        ({f"{Q}.lora_A.weight": random(RANK, HIDDEN)}, {}, FormatError, "has lora_A alone"),
        ({**pair(), f"{Q}.lora_magnitude_vector": random(4)}, {}, UnsupportedModelError, "no matrix of a plain LoRA"),
        ({f"{Q}.lora_A.weight": random(RANK, 8), f"{Q}.lora_B.weight": random(8, 5)}, {}, FormatError, r"\[r, in\]"),
        (pair("model.layers.9.self_attn.q_proj"), {}, FormatError, "layers.9.*the base does not have.*org/base"),
        (pair(n_out=128), {}, FormatError, r"is changed by \[128, 256\], but the base has \[256, 256\]"),
        ({"lm_head.weight": random(600, HIDDEN)}, {}, FormatError, "another vocabulary"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(
    base: Path,
    tmp_path: Path,
    tensors: dict[str, np.ndarray],
    config: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        open_with_adapter(base, write_adapter(tmp_path / "a", tensors, **config))


def test_a_pickle_or_nothing_in_place_of_weights_is_said(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pair())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsupportedFormatError, match=r"pickle.*safe_serialization=True"):
        read_adapter(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(FormatError, match=r"has no adapter_model.safetensors"):
        read_adapter(adapter)
    with pytest.raises(FormatError, match=r"has no adapter_config.json"):
        read_adapter(tmp_path)


def test_a_base_of_another_form_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pair())
    convert(base, tmp_path / "base.gguf", to="gguf", type="F32")
    with pytest.raises(UnsupportedModelError, match="is no Hugging Face directory"):
        open_with_adapter(tmp_path / "base.gguf", adapter)


def test_a_conversion_with_an_adapter_is_that_of_the_merged_model(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pair())
    result = convert(base, tmp_path / "tuned.gguf", to="gguf", type="F32", lora=adapter)
    assert any("merged into 1 weights" in remark for remark in result.remarks)
    written = open_model(tmp_path / "tuned.gguf").tensors["blk.1.attn_q.weight"]
    assert np.array_equal(values(written), values(open_with_adapter(base, adapter).tensors["blk.1.attn_q.weight"]))


def test_an_adapter_alone_holds_the_pairs_in_the_engines_layout(base: Path, tmp_path: Path) -> None:
    added = pair() | pair("model.layers.0.mlp.down_proj", HIDDEN, 512)
    adapter = write_adapter(tmp_path / "a", added, use_rslora=True)
    result = convert_adapter(base, adapter, tmp_path / "a.gguf")
    model = adapter_model(read_adapter(adapter), base)
    assert result.n_tensors == 4
    assert model.get("general.type") == "adapter"
    assert model.get("adapter.lora.alpha") == 12.0
    b = added[f"{Q}.lora_B.weight"] * np.float32(2)  # sqrt(4): the engine divides alpha by the rank
    assert np.array_equal(values(model.tensors["blk.1.attn_q.weight.lora_b"]), b[interleave_order(8, HIDDEN)])
    assert np.array_equal(values(model.tensors["blk.1.attn_q.weight.lora_a"]), added[f"{Q}.lora_A.weight"])
    assert list(model.tensors["blk.0.ffn_down.weight.lora_a"].shape) == [RANK, 512]
    with pytest.raises(UnsupportedFormatError, match="is a LoRA adapter, not a model"):
        open_model(tmp_path / "a.gguf")


def test_what_no_adapter_of_the_engine_does_is_refused(base: Path, tmp_path: Path) -> None:
    tensors = {**pair(), "lm_head.weight": random(VOCAB, HIDDEN)}
    with pytest.raises(UnsupportedModelError, match=r"replaces lm_head.weight.*--lora DIR"):
        convert_adapter(base, write_adapter(tmp_path / "a", tensors), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_an_adapter_of_its_output_projection(family: str, tmp_path: Path) -> None:
    source = write_tiny_model(family, tmp_path / "base", dtype="F32")
    width = values(open_model(source).tensors["blk.0.attn_output.weight"]).shape[1]
    adapter = write_adapter(tmp_path / "a", pair("model.layers.0.self_attn.o_proj", HIDDEN, width))
    merged, plain = open_with_adapter(source, adapter), open_model(source)
    changed = [n for n, t in plain.tensors.items() if not np.array_equal(values(t), values(merged.tensors[n]))]
    assert changed == ["blk.0.attn_output.weight"]
    assert list(adapter_model(read_adapter(adapter), source).tensors) == [
        "blk.0.attn_output.weight.lora_a", "blk.0.attn_output.weight.lora_b"
    ]  # fmt: skip
