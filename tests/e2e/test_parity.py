"""Tokens and prompts of variants, each by its own engine."""

import json
import venv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import EngineError, MissingDependencyError
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.parity import parity
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import write_tiny_model

pytest.importorskip("mlx_lm", reason="there is no wheel of mlx for this system")

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", tokenizer="smollm")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def variants(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("variants")
    convert(tiny, out / "a.gguf", to="gguf", type="Q8_0")
    to_mlx(tiny, out / "mlx", type="4bit-g32")
    return [out / "a.gguf", out / "mlx"]


def test_formats_read_and_prompt_alike(tiny: Path, variants: list[Path]) -> None:
    found = parity(variants, against=tiny)
    assert [p.engine.split()[0] for p in found] == ["llama.cpp", "mlx-lm"]
    for p in found:
        assert p.is_same, p
        assert p.n_same_texts == p.n_texts > 60
        assert p.n_same_prompts == p.n_prompts == 5


def test_what_differs_is_shown(tiny: Path, variants: list[Path], tmp_path: Path) -> None:
    other = write_tiny_model("llama", tmp_path / "other", tokenizer="llama3")
    run = CliRunner().invoke(app, ["parity", str(variants[0]), str(other), "--against", str(tiny), "--json"])
    assert run.exit_code == 1
    same, differs = json.loads(run.stdout)
    assert not same["differences"]
    found = {d["what"]: d for d in differs["differences"]}
    assert {"tokens", "prompt", "token texts", "pre-tokenizer", "chat template"} <= set(found)
    prompt = found["prompt"]
    assert "<|user|>" in prompt["theirs"]
    table = CliRunner().invoke(app, ["parity", str(other), "--against", str(tiny)])
    assert "tokens of" in table.stdout


def test_an_engine_that_is_not_there(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setenv("KVANT_ONNX_PYTHON", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(MissingDependencyError, match="KVANT_ONNX_PYTHON"):
        parity([export_tiny(tiny, tmp_path / "onnx")], against=tiny)


def test_a_broken_tokenizer_is_an_error(tiny: Path, tmp_path: Path) -> None:
    to_mlx(tiny, tmp_path / "mlx", type="4bit-g32")
    path = tmp_path / "mlx" / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["type"] = "nonsense"
    path.write_text(json.dumps(document))
    with pytest.raises((EngineError, ValueError)):
        parity([tmp_path / "mlx"], against=tiny)
