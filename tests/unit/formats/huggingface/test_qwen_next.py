"""Qwen3-Next and Qwen3.5: heads in llama.cpp's order, heads that guess ahead, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import table, write_checkpoint
from kvant.dtypes import F32
from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.delta_net import tiled_order
from kvant.formats.huggingface.architectures.nextn import mtp_as_blocks
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.reader import read_huggingface
from kvant.tensors import n_rows


def config(**values: Any) -> Config:
    return Config(values={"num_hidden_layers": 4, **values}, path=Path("config.json"))


def test_value_heads_go_from_grouped_to_tiled() -> None:
    found = tiled_order(config(linear_num_key_heads=2, linear_num_value_heads=6), 2, n_before=1)
    assert found.tolist() == [0, 1, 2, 7, 8, 3, 4, 9, 10, 5, 6, 11, 12]  # heads 0 3 1 4 2 5, behind one other row


@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [("model.mtp.fc.weight", "model.layers.4.eh_proj.weight"),
     ("mtp.norm.weight", "model.layers.4.shared_head.norm.weight"),
     ("mtp.layers.1.mlp.up_proj.weight", "model.layers.5.mlp.up_proj.weight"),
     ("mtp.layers.x.mlp.up_proj.weight", "mtp.layers.x.mlp.up_proj.weight"), ("mtp.other.weight", "mtp.other.weight"),
     ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight")],
)  # fmt: skip
def test_heads_that_guess_ahead_are_blocks_behind_the_others(theirs: str, wanted: str) -> None:
    assert mtp_as_blocks(theirs, config()) == wanted


def test_the_output_projection_moves_columns(tmp_path: Path) -> None:
    case = table("qwen35")
    source = write_checkpoint(case, tmp_path / "tiny")
    model = read_huggingface(source)
    found, gate = model.tensors["blk.0.ssm_out.weight"], model.tensors["blk.0.attn_gate.weight"]
    assert (found.block_type, found.shape, gate.shape) == (F32, (64, 64), (64, 64))
    rows = found.read_bytes(3, 5).view(np.float32)
    assert np.array_equal(rows, found.read_bytes(0, n_rows(found)).view(np.float32)[3:5])  # by rows, as it is read


def test_a_checkpoint_without_its_mtp_tensors_is_whole(tmp_path: Path) -> None:
    case = table("qwen35")
    case["source"] = {name: shape for name, shape in case["source"].items() if not name.startswith("mtp.")}
    model = read_huggingface(write_checkpoint(case, tmp_path / "tiny"))
    assert model.get("qwen35.block_count") == 4
    assert "qwen35.nextn_predict_layers" not in model.metadata
    assert model.metadata["qwen35.attention.recurrent_layers"].value.tolist() == [True, True, True, False]  # type: ignore[union-attr]
    assert any("mtp_num_hidden_layers is 1, but the weights have 0 of these layers" in said for said in model.remarks)


def test_a_missing_tensor_of_it_is_named(tmp_path: Path) -> None:
    case = table("qwen35")
    del case["source"]["mtp.fc.weight"]
    with pytest.raises(FormatError, match=r"1 tensor is missing: .*eh_proj"):
        read_huggingface(write_checkpoint(case, tmp_path / "tiny"))
    del case["source"]["model.layers.0.linear_attn.A_log"]
    with pytest.raises(FormatError, match=r"2 tensors are missing, first model.layers.0.linear_attn.A_log"):
        read_huggingface(write_checkpoint(case, tmp_path / "other"))


@pytest.mark.parametrize("name", ["qwen35", "qwen35-vision", "qwen35moe", "qwen3next"])
def test_nothing_of_a_published_configuration_is_called_unread(name: str, tmp_path: Path) -> None:
    model = read_huggingface(write_checkpoint(table(name), tmp_path / "tiny"))
    assert [said for said in model.remarks if "nobody reads" in said] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [({"linear_value_head_dim": 32}, "one length for both"),
     ({"linear_num_value_heads": 3}, "cannot share 2 key heads"),
     ({"layer_types": ["linear_attention"]}, "for each of 4 layers"), ({"attn_output_gate": False}, "attn_output_gate"),
     ({"rope_parameters": {"mrope_section": [11, 11, 10]}}, "shares out 32 pairs, not 1 to the 16 of a head"),
     ({"rope_parameters": {"mrope_section": "many"}}, "not up to four counts"),
     ({"linear_num_key_heads": 4}, "shape")],
)  # fmt: skip
def test_what_the_engine_would_not_compute_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write_checkpoint(table("qwen35"), tmp_path / "tiny")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises((FormatError, UnsupportedModelError), match=message):
        read_huggingface(source)


def test_experts_of_qwen3_vl_are_read_whichever_way_they_lie(tmp_path: Path) -> None:
    case = table("qwen3vlmoe")
    published = read_huggingface(write_checkpoint(case, tmp_path / "published"))
    for name, (experts, rows, length) in [(n, s) for n, s in case["source"].items() if ".experts." in n]:
        case["source"][name] = [experts, length, rows]
    saved = read_huggingface(write_checkpoint(case, tmp_path / "saved"))
    for stem in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        assert saved.tensors[f"blk.0.{stem}.weight"].shape == published.tensors[f"blk.0.{stem}.weight"].shape
