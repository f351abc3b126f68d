"""Files converted by kvant against files converted by upstream, and logits of the engine against those of transformers.

Both oracles run in an environment of their own, which tools/upstream_converter.py makes on the first run; set
KVANT_UPSTREAM_CONVERTER to keep it elsewhere than under build/.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from kvant.formats.huggingface.architectures import llama3_rope as llama
from kvant.recipes.convert.convert import convert
from kvant.runtime import capi
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_models import FAMILIES, TOKENIZERS, weights, write_safetensors, write_tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "upstream_converter.py"
PRE = {"smollm": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "spm": ""}
"""Upstream's names of the tiny models' pre-tokenizers, which it cannot tell by its hashes."""

OTHER_TOKENIZER: dict[str, dict[str, Any]] = {"gemma3": {"tokenizer": "qwen2", "bos_token_id": 1, "eos_token_id": 2}}
"""Upstream reads Gemma's tokenizer.json only beside a tokenizer.model: here Gemma's tensors and keys are compared, with
another tokenizer. Tokenizers have their own parity tests."""

DIFFERENCES = {
    "tinyllama": {
        "tokenizer.ggml.scores": "upstream writes -1000 for every token, with which the engine merges in any order; "
        "kvant writes the ranks of the merges",
        "tokenizer.ggml.token_type": "upstream calls <unk> a control token; kvant calls it the unknown token",
    },
    "phi3": {"phi3.context_length": "the engine has no window: the context is no longer than transformers' window"},
}
"""Keys whose values differ, with the reason."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-biases": ("llama", {"attention_bias": True}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama-f32": ("llama", {"dtype": "F32"}),
    "mistral-f16": ("mistral", {"dtype": "F16"}),
    "qwen2-yarn": ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                              "original_max_position_embeddings": 512}}),
    "gemma3-full": ("gemma3", {"sliding_window_pattern": 1}),
    "phi4-long": ("phi4", {"original_max_position_embeddings": 32, "max_position_embeddings": 64}),
    "granite-untied": ("granite", {"tie_word_embeddings": False}),
}  # fmt: skip

LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
              "tie_word_embeddings": False},
    "mistral": {"num_key_value_heads": 8, "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "max_position_embeddings": 131072},
    "smollm3": {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
                "rope_theta": 2000000.0, "no_rope_layers": [1, 1, 1, 0]},
    "qwen2": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768,
              "tie_word_embeddings": False},
    "qwen3": {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768},
    "gemma3": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
               "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
               "query_pre_attn_scalar": 256, "sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh"},
    "phi3": {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
             "original_max_position_embeddings": 4096},
    "granite": {"num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
                "attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
                "logits_scaling": 1.0, "tie_word_embeddings": False},
}  # fmt: skip
"""Entries that the configuration of a family may leave out, with what transformers assumes."""

TOKENS = np.random.default_rng(5).integers(4, 500, 48).astype(np.int32)
MAX_MEAN_KL, MAX_DIFFERENCE = 1e-10, 1e-4
GELU_MEAN_KL, GELU_DIFFERENCE = 1e-6, 1e-2
"""Nats, and logits. The engine looks Gemma's activation up in a table of float16."""

TRANSFORMERS = """
import sys, numpy, torch
from transformers import AutoModelForCausalLM
out, tokens, *directories = sys.argv[1:]
tokens = torch.tensor(numpy.load(tokens)[None].astype("int64"))
found = {}
for directory in directories:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found[directory] = model(tokens).logits[0].numpy()
numpy.savez(out, **found)
"""


@pytest.fixture(scope="session")
def environment() -> Path:
    path = Path(os.environ.get("KVANT_UPSTREAM_CONVERTER", ROOT / "build" / "upstream-converter")).absolute()
    subprocess.run([sys.executable, str(TOOL), str(path)], check=True)
    return path


def upstream(environment: Path, source: Path, out: Path, kind: str, pre: str) -> Path:
    arguments = [str(environment), str(source), str(out), "--type", kind.lower(), "--pre", pre]
    subprocess.run([sys.executable, str(TOOL), *arguments], check=True)
    return out


