"""Settings timed in the real engines."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.formats.onnx.decoder import SPINNING, read_decoder
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.bench import TIE, bench, default_threads
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama")


@pytest.fixture
def gguf(tiny: Path, tmp_path: Path) -> Path:
    convert(tiny, tmp_path / "a.gguf", to="gguf", type="Q8_0")
    return tmp_path / "a.gguf"


def test_threads_of_a_gguf(gguf: Path) -> None:
    (found,) = bench([gguf], threads=[1, 2], n_prompt=16, n_generate=4, rounds=2)
    assert [(t.threads, t.spinning) for t in found.timings] == [(1, None), (2, None)]
    fastest = max(t.tg_tok_s for t in found.timings)
    (best,) = [t for t in found.timings if t.is_best]
    assert best.tg_tok_s >= TIE * fastest > 0
    assert all(t.pp_tok_s > 0 and t.rss_bytes > 1 << 20 for t in found.timings)


def test_the_best_of_an_onnx_directory_is_kept_in_it(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = export_tiny(tiny, tmp_path / "onnx")
    (found,) = bench([out], threads=[1, 2], n_prompt=16, n_generate=4, rounds=1, save=True)
    assert len(found.timings) == 4
    (best,) = [t for t in found.timings if t.is_best]
    options = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options == {"intra_op_num_threads": best.threads, SPINNING: str(int(bool(best.spinning)))}
    assert read_decoder(out).spinning == best.spinning


def test_the_command(gguf: Path, tmp_path: Path) -> None:
    few = ["--threads", "1", "--prompt", "8", "--tokens", "2", "--rounds", "1"]
    run = CliRunner().invoke(app, ["bench", str(gguf), *few])
    assert run.exit_code == 0, run.output
    assert "gen tok/s" in run.output
    run = CliRunner().invoke(app, ["bench", str(gguf), *few, "--json"])
    assert json.loads(run.stdout)[0]["timings"][0]["tg_tok_s"] > 0
    assert CliRunner().invoke(app, ["bench", str(gguf), "--threads", "one"]).exit_code == 2
    with pytest.raises(UnsupportedFormatError, match="--save"):
        bench([gguf], save=True)
    with pytest.raises(ValueRangeError, match="below 1"):
        bench([gguf], threads=[0])
    convert(gguf, tmp_path / "mlx", to="mlx", type="F16")
    with pytest.raises(UnsupportedFormatError, match="--threads: MLX chooses"):
        bench([tmp_path / "mlx"], threads=[1])


def test_default_thread_counts_end_with_all_cores() -> None:
    counts = default_threads()
    assert counts[0] == 1
    assert list(counts) == sorted(set(counts))
