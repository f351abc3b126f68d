import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import FormatError, OutputExistsError
from kvant.evaluate.corpora import corpus
from kvant.formats.imatrix import read_imatrix
from kvant.recipes.measure.importance import calibrate
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little", num_hidden_layers=1)


def test_both_layouts_hold_the_same_importance(tiny: Path, tmp_path: Path) -> None:
    done = calibrate(tiny, tmp_path / "i.gguf", windows=3)
    assert (done.text, done.text_sha256) == ("kvant:default:calibration", corpus("default", "calibration").sha256)
    assert (done.entries, done.windows, done.tokens) == (7, 3, 1536)
    calibrate(tiny, tmp_path / "i.dat", windows=3)
    new, old = read_imatrix(tmp_path / "i.gguf"), read_imatrix(tmp_path / "i.dat")
    assert (new.n_chunks, new.chunk_size, new.datasets) == (3, 512, old.datasets)
    for name, entry in new.entries.items():
        assert entry.counts == 1536
        np.testing.assert_allclose(entry.weights(), old.entries[name].weights(), rtol=3e-7)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        calibrate(tiny, tmp_path / "i.dat", windows=3)
    assert calibrate(tiny, tmp_path / "i.dat", windows=3, overwrite=True).windows == 3


def test_the_command_measures_on_what_the_model_writes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kvant.recipes.measure.calibration.WINDOW_TOKENS", 64)
    found = CliRunner().invoke(app, ["calibrate", str(tiny), "--text", "self", "--windows", "2", "--json"])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert (said["path"], said["text"], said["tokens"]) == ("little-imatrix.gguf", "kvant:self:seed-1", 128)
    assert read_imatrix(tmp_path / said["path"]).datasets == ("kvant:self:seed-1",)
    arguments = ["quantize", str(tiny), "-t", "IQ3_XXS", "--imatrix", said["path"], "-o", "small.gguf"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_a_text_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        calibrate(tiny, tmp_path / "i.gguf", text=str(tmp_path / "none.txt"))
    assert not (tmp_path / "i.gguf").exists()
