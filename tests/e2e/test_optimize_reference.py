"""The first command on the page about optimizing, on the reference model: it runs as written, and its pick is right."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.recipes.report.report import Report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "optimize.md"


@pytest.mark.model
def test_the_reference_model_in_100_mb(reference_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = re.search(
        r"^\$ kvant (optimize .*--candidates Q4_1,IQ4_NL.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert written
    words = shlex.split(written[1].replace("Q4_1", "Q4_K_M,Q4_1"))  # one more, which is not encoded
    assert words[2:4] == ["--max-size", "100MB"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m").symlink_to(reference_model)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    report = msgspec.json.decode((tmp_path / "out" / "report.json").read_bytes(), type=Report)
    assert [s.preset for s in report.skipped] == ["Q4_K_M"]
    assert (tmp_path / "out" / report.file).stat().st_size <= 100_000_000
    # Without importance Q4_1 has no search at all: a larger file and farther from the original than IQ4_NL.
    assert report.pick == "IQ4_NL"
    assert 0.1 < next(v for v in report.variants if v.is_pick).score.loss < 0.3
