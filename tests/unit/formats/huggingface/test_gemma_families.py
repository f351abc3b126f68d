"""Gemma 2, 3n and 4: what of a configuration is read, and what the engine would compute differently."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import table, write_checkpoint
from kvant.dtypes import BF16, F32
from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.gemma4 import of_kind
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.lazy import padded, zeros
from kvant.formats.huggingface.reader import read_huggingface
from kvant.tensors import array_tensor

LAYERS = ["sliding_attention", "full_attention"]


def read(case: str, tmp_path: Path, **change: Any) -> Any:
    source = write_checkpoint(table(case), tmp_path / "tiny")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, **change}))
    return read_huggingface(source)


@pytest.mark.parametrize("case", ["gemma2", "gemma4-e2b", "gemma4-31b", "gemma4-a4b", "gemma4-12b"])
def test_nothing_of_a_published_configuration_is_called_unread(case: str, tmp_path: Path) -> None:
    assert [said for said in read(case, tmp_path).remarks if "nobody reads" in said] == []


@pytest.mark.parametrize(
    "stated",
    [{"global_head_dim": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
     {"per_layer_config": {"1": {"head_dim": 32, "num_key_value_heads": 1}}}],
)  # fmt: skip
def test_both_spellings_of_full_layers_are_read(stated: dict[str, Any]) -> None:
    values = {"num_hidden_layers": 2, "layer_types": LAYERS, "head_dim": 16, "num_key_value_heads": 2, **stated}
    config = Config(values=values, path=Path("config.json"))
    assert [of_kind(config, kind, "head_dim") for kind in LAYERS] == [16, 32]
    assert [of_kind(config, kind, "num_key_value_heads") for kind in LAYERS] == [2, 1]


@pytest.mark.parametrize(
    "stated",
    [{"0": {"head_dim": 32}}, {"1": {"head_dim": 32, "sliding_window": 8}}, {"1": 3}, [1],
     {"1": {"head_dim": 32}, "3": {"head_dim": 64}}],
)  # fmt: skip
def test_layers_with_more_of_their_own_are_refused(stated: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="per_layer_config"):
        read("gemma4-31b", tmp_path, per_layer_config=stated)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"), ({"num_kv_shared_layers": 3}, "share"),
     ({"layer_types": ["sliding_attention"]}, "for each of 6 layers"), ({"num_attention_heads": 8}, "shape"),
     ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope type"),
     ({"attention_bias": True}, "bias")],
)  # fmt: skip
def test_what_gemma4_does_not_compute_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, UnsupportedModelError), match=message):
        read("gemma4-31b", tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"attn_logit_softcapping": None}, "always has one"), ({"query_pre_attn_scalar": 32}, "scales by 16"),
     ({"layer_types": ["full_attention"] * 4}, "every second layer"), ({"tie_word_embeddings": False}, "lm_head")],
)  # fmt: skip
def test_what_gemma2_does_not_compute_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, UnsupportedModelError), match=message):
        read("gemma2", tmp_path, **change)


def test_the_rotary_base_is_written_where_the_engine_would_take_another(tmp_path: Path) -> None:
    assert read("gemma2", tmp_path, rope_theta=20000.0).get("gemma2.rope.freq_base") == 20000


def test_missing_rows_are_zeros_in_the_type_of_the_others() -> None:
    tensor = array_tensor("embedding", np.ones((2, 3), np.uint16), BF16)
    found = padded(tensor, 4)
    assert (found.shape, found.block_type) == ((4, 3), BF16)
    assert found.read_bytes(1, 4).view(np.uint16).tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert padded(tensor, 2).shape == (2, 3)
    assert zeros("none", (2,)).block_type == F32


def test_layers_that_share_keys_get_the_ones_that_the_engine_asks_for(tmp_path: Path) -> None:
    case = table("gemma3n")
    own = ("k_proj", "v_proj", "k_norm")
    case["source"] = {
        name: shape
        for name, shape in case["source"].items()
        if not any(f"layers.{layer}.self_attn.{part}." in name for layer in (20, 21) for part in own)
    }
    model = read_huggingface(write_checkpoint(case, tmp_path / "tiny"))
    assert model.tensors["blk.21.attn_k.weight"].shape == (32, 64)
    assert not model.tensors["blk.20.attn_v.weight"].read_bytes(0, 32).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"laurel_rank": 32}, "laurel_rank"), ({"num_kv_shared_layers": 3}, "num_kv_shared_layers"),
     ({"intermediate_size": [96] * 21 + [64]}, "one length for all"),
     ({"activation_sparsity_pattern": 0.5}, "sparsity"),
     ({"final_logit_softcapping": None}, "caps its logits"), ({"altup_num_inputs": 3}, "altup_num_inputs")],
)  # fmt: skip
def test_what_gemma3n_does_not_compute_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    case = table("gemma3n")
    case["source"] = {}  # config.json is refused before any weight is read
    source = write_checkpoint(case, tmp_path / "tiny")
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UnsupportedModelError, match=message):
        read_huggingface(source)
