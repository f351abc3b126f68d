"""A model directory read: types, order, values under canonical names, and everything that is refused."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import table, write_checkpoint
from kvant.dtypes import BF16, F16, F32
from kvant.errors import FormatError, KvantError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.huggingface.reader import read_huggingface
from kvant.formats.huggingface.writer import write_huggingface
from kvant.kernels import decode
from kvant.model import Model
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.process import EngineProcess
from kvant.tensors import n_rows, row_length
from kvant.testing.tiny_models import FAMILIES, weights, write_safetensors, write_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("llama"))


def values(model: Model, name: str) -> np.ndarray:
    tensor = model.tensors[name]
    decoded = decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, row_length(tensor))
    return decoded.reshape(tensor.shape)


def config_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens(family: str, tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model(family, tmp_path))
    config = config_of(tmp_path)
    assert model.hyper("block_count") == config["num_hidden_layers"]
    assert model.hyper("embedding_length") == 256
    assert {t.block_type for t in model.tensors.values() if len(t.shape) == 2} == {BF16}
    assert {t.block_type for t in model.tensors.values() if len(t.shape) == 1} == {F32}
    assert len(model.get("tokenizer.ggml.tokens")) == model.tensors["token_embd.weight"].shape[0]  # type: ignore[arg-type]
    assert ("output.weight" in model.tensors) != config["tie_word_embeddings"]


@pytest.mark.parametrize(("dtype", "kind", "file_type"), [("BF16", BF16, 32), ("F16", F16, 1), ("F32", F32, 0)])
def test_matrices_keep_their_type(dtype: str, kind: object, file_type: int, tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama", tmp_path, dtype=dtype))
    assert model.tensors["blk.0.ffn_down.weight"].block_type == kind
    assert model.get("general.file_type") == file_type


@pytest.mark.parametrize("case", ["falcon-h1", "granitehybrid", "mamba2", "nemotron_h"])
def test_what_is_no_weight_is_float32_and_the_engine_runs_it(case: str, tmp_path: Path) -> None:
    directory = write_checkpoint({**table(case), "dtype": "BF16"}, tmp_path / "m")
    model = read_huggingface(directory)
    kinds = {name: t.block_type for name, t in model.tensors.items() if name.endswith((".ssm_d", "ssm_norm.weight"))}
    assert kinds
    assert set(kinds.values()) == {F32}
    quantize(model, "Q8_0", tmp_path / "q8_0.gguf", threads=1)
    with EngineProcess() as engine:
        engine.open(tmp_path / "q8_0.gguf", n_ctx=16, n_threads=1, all_logits=True)
        (rows,) = engine.logits([np.arange(3, 12, dtype=np.int32)], first=0)
        assert np.isfinite(rows).all()


def test_llama_queries_are_interleaved_and_the_rest_is_not(tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama", tmp_path, dtype="F32"))
    theirs = dict(weights(config_of(tmp_path), 0))
    queries = theirs["model.layers.2.self_attn.q_proj.weight"]
    expected = queries.reshape(8, 2, 16, 256).transpose(0, 2, 1, 3).reshape(256, 256)
    assert np.array_equal(values(model, "blk.2.attn_q.weight"), expected)
    keys = theirs["model.layers.2.self_attn.k_proj.weight"]
    assert np.array_equal(
        values(model, "blk.2.attn_k.weight"), keys.reshape(4, 2, 16, 256).transpose(0, 2, 1, 3).reshape(128, 256)
    )
    for ours, name in (("attn_v", "self_attn.v_proj"), ("ffn_gate", "mlp.gate_proj"), ("attn_norm", "input_layernorm")):
        assert np.array_equal(values(model, f"blk.2.{ours}.weight"), theirs[f"model.layers.2.{name}.weight"])


def test_gemma_norms_get_their_one_and_qwen_keeps_its_order(tmp_path: Path) -> None:
    gemma = read_huggingface(write_tiny_model("gemma3", tmp_path / "g", dtype="F32"))
    theirs = dict(weights(config_of(tmp_path / "g"), 0))
    for ours, name in (("output_norm", "model.norm"), ("blk.1.attn_k_norm", "model.layers.1.self_attn.k_norm")):
        assert np.array_equal(values(gemma, f"{ours}.weight"), theirs[f"{name}.weight"] + np.float32(1))
    qwen = read_huggingface(write_tiny_model("qwen2", tmp_path / "q", dtype="F32"))
    theirs = dict(weights(config_of(tmp_path / "q"), 0))
    assert np.array_equal(values(qwen, "blk.0.attn_q.weight"), theirs["model.layers.0.self_attn.q_proj.weight"])
    assert np.array_equal(values(qwen, "blk.0.attn_k.bias"), theirs["model.layers.0.self_attn.k_proj.bias"])


def test_biases_of_rotated_rows_move_along(tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama", tmp_path, dtype="F32", attention_bias=True))
    bias = dict(weights(config_of(tmp_path), 0))["model.layers.0.self_attn.q_proj.bias"]
    assert np.array_equal(values(model, "blk.0.attn_q.bias"), bias.reshape(8, 2, 16).swapaxes(1, 2).reshape(-1))


def split(directory: Path) -> None:
    """Turn a one-file model into two shards with an index."""
    config = config_of(directory)
    tensors = dict(weights(config, 0))
    (directory / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for index, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        shard = f"model-{index + 1:05d}-of-00002.safetensors"
        write_safetensors(directory / shard, {name: tensors[name] for name in names}, "BF16")
        weight_map |= dict.fromkeys(names, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_model(tmp_path: Path) -> None:
    one = read_huggingface(write_tiny_model("llama", tmp_path / "one"))
    split(write_tiny_model("llama", tmp_path / "two"))
    two = read_huggingface(tmp_path / "two")
    assert set(one.tensors) == set(two.tensors)
    assert all(np.array_equal(values(one, name), values(two, name)) for name in one.tensors)
    assert len([path for path in two.files if path.suffix == ".safetensors"]) == 2


def test_a_padded_vocabulary_gets_as_many_tokens(tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("gemma3", tmp_path, vocab_size=576))
    assert model.tensors["token_embd.weight"].shape == (576, 256)
    assert len(model.get("tokenizer.ggml.tokens")) == 576  # type: ignore[arg-type]


def test_the_text_part_of_a_multimodal_gemma_opens(tmp_path: Path) -> None:
    plain = read_huggingface(write_tiny_model("gemma3", tmp_path / "text"))
    directory = write_tiny_model("gemma3", tmp_path / "both")
    config = config_of(directory)
    tensors = {name.replace("model.", "model.language_model.", 1): value for name, value in weights(config, 0)}
    tensors["model.vision_tower.patch.weight"] = np.zeros((4, 4), np.float32)
    write_safetensors(directory / "model.safetensors", tensors, "BF16")
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
    (directory / "config.json").write_text(json.dumps(outer))
    model = read_huggingface(directory)
    assert list(model.tensors) == list(plain.tensors)
    hyper = [key for key in plain.metadata if key.startswith("gemma3.")]
    assert hyper
    assert {key: model.get(key) for key in hyper} == {key: plain.get(key) for key in hyper}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "README.md", "model.safetensors"])
def test_links_out_of_the_directory_are_refused(name: str, llama: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(llama, tmp_path / "model")
    outside = tmp_path / "outside"
    outside.write_bytes((directory / name).read_bytes() if (directory / name).exists() else b"---\na: b\n---\n")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(outside)
    with pytest.raises(FormatError, match=f"{name}.*outside"):
        read_huggingface(directory)


def test_a_snapshot_of_the_hub_cache_opens(llama: Path, tmp_path: Path) -> None:
    blobs = shutil.copytree(llama, tmp_path / "models--org--Tiny-2.5M-Chat" / "blobs")
    snapshot = tmp_path / "models--org--Tiny-2.5M-Chat" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    model = read_huggingface(snapshot)
    assert (model.name, model.get("general.organization")) == ("Tiny 2.5M Chat", "Org")


class Exploding:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return Path.unlink, ("never",)  # type: ignore[return-value]


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Exploding()))


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def changed(**entries: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps({**config_of(directory), **entries}))

    return change


def renamed_tensor(old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        tensors = dict(weights(config_of(directory), 0))
        tensors[new] = tensors.pop(old)
        write_safetensors(directory / "model.safetensors", tensors, "BF16")

    return change


def doubled(directory: Path) -> None:
    tensors = dict(weights(config_of(directory), 0))
    tensors["norm.weight"] = tensors["model.norm.weight"]
    write_safetensors(directory / "model.safetensors", tensors, "BF16")


def fp8(directory: Path) -> None:
    path = directory / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.layers.0.mlp.up_proj.weight"]
    entry |= {"dtype": "F8_E4M3", "shape": [entry["shape"][0] * 2, entry["shape"][1]]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (pickled, UnsupportedFormatError, "pickles.*pytorch_model.bin.*safetensors"),
        (without("model.safetensors"), FormatError, "no .*safetensors"),
        (without("config.json"), FormatError, "config.json"),
        (without("tokenizer.json"), KvantError, "tokenizer"),
        (doubled, FormatError, "output_norm.weight comes from two tensors"),
        (fp8, FormatError, "ffn_up.weight"),
        (truncated, FormatError, "model.safetensors"),
        (changed(architectures=["BloomForCausalLM"]), UnsupportedModelError, "BloomForCausalLM.*kvant convert DIR"),
        (changed(attention_bias="false"), FormatError, "attention_bias is 'false', not true or false"),
        (changed(quantization_config={"quant_method": "fp8"}), UnsupportedModelError,
         "quantization_config.*fp8.*every weight is BF16.*remove quantization_config"),
        (changed(hidden_size=512), FormatError, "512"),
        (changed(num_hidden_layers=5), FormatError, "missing.*layers.4"),
        (changed(num_hidden_layers=3), FormatError, "blk.3.*beyond the 3 layers"),
        (changed(num_attention_heads=4), FormatError, "attn_k.*heads"),
        (changed(intermediate_size=128), FormatError, "ffn_down.*512"),
        (changed(num_hidden_layers=10**9), FormatError, "num_hidden_layers"),
        (changed(tie_word_embeddings=False), FormatError, "no lm_head.*tie_word_embeddings to true"),
        (changed(vocab_size=1024), FormatError, "512 rows for 1024 tokens"),
        (renamed_tensor("model.norm.weight", "model.norm2.weight"), UnsupportedModelError, "norm2"),
        (renamed_tensor("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.qweight"),
         UnsupportedModelError, "GPTQ already.*qweight"),
        (renamed_tensor("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"),
         FormatError, "missing"),
    ],
)  # fmt: skip
def test_damage_is_refused_with_a_reason(
    damage: Callable[[Path], None], kind: type[KvantError], words: str, llama: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(llama, tmp_path / "llama")
    damage(directory)
    with pytest.raises(kind) as caught:
        read_huggingface(directory)
    assert re.search(words, str(caught.value)), str(caught.value)


def test_an_embedding_of_more_rows_than_tokens_gets_unused_tokens(tmp_path: Path) -> None:
    directory = write_tiny_model("llama", tmp_path)
    tensors = dict(weights(config_of(directory), 0))
    tensors["model.embed_tokens.weight"] = np.concatenate([tensors["model.embed_tokens.weight"]] * 2)[:520]
    write_safetensors(directory / "model.safetensors", tensors, "BF16")

    model = read_huggingface(directory)

    tokens: Any = model.metadata["tokenizer.ggml.tokens"].value
    assert list(tokens)[512:] == [f"[PAD{number}]" for number in range(512, 520)]
    assert any("520 rows for 512 tokens: 8 unused tokens" in remark for remark in model.remarks)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    directory = write_tiny_model("llama", tmp_path)
    model = read_huggingface(directory)
    tensor = model.tensors["blk.0.attn_q.weight"]
    assert tensor.read_bytes(5, 7).shape == (2, 512)


def test_code_of_the_models_own_is_left_behind_and_said(llama: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(llama, tmp_path / "llama")
    changed(auto_map={"AutoModelForCausalLM": "modeling_x.X"})(directory)
    model = read_huggingface(directory)
    (said,) = [remark for remark in model.remarks if "auto_map" in remark]
    assert "modeling_x.X" in said
    assert "read as LlamaForCausalLM of transformers" in said
    assert model.is_mended  # no other program is sent to a directory that asks for code
    write_huggingface(model, tmp_path / "written")
    assert "auto_map" not in json.loads((tmp_path / "written" / "config.json").read_text())


def test_a_window_that_the_engine_lacks_is_the_context(tmp_path: Path) -> None:
    directory = write_tiny_model("mistral", tmp_path / "mistral", sliding_window=64)
    model = read_huggingface(directory)
    assert model.get("llama.context_length") == 64
    assert any("sliding_window is 64" in remark and "context_length is 64" in remark for remark in model.remarks)
    write_huggingface(model, tmp_path / "written")
    assert json.loads((tmp_path / "written" / "config.json").read_text())["max_position_embeddings"] == 2048
    whole = read_huggingface(write_tiny_model("mistral", tmp_path / "whole", sliding_window=None))
    assert whole.get("llama.context_length") == 2048


def test_a_token_is_given_no_more_experts_than_there_are(tmp_path: Path) -> None:
    case = table("qwen3moe")
    case["config"]["num_experts_per_tok"] = 9
    with pytest.raises(FormatError, match="is given 9 of 8 experts"):
        read_huggingface(write_checkpoint(case, tmp_path / "moe"))
