"""Options of `kvant quantize` that mean nothing for what is to be written are refused, not passed over."""

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model -t 4bit --to mlx --imatrix a.gguf --calibrate self", "Give one"),
        ("model.onnx -t int8 --imatrix a.gguf", "--imatrix is for gguf"),
        ("model -t int4 --to onnx --pure", "--pure is for gguf"),
        ("model -t Q4_K_M --calibrate bundled", "kvant optimize"),
        ("model -t Q4_K_M --dtype F16", "--dtype is for mlx"),
        ("model.onnx -t int8 --calibrate bundled", "writes int8"),
        ("model --to mlx", "needs a type"),
    ],
)
def test_refused(line: str, said: str) -> None:
    result = CliRunner().invoke(app, ["quantize", *line.split()])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
