"""The way through upstream's converter with the real one: the same file as upstream's own, which the engine runs.

In an environment that is there (`KVANT_CONVERTER_PYTHON` and `KVANT_CONVERTER_SOURCE`) these take a minute; else it is
made under build/, or where `KVANT_UPSTREAM_CONVERTER` says.
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

from kvant.recipes.convert.convert import convert
from kvant.recipes.convert.projector import convert_projector
from kvant.runtime.converter import environment
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_models import write_tiny_model
from projector_cases import table, write_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "upstream_converter.py"
RUNNER = """
import runpy, sys
root, pre, *sys.argv = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TOKENS = np.random.default_rng(5).integers(6, 500, 24).astype(np.int32)

COMMON = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KEY_VALUE = {"num_key_value_heads": 2}

MAKE = """
import json, sys, torch, transformers
name, out, entries = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.manual_seed(0)
model = getattr(transformers, name)(getattr(transformers, entries.pop("config"))(**entries)).eval()
model.save_pretrained(out)
"""

LOGITS = """
import json, sys, numpy as np, torch, transformers
model = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(torch.tensor([json.loads(sys.argv[3])])).logits[0].numpy()
np.save(sys.argv[4], logits.astype("<f4"))
"""

CLASSES: dict[str, dict[str, Any]] = {
    "StableLmForCausalLM": {"config": "StableLmConfig", **COMMON, **KEY_VALUE},
    "GPTNeoXForCausalLM": {"config": "GPTNeoXConfig", **COMMON},
    "Starcoder2ForCausalLM": {"config": "Starcoder2Config", **COMMON, **KEY_VALUE},
}  # fmt: skip
PLAIN = {"StableLmForCausalLM": "smollm", "Starcoder2ForCausalLM": "starcoder"}
"""Classes that upstream's converter reads without help, with its name of the tiny tokenizer for such a model."""


@pytest.fixture(scope="module")
def home() -> Path:
    path = Path(os.environ.get("KVANT_UPSTREAM_CONVERTER", ROOT / "build" / "upstream-converter")).absolute()
    subprocess.run([sys.executable, str(TOOL), str(path)], check=True)
    return path


@pytest.fixture
def converter(home: Path, monkeypatch: pytest.MonkeyPatch) -> environment.Converter:
    monkeypatch.setenv("KVANT_HOME", str(home))
    found = environment.find()
    assert found is not None
    return found


@pytest.fixture
def model(converter: environment.Converter, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name, place = request.param, tmp_path / "tiny-lm"
    subprocess.run([converter.python, "-c", MAKE, name, str(place), json.dumps(CLASSES[name])], check=True)
    tiny = write_tiny_model("llama", tmp_path / "tokenizer", tokenizer="smollm")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (place / file).write_bytes((tiny / file).read_bytes())
    return place


def content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = GGUFReader(path)
    fields = {f.name: (f.types, f.contents()) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    tensors = {t.name: (int(t.tensor_type), t.shape.tolist(), np.asarray(t.data).tobytes()) for t in reader.tensors}
    return fields, tensors


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("model", PLAIN, indirect=True)
def test_the_file_is_the_one_that_upstream_makes_by_itself(
    home: Path, model: Path, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done = convert(model, tmp_path / "ours.gguf", to="gguf", type=kind, converter="upstream")
    assert done.converter == "upstream"
    words = [str(home), str(model), str(tmp_path / "theirs.gguf"), "--type", kind.lower(), "--pre"]
    pre = PLAIN[request.node.callspec.params["model"]]
    subprocess.run([sys.executable, str(TOOL), *words, pre], check=True)
    ours, theirs = content(tmp_path / "ours.gguf"), content(tmp_path / "theirs.gguf")
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("case", ["idefics3", "qwen3vl", "gemma3", "lfm2", "gemma4"])
def test_projectors_of_every_type_are_upstream_s(
    converter: environment.Converter, case: str, kind: str, tmp_path: Path
) -> None:
    """F16 is held by the tables of tests/golden/projectors; of Pixtral upstream's converter leaves a tensor out."""
    source = write_checkpoint(table(case), tmp_path / "tiny")
    words = [str(converter.source), "", str(converter.script), str(source), "--mmproj", "--outtype", kind.lower()]
    words += ["--outfile", str(tmp_path / "theirs.gguf")]
    subprocess.run([converter.python, "-c", RUNNER, *words], check=True, capture_output=True)
    convert_projector(source, tmp_path / "ours.gguf", type=kind)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("model", CLASSES, indirect=True)
def test_the_engine_computes_what_transformers_does(
    converter: environment.Converter, model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["model"]
    convert(model, tmp_path / "m.gguf", to="gguf", type="F32", converter="upstream")
    words = [name, str(model), json.dumps(TOKENS.tolist()), str(tmp_path / "theirs.npy")]
    subprocess.run([converter.python, "-c", LOGITS, *words], check=True)
    theirs = np.load(tmp_path / "theirs.npy").astype(np.float64)
    with LlamaCpp(tmp_path / "m.gguf", n_ctx=32, n_threads=1, all_logits=True) as engine:
        ours = engine.logits(TOKENS).astype(np.float64)
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
            for x in (theirs, ours))  # fmt: skip
    assert float((np.exp(p) * (p - q)).sum(-1).mean()) <= 1e-6
