"""Families as tables: names both ways, rotary order, rotary factors against published formulas, refusals."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.dtypes import F32
from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.hyper import shortest
from kvant.formats.huggingface.architectures.llama3_rope import rotary_factors
from kvant.formats.huggingface.architectures.registry import (
    BY_CLASS,
    FAMILIES,
    family_of_class,
    family_of_model,
)
from kvant.formats.huggingface.architectures.transforms import interleave_order
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.reader import read_huggingface
from kvant.formats.huggingface.writer import config_json
from kvant.metadata import Value, ValueType, array, f32, string, u32
from kvant.model import Model
from kvant.tensors import array_tensor
from kvant.testing.tiny_models import FAMILIES as TINY
from kvant.testing.tiny_models import write_tiny_model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.classes[0])
def test_every_name_goes_both_ways(family: Any) -> None:
    stems = [
        *family.outside,
        *(f"blk.{layer}.{stem}" for layer in (0, 31) for stem in family.names),
    ]
    for name in [f"{stem}.weight" for stem in stems] + [f"blk.0.{next(iter(family.names))}.bias"]:
        theirs = family.transformers_name(name)
        assert theirs is not None
        assert family.canonical_name(theirs) == name


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.scale", "model.layers.-1.mlp.up_proj.weight",
     "model.layers.00.mlp.up_proj.weight", "model.layers.1.mlp.experts.0.w1.weight", "lm_head", "",
     "model.layers.99999.mlp.up_proj.weight", "x.weight"],
)  # fmt: skip
def test_other_names_are_unknown(name: str) -> None:
    assert family_of_class("LlamaForCausalLM", "x").canonical_name(name) is None


@pytest.mark.parametrize(
    "name", ["model.language_model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"]
)
def test_names_inside_a_multimodal_model_are_the_text_models(name: str) -> None:
    assert family_of_class("Gemma3ForConditionalGeneration", "x").canonical_name(name) == "blk.3.ffn_up.weight"


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [("GPT2LMHeadModel", "h.0.attn.c_attn.weight", "blk.0.attn_qkv.weight"),
     ("BertModel", "bert.encoder.layer.0.output.dense.weight", "blk.0.ffn_down.weight"),
     ("XLMRobertaModel", "roberta.embeddings.word_embeddings.weight", "token_embd.weight"),
     ("ModernBertModel", "model.layers.1.mlp.Wi.weight", "blk.1.ffn_up.weight"),
     ("Qwen3ForCausalLM", "layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"),
     ("Gemma3TextModel", "embed_tokens.weight", "token_embd.weight"),
     ("Mamba2ForCausalLM", "model.backbone.layers.0.norm.weight", "blk.0.attn_norm.weight"),
     ("Ernie4_5_MoeForCausalLM", "model.layers.1.mlp.moe_statics.e_score_correction_bias", "blk.1.exp_probs_b.bias")],
)  # fmt: skip
def test_names_as_published_checkpoints_spell_them(name: str, theirs: str, ours: str) -> None:
    assert family_of_class(name, "x").canonical_name(theirs) == ours


def test_norms_of_old_checkpoints_have_other_suffixes() -> None:
    family = family_of_class("BertModel", "x")
    config = Config(values={}, path=Path("config.json"))
    name = family.canonical_name("bert.encoder.layer.0.output.LayerNorm.gamma", config)
    assert name == "blk.0.layer_output_norm.weight"


def test_an_unknown_class_is_sent_to_upstreams_converter_and_an_unknown_gguf_to_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'FalconForCausalLM'.*kvant convert DIR"):
        family_of_class("FalconForCausalLM", "config.json")
    with pytest.raises(UnsupportedModelError, match=r"'falcon'.*llama.*granite"):
        family_of_model(
            Model(metadata={"general.architecture": string("falcon")}, tensors={}, path=Path("x.gguf"), files=())
        )
    with pytest.raises(UnsupportedModelError, match=r"mamba2 are written as GGUF only: decay rates are stored as"):
        family_of_model(
            Model(metadata={"general.architecture": string("mamba2")}, tensors={}, path=Path("x.gguf"), files=())
        )
    assert len(BY_CLASS) == sum(len(family.classes) for family in FAMILIES)


def test_rotary_pairs_become_neighbours() -> None:
    # One head of 6 rows: halves (0 1 2) (3 4 5) become pairs (0 3) (1 4) (2 5).
    assert interleave_order(1, 6).tolist() == [0, 3, 1, 4, 2, 5]
    assert interleave_order(2, 8).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_llama3_factors_follow_the_published_formula() -> None:
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    values = {"hidden_size": 2048, "num_attention_heads": 32, "rope_theta": 500000.0, "rope_scaling": scaling}
    found = rotary_factors(Config(values=values, path=Path("c")))
    for index, factor in enumerate(found.tolist()):
        wavelength = 2 * math.pi * 500000.0 ** (2 * index / 64)
        smooth = (8192 / wavelength - 1) / 3
        expected = 1.0 if smooth > 1 else 32.0 if smooth < 0 else 1 / ((1 - smooth) / 32 + smooth)
        assert factor == pytest.approx(expected, rel=1e-5)


def test_llama3_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama3", tmp_path))
    entries = config_json(model, family_of_class("LlamaForCausalLM", "x"), "BF16")
    assert entries["rope_scaling"] == json.loads((tmp_path / "config.json").read_text())["rope_scaling"]


def test_factors_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama3", tmp_path))
    odd = array_tensor("rope_freqs.weight", np.linspace(1, 8, 16, dtype=np.float32), F32)
    changed = Model(
        metadata=model.metadata, tensors={**model.tensors, odd.name: odd}, path=model.path, files=model.files
    )
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        config_json(changed, family_of_class("LlamaForCausalLM", "x"), "BF16")


@pytest.mark.parametrize(
    ("family", "overrides", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation function is 'gelu'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("qwen2", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope type 'llama3'"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers"),
        ("gemma3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 4}, "layer_types"),
    ],
)
def test_what_the_engine_would_compute_differently_is_refused(
    tmp_path: Path, family: str, overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read_huggingface(write_tiny_model(family, tmp_path, **overrides))


@pytest.mark.parametrize(
    ("family", "overrides", "words"),
    [
        ("phi4", {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "long_factor"),
        ("phi4", {"rope_scaling": {"type": "su", "long_factor": ["a"] * 12, "short_factor": [1.0] * 12}}, "long_f"),
        ("llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                                     "high_freq_factor": 4.0}}, "low < high"),
        ("llama", {"num_key_value_heads": 3}, "3 key-value heads"),
        ("llama", {"rope_theta": "big"}, "rope_theta"),
    ],
)  # fmt: skip
def test_malformed_hyperparameters_are_format_errors(
    tmp_path: Path, family: str, overrides: dict[str, Any], words: str
) -> None:
    write_tiny_model(family, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **overrides}))
    with pytest.raises(FormatError, match=words):
        read_huggingface(tmp_path)


def test_short_decimals_come_back() -> None:
    assert [shortest(float(np.float32(v))) for v in (1e-5, 1e-6, 500000.0, 0.22)] == [1e-5, 1e-6, 500000.0, 0.22]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", None), ("block_count", string("four")), ("block_count", u32(1 << 20)),
        ("embedding_length", f32(256.5)), ("attention.head_count", u32(0)),
        ("attention.head_count_kv", array(ValueType.UINT32, np.array([4, 2], np.uint32))),
        ("rope.freq_base", string("x")), ("attention.layer_norm_rms_epsilon", f32(math.nan)),
    ],
)  # fmt: skip
def test_a_gguf_with_odd_hyperparameters_is_refused(key: str, value: Value | None, tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama", tmp_path))
    metadata = {k: v for k, v in model.metadata.items() if k != f"llama.{key}"}
    if value is not None:
        metadata[f"llama.{key}"] = value
    odd = Model(metadata=metadata, tensors=model.tensors, path=model.path, files=model.files)
    with pytest.raises(FormatError, match=key.rpartition(".")[2]):
        config_json(odd, family_of_class("LlamaForCausalLM", "x"), "BF16")


def test_key_value_heads_default_to_the_heads(tmp_path: Path) -> None:
    model = read_huggingface(write_tiny_model("llama", tmp_path, num_key_value_heads=8))
    metadata = {k: v for k, v in model.metadata.items() if not k.endswith("head_count_kv")}
    short = Model(metadata=metadata, tensors=model.tensors, path=model.path, files=model.files)
    assert config_json(short, family_of_class("LlamaForCausalLM", "x"), "BF16")["num_key_value_heads"] == 8


def test_every_family_of_the_first_version_has_a_tiny_model() -> None:
    tiny = {name for config in TINY.values() for name in config["architectures"]}
    assert {family.classes[0] for family in FAMILIES if family.since == "0.1"} == tiny
