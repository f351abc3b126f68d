"""Options that would not be used are refused and not passed over."""

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("convert m --to onnx -t F32", "-t"),
        ("convert m --to onnx --max-file-size 1GB", "--max-file-size"),
        ("convert m --to onnx --threads 2", "--threads"),
        ("evaluate m.gguf --against m --text a.txt --corpus default", "--corpus"),
        ("optimize m --text a.txt --corpus default", "--corpus"),
        ("optimize m --refine 2", "--refine"),
    ],
)
def test_an_option_without_a_use_is_refused(words: str, option: str) -> None:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert option in result.stderr
    assert "Leave it out" in result.stderr
