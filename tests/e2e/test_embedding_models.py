"""Models that make vectors of texts: measured by them, and refused where text is wanted."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from architectures import write_architecture, write_encoder
from kvant.cli.main import app
from kvant.errors import EngineError, KvantError, UnsupportedFormatError, UnsupportedModelError
from kvant.evaluate.loss import DISTANCE
from kvant.formats.open import open_model
from kvant.recipes.advise import advise
from kvant.recipes.chat import Chat
from kvant.recipes.goal import Budget, Goal
from kvant.recipes.measure.bench import bench
from kvant.recipes.measure.embeddings import evaluate_embeddings
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.yardstick import check_formats
from kvant.recipes.report.report import Report
from kvant.recipes.targets.registry import find_target
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


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paragraphs enough to search in."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["ab", "cd", "efg", "hij", "kl"], (24, 60))
    path.write_text("\n\n".join(" ".join(line[:9]) + ". " + " ".join(line) for line in words))
    return path


def test_variants_are_measured_by_their_vectors(encoder: Path, text: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    runner = CliRunner()
    assert runner.invoke(app, ["quantize", str(encoder), "-t", "Q4_0", "-o", str(small)]).exit_code == 0
    options = ["--text", str(text), "--threads", "1", "--json"]
    done = runner.invoke(app, ["evaluate", str(encoder), str(small), "--against", str(encoder), *options])
    assert done.exit_code == 0, done.output
    itself, quantized = json.loads(done.stdout)["scores"]
    assert itself["score"]["distance_max"] < 1e-5
    assert itself["score"]["overlap"] > 0.9  # vectors of random weights lie close together
    assert 1e-5 < quantized["score"]["distance_mean"] < 0.5
    assert quantized["score"]["overlap"] < 1


def test_the_best_variant_is_searched_by_its_vectors(encoder: Path, text: Path, tmp_path: Path) -> None:
    few = ["--candidates", "Q8_0,Q4_0", "--all", "--threads", "1", "--text", str(text)]
    limits = ["--max-distance", "0.02", "--max-ram", "1GB", "--min-speed", "1"]
    words = ["optimize", str(encoder), *few, *limits, "-o", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Report)
    assert report.measure == "distance"
    assert report.goal == Goal(kind="size", max_distance=0.02, is_strict=True)
    losses = {v.preset: v.score.loss for v in report.variants}
    assert 0 < losses["Q8_0"] < losses["Q4_0"] < 0.5
    assert report.pick == min((name for name, loss in losses.items() if loss <= 0.02), key=lambda name: name == "Q8_0")
    assert f"with a mean distance below 0.02: {losses[report.pick]:.5f}" in report.reason
    assert all((v.score.speed_tok_s or 0) > 1 and v.memory_bytes > v.size_bytes for v in report.variants)
    assert report.context == 512  # as long as it was trained for
    assert report.commands[1:] == (
        f"kvant quantize {encoder} -t {report.pick} -o {report.file}",
        f"kvant evaluate {report.file} --against {encoder} --text {text}",
    )

    passport = json.loads(next(tmp_path.glob("*.passport.json")).read_bytes())
    assert passport["score"]["measure"] == "distance"
    assert passport["score"]["distance_mean"] == losses[report.pick]
    said = (tmp_path / "report.html").read_text() + done.output
    assert "mean distance (log)" in said
    assert "top-10 overlap %" in said
    assert "KLD" not in said.replace("--max-kld", "")


def test_what_is_of_text_alone_is_refused_with_what_to_do(encoder: Path) -> None:
    for asked, said in (
        ({"budget": Budget(max_kld=0.1)}, r"^--max-kld: .*--max-distance 0\.01"),
        ({"calibrate": "self"}, r"^--calibrate: measures what a model writes, .*Leave it out"),
        ({"chunks": 3}, r"^--chunks: counts windows of text .*Leave it out"),
        ({"budget": Budget(min_speed_tok_s=5, device="phone-6gb")}, r"^--min-speed: .*Leave --min-speed or --device"),
    ):
        with pytest.raises(KvantError, match=said):
            optimize(msgspec.structs.replace(Request(source=encoder), **asked))
    with pytest.raises(UnsupportedFormatError, match=r"^formats: mlx: .* Leave it out of --formats"):
        check_formats([find_target("gguf"), find_target("mlx")], DISTANCE)


def test_advice_expects_distances(encoder: Path) -> None:
    advice = advise(encoder)
    assert advice.context == 512
    assert all(row.expected_kld is None and row.speed_tok_s is None for row in advice.rows)
    taken = next(row for row in advice.rows if row.preset == advice.pick)
    assert taken.expected_distance is not None
    assert taken.expected_distance <= 0.003


def test_options_about_written_text_are_refused(encoder: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(encoder), "--against", str(encoder), "--chunks", "2"])
    assert done.exit_code != 0
    assert "--chunks" in done.output


def test_what_needs_text_says_what_the_model_does(encoder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="makes vectors of texts"):
        Chat(encoder)
    with pytest.raises(EngineError, match="makes vectors of texts and writes none"):
        bench([encoder])


def test_a_model_of_text_is_sent_to_the_other_measure(tmp_path: Path) -> None:
    path = write_architecture("mixtral", tmp_path / "model.gguf", is_hollow=True)
    with pytest.raises(UnsupportedModelError, match="makes no vectors"):
        evaluate_embeddings([path], against=open_model(path))
