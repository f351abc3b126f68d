"""A distribution that kvant knows nothing of brings an engine for files of its own format."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.recipes.convert.convert import convert
from kvant.runtime.artifacts import ENGINES, engine_of
from kvant.testing.tiny_models import write_tiny_model

PLUGIN = '''
"""Files that begin with FOURTH and hold a GGUF behind it, run by unpacking them."""

import tempfile
from pathlib import Path

from kvant.formats.open import open_model
from kvant.runtime.engines.base import Artifact, EngineSpec, SpeedRuns
from kvant.runtime.process import EngineProcess

MAGIC = b"FOURTH"


def finds(path):
    return path.is_file() and path.read_bytes().startswith(MAGIC)


def unpacked(path):
    out = Path(tempfile.gettempdir()) / f"{path.stem}-{path.stat().st_ino}.gguf"
    out.write_bytes(path.read_bytes()[len(MAGIC):])
    return out


class FourthProcess(EngineProcess):
    def open(self, path, **settings):
        return super().open(unpacked(path), **settings)


def open_fourth(path):
    inner = open_model(unpacked(path))
    return Artifact(path=path, entry=path, files=(path,), metadata=inner.metadata, engine=ENGINE)


ENGINE = EngineSpec(
    name="fourth", format="Fourth", title="the fourth engine", finds=finds, open=open_fourth, process=FourthProcess,
    speed=SpeedRuns(n_prompt=8, n_generate=2, repeats=1),
)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the distribution, as files on `sys.path`."""
    site = tmp_path / "site"
    info = site / "kvant_fourth-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "kvant_fourth_engine.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvant-fourth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kvant.engines]\nfourth = kvant_fourth_engine:ENGINE\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ENGINES.look_again()
    yield
    ENGINES.look_again()


@pytest.mark.usefixtures("plugin")
def test_evaluate_and_bench_run_its_files(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "hf")
    convert(source, tmp_path / "a.gguf", to="gguf", type="Q8_0")
    fourth = tmp_path / "small.fourth"
    fourth.write_bytes(b"FOURTH" + (tmp_path / "a.gguf").read_bytes())
    assert engine_of(fourth).title == "the fourth engine"

    few = ["--chunks", "1", "--threads", "1", "--no-floors", "--json"]
    run = CliRunner().invoke(app, ["evaluate", str(fourth), str(tmp_path / "a.gguf"), "--against", str(source), *few])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    ours, theirs = found["scores"]
    assert ours["kld_mean"] == theirs["kld_mean"]
    assert ours["size_bytes"] == theirs["size_bytes"] + len("FOURTH")
    assert ours["tg_tok_s"] > 0
    assert "the fourth engine reads tokens" in found["tokenizers"][0]["not_compared"]
    assert not found["tokenizers"][1]["not_compared"]

    few = ["--threads", "1,2", "--prompt", "8", "--tokens", "2", "--rounds", "1", "--json"]
    run = CliRunner().invoke(app, ["bench", str(fourth), *few])
    assert run.exit_code == 0, run.output
    (timed,) = json.loads(run.stdout)
    assert timed["format"] == "fourth"
    assert [t["threads"] for t in timed["timings"]] == [1, 2]


def test_without_the_distribution_its_files_are_of_no_format(tmp_path: Path) -> None:
    (tmp_path / "small.fourth").write_bytes(b"FOURTH" + bytes(100))
    run = CliRunner().invoke(app, ["bench", str(tmp_path / "small.fourth")])
    assert run.exit_code == 1
    assert "no format read here" in run.output
