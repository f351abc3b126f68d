"""Models made from Modelfiles: where weights and settings come from."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import ModelfileError, ModelNotFoundError, PlanError, UnsupportedModelError
from kvant.formats.gguf.reader import read_gguf
from kvant.hub.modelfile import modelfile_of, parse_modelfile, write_modelfile
from kvant.hub.store import Store, StoredModel
from kvant.recipes.create import Making, create, find_base
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.template import render
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy

PIRATE = '''FROM ./model.gguf
SYSTEM You are a pirate.
PARAMETER temperature 0.2
PARAMETER stop "</s>"
TEMPLATE """{{ if .System }}<s>{{ .System }}</s>{{ end }}<u>{{ .Prompt }}</u>"""
MESSAGE user Ahoy?
MESSAGE assistant Ahoy!
LICENSE MIT
'''


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("create")
    write_tiny_model("llama", directory / "hf")
    quantize(directory / "hf", "F16", directory / "model.gguf")
    quantize(directory / "hf", "Q8_0", directory / "quantized.gguf")
    (directory / "Modelfile").write_text(PIRATE)
    return directory


def made(text: str, source: Path, name: str = "made", making: Making | None = None) -> StoredModel:
    modelfile, store = parse_modelfile(text), Store.open()
    return create(name, modelfile, find_base(modelfile, source, store), making, store=store)


def test_from_a_file_with_settings(source: Path) -> None:
    model = made(PIRATE, source)
    assert model.path.read_bytes() == (source / "model.gguf").read_bytes()
    settings = model.settings
    assert (settings.system, settings.parameters) == ("You are a pirate.", {"temperature": 0.2, "stop": ["</s>"]})
    assert [m.content for m in settings.messages] == ["Ahoy?", "Ahoy!"]
    assert settings.license == ["MIT"]
    assert settings.template is not None
    said = render(settings.template, [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    assert said == "<s>S</s><u>U</u>"


def test_a_modelfile_alone_says_where_its_weights_are(source: Path) -> None:
    model = create("alone", source / "Modelfile")
    assert model.path.read_bytes() == (source / "model.gguf").read_bytes()
    assert model.settings.system == "You are a pirate."
    again = create("again", parse_modelfile("FROM alone"))
    assert again.settings.system == "You are a pirate."
    with pytest.raises(ModelfileError, match=r"FROM \./none\.gguf: is neither a path nor a model"):
        create("none", parse_modelfile("FROM ./none.gguf"), directory=source)


def test_from_a_stored_model_no_weights_are_copied_and_settings_are_inherited(source: Path) -> None:
    made(PIRATE, source, "base")
    used = Store.open().usage()
    model = made("FROM base\nPARAMETER temperature 1\nPARAMETER seed 7\n", source, "derived")
    assert Store.open().usage() - used < model.size_bytes / 50
    assert model.settings.parameters == {"temperature": 1.0, "stop": ["</s>"], "seed": 7}
    assert model.settings.system == "You are a pirate."


def test_quantized_from_a_directory_and_from_a_stored_model(source: Path) -> None:
    model = made("FROM hf", source, "small", Making(quantize="q4_k_m"))
    quantize(source / "hf", "Q4_K_M", source / "direct.gguf", overwrite=True)
    assert model.path.read_bytes() == (source / "direct.gguf").read_bytes()
    made("FROM model.gguf", source, "full")
    again = made("FROM full", source, "small2", Making(quantize="Q8_0"))
    assert {t.block_type.name for t in read_gguf(again.path).tensors.values()} == {"Q8_0", "F32"}
    with pytest.raises(PlanError, match="allow-requantize"):
        made("FROM quantized.gguf", source, "twice", Making(quantize="Q4_K_M"))
    assert not [m for m in Store.open().list() if m.name.model == "twice"]
    with pytest.raises(PlanError, match="is not known"):
        made("FROM hf", source, "x", Making(quantize="Q9"))


@pytest.mark.parametrize("preset", ["BF16", "IQ4_NL", "MXFP4_MOE", "Q2_K", "Q5_1", "TQ2_0"])
def test_presets_of_every_family(source: Path, preset: str) -> None:
    model = made("FROM hf", source, "small", Making(quantize=preset))
    assert read_gguf(model.path).get("kvant.preset") == preset


def test_a_preset_that_needs_importance_says_so(source: Path) -> None:
    with pytest.raises(PlanError, match="imatrix"):
        made("FROM hf", source, "small", Making(quantize="IQ2_XXS"))


def test_what_cannot_be_made(source: Path) -> None:
    for text, error, said in (
        ("FROM nothing", ModelfileError, "neither a path nor a model"),
        ("FROM ../../..//x y", ModelfileError, "neither a path"),
        ("FROM hf\nADAPTER a.gguf", ModelfileError, "Merge it"),
        ("FROM hf\nTEMPLATE {{ .Tools }}", ModelfileError, "model's own"),
        ("FROM hf\nTEMPLATE {% for %}", UnsupportedModelError, "chat template"),
        ("FROM hf\nTEMPLATE hello", ModelfileError, "does not come out"),
        ("FROM hf\nTEMPLATE {{ messages.__class__.__mro__ }}", UnsupportedModelError, "chat template"),
    ):
        with pytest.raises(error, match=said):
            made(text, source)
    with pytest.raises(ModelNotFoundError):
        Store.open().find("made")


def test_a_modelfile_made_from_a_model_makes_it_again(source: Path) -> None:
    model = made(PIRATE, source)
    text = write_modelfile(modelfile_of("made", model.settings))
    assert made(text, source, "again").settings == model.settings


def test_the_commands(source: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["create", "pirate", "-f", str(source / "Modelfile"), "--json"])
    assert json.loads(done.stdout)["name"] == "pirate:latest"
    shown = runner.invoke(app, ["show", "pirate", "--modelfile"]).stdout
    assert parse_modelfile(shown).system == "You are a pirate."
    piped = runner.invoke(app, ["create", "parrot", "-f", "-"], input="FROM pirate\nSYSTEM Squawk.\nREQUIRES 1.0\n")
    assert "REQUIRES 1.0 has no meaning here" in piped.stdout
    assert Store.open().find("parrot").settings.system == "Squawk."
    failed = runner.invoke(app, ["create", "x", "-f", "-"], input="FROM pirate\nRUN rm\n")
    assert failed.exit_code == 1
    assert "is not an instruction" in failed.stderr
