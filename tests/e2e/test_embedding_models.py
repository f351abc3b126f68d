"""Models that make vectors of texts: measured by them, and refused where text is wanted."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from architectures import write_architecture, write_encoder
from kvant.cli.main import app
from kvant.errors import EngineError, UnsupportedModelError
from kvant.formats.open import open_model
from kvant.recipes.chat import Chat
from kvant.recipes.measure.bench import bench
from kvant.recipes.measure.embeddings import evaluate_embeddings
from kvant.recipes.optimize.pipeline import optimize
from kvant.runtime.process import EngineProcess

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert.gguf")


@pytest.fixture(scope="module")
def engine(encoder: Path) -> Iterator[EngineProcess]:
    with EngineProcess() as process:
        process.open(encoder, n_ctx=64, n_threads=1, embeddings=True)
        yield process


def test_the_vector_of_a_text_is_its_own(engine: EngineProcess) -> None:
    one, same, other = (engine.embed(engine.tokenize(text, add_special=True)) for text in ("ab cd", "ab cd", "dc ba"))
    assert one.shape == (256,)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_variants_are_measured_by_their_vectors(encoder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    runner = CliRunner()
    assert runner.invoke(app, ["quantize", str(encoder), "-t", "Q4_0", "-o", str(small)]).exit_code == 0
    words = np.random.default_rng(0).choice(["ab", "cd", "efg", "hij", "kl"], (24, 60))
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(line[:9]) + ". " + " ".join(line) for line in words))
    options = ["--text", str(tmp_path / "text.txt"), "--threads", "1", "--json"]
    done = runner.invoke(app, ["evaluate", str(encoder), str(small), "--against", str(encoder), *options])
    assert done.exit_code == 0, done.output
    itself, quantized = json.loads(done.stdout)["scores"]
    assert itself["score"]["distance_max"] < 1e-5
    assert itself["score"]["overlap"] > 0.9  # vectors of random weights lie close together
    assert 1e-5 < quantized["score"]["distance_mean"] < 0.5
    assert quantized["score"]["overlap"] < 1


def test_options_about_written_text_are_refused(encoder: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(encoder), "--against", str(encoder), "--chunks", "2"])
    assert done.exit_code != 0
    assert "--chunks" in done.output


def test_what_needs_text_says_what_the_model_does(encoder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="makes vectors of texts"):
        Chat(encoder)
    with pytest.raises(UnsupportedModelError, match="makes vectors of texts"):
        optimize(encoder)
    with pytest.raises(EngineError, match="makes vectors of texts and writes none"):
        bench([encoder])


def test_a_model_of_text_is_sent_to_the_other_measure(tmp_path: Path) -> None:
    path = write_architecture("mixtral", tmp_path / "model.gguf", is_hollow=True)
    with pytest.raises(UnsupportedModelError, match="makes no vectors"):
        evaluate_embeddings([path], against=open_model(path))