def metadata(path: Path) -> dict[str, tuple[Any, Any]]:
    fields = GGUFReader(path).fields.values()
    return {f.name: (f.types, f.contents()) for f in fields if not f.name.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, tuple[int, list[int], bytes]]:
    return {
        t.name: (int(t.tensor_type), [int(n) for n in t.shape], np.asarray(t.data).tobytes())
        for t in GGUFReader(path).tensors
    }


def assert_same(ours: Path, theirs: Path, differences: dict[str, str]) -> None:
    found, wanted = metadata(ours), metadata(theirs)
    assert found.keys() == wanted.keys()
    assert {key for key in wanted if found[key] != wanted[key]} == differences.keys()
    here, there = tensors(ours), tensors(theirs)
    assert list(here) == list(there)  # the order too
    assert [name for name in there if here[name] != there[name]] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_and_metadata_are_upstreams(variant: str, environment: Path, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    other = OTHER_TOKENIZER.get(family, {})
    source = write_tiny_model(family, tmp_path / "tiny", **other, **overrides)
    pre = PRE[other.get("tokenizer", TOKENIZERS[family])]
    theirs = upstream(environment, source, tmp_path / "theirs.gguf", "f32", pre)
    convert(source, tmp_path / "ours.gguf", to="gguf", type="F32")
    assert_same(tmp_path / "ours.gguf", theirs, DIFFERENCES.get(family, {}))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama3", "phi4"])
def test_every_output_type_is_upstreams(family: str, kind: str, environment: Path, tmp_path: Path) -> None:
    source = write_tiny_model(family, tmp_path / "tiny", intermediate_size=528)  # no multiple of 32 x 17
    theirs = upstream(environment, source, tmp_path / "theirs.gguf", kind, PRE[TOKENIZERS[family]])
    convert(source, tmp_path / "ours.gguf", to="gguf", type=kind)
    assert_same(tmp_path / "ours.gguf", theirs, {})


@pytest.mark.parametrize("family", LEFT_OUT)
def test_what_a_configuration_leaves_out_is_what_transformers_assumes(
    family: str, environment: Path, tmp_path: Path
) -> None:
    other = OTHER_TOKENIZER.get(family, {})
    source = write_tiny_model(family, tmp_path / "tiny", **other, **LEFT_OUT[family])
    config = json.loads((source / "config.json").read_text())
    short = {key: value for key, value in config.items() if key not in LEFT_OUT[family]}
    (source / "config.json").write_text(json.dumps(short))
    pre = PRE[other.get("tokenizer", TOKENIZERS[family])]
    theirs = upstream(environment, source, tmp_path / "theirs.gguf", "f32", pre)
    convert(source, tmp_path / "ours.gguf", to="gguf", type="F32")
    assert_same(tmp_path / "ours.gguf", theirs, DIFFERENCES.get(family, {}))


def test_names_cards_and_shards_are_upstreams(environment: Path, tmp_path: Path) -> None:
    source = write_tiny_model("qwen2", tmp_path / "Tiny-2.5M-Instruct-v0.2", tie_word_embeddings=False)
    config = json.loads((source / "config.json").read_text())
    values = dict(weights(config, 0))
    (source / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for index, names in enumerate((sorted(values)[1::2], sorted(values)[::2])):
        shard = f"model-{index + 1:05d}-of-00002.safetensors"
        write_safetensors(source / shard, {name: values[name] for name in names}, "BF16")
        weight_map |= dict.fromkeys(names, shard)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (source / "generation_config.json").write_text(
        '{"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1, "bos_token_id": 1}'
    )
    (source / "README.md").write_text(
        "---\nlicense: apache-2.0\nlicense_link: https://example.org/LICENSE\nlanguage:\n- en\n- de\n"
        "base_model:\n- Qwen/Qwen2.5-1.5B\n- https://huggingface.co/org/Other-7B-v2\ndatasets: org/Some-Data\n"
        "tags:\n- chat\npipeline_tag: text-generation\nlibrary_name: transformers\n---\n# Tiny\n"
    )
    theirs = upstream(environment, source, tmp_path / "theirs.gguf", "f32", "qwen2")
    convert(source, tmp_path / "ours.gguf", to="gguf", type="F32")
    assert_same(tmp_path / "ours.gguf", theirs, {})


@pytest.mark.model
@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_the_reference_model_is_upstreams_whole(
    kind: str, environment: Path, reference_model: Path, tmp_path: Path
) -> None:
    theirs = upstream(environment, reference_model, tmp_path / "theirs.gguf", kind, "")
    convert(reference_model, tmp_path / "ours.gguf", to="gguf", type=kind)
    assert_same(tmp_path / "ours.gguf", theirs, {})


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, values and attention of the engine in float32, so that rounding hides nothing."""
    monkeypatch.setattr(capi, "FLASH_ATTENTION_ON", 0)
    monkeypatch.setattr(capi, "TYPE_F16", 0)


def engine_logits(path: Path) -> np.ndarray:
    with LlamaCpp(path, n_ctx=64, n_threads=2, all_logits=True) as engine:
        return engine.logits(TOKENS).astype(np.float64)


def transformers_logits(environment: Path, directories: list[Path], scratch: Path) -> list[np.ndarray]:
    np.save(scratch / "tokens.npy", TOKENS)
    python = environment / "venv" / "bin" / "python"
    arguments = [str(scratch / "logits.npz"), str(scratch / "tokens.npy"), *map(str, directories)]
    subprocess.run([str(python), "-c", TRANSFORMERS, *arguments], check=True, capture_output=True)
    with np.load(scratch / "logits.npz") as found:
        return [found[str(directory)].astype(np.float64) for directory in directories]


def mean_kl(base: np.ndarray, other: np.ndarray) -> float:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))

    p, q = log_softmax(base), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.usefixtures("full_precision")
def test_the_engine_computes_what_transformers_computes(environment: Path, tmp_path: Path) -> None:
    directories, backs = [], []
    for variant, (family, overrides) in VARIANTS.items():
        source = write_tiny_model(family, tmp_path / variant, **overrides)
        convert(source, tmp_path / f"{variant}.gguf", to="gguf", type="F32")
        dtype = str(overrides.get("dtype", "BF16"))
        convert(tmp_path / f"{variant}.gguf", tmp_path / f"{variant}-back", to="hf", type=dtype)
        directories.append(source)
        backs.append(tmp_path / f"{variant}-back")
    logits = transformers_logits(environment, directories + backs, tmp_path)
    for variant, base, back in zip(VARIANTS, logits, logits[len(VARIANTS) :], strict=False):
        assert np.abs(base - back).max() <= 1e-5, variant
        found = engine_logits(tmp_path / f"{variant}.gguf")
        gelu = VARIANTS[variant][0] == "gemma3"
        assert mean_kl(base, found) < (GELU_MEAN_KL if gelu else MAX_MEAN_KL), variant
        assert np.abs(base - found).max() < (GELU_DIFFERENCE if gelu else MAX_DIFFERENCE), variant


@pytest.mark.usefixtures("full_precision")
def test_the_comparison_would_see_factors_that_are_wrong(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_model("llama3", tmp_path / "tiny")
    base = transformers_logits(environment, [source], tmp_path)[0]
    convert(source, tmp_path / "right.gguf", to="gguf", type="F32")
    monkeypatch.setattr(llama, "rotary_factors", lambda _: np.ones(16, np.float32))
    convert(source, tmp_path / "wrong.gguf", to="gguf", type="F32")
    assert mean_kl(base, engine_logits(tmp_path / "right.gguf")) < MAX_MEAN_KL
    assert mean_kl(base, engine_logits(tmp_path / "wrong.gguf")) > 1000 * GELU_MEAN_KL
