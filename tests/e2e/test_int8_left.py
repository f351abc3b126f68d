"""int8 of ONNX models that the tools take in part or not at all: refused, reached, or said."""

from pathlib import Path

import numpy as np
import pytest

from kvant.cli.main import app
from kvant.errors import BudgetError, UnsupportedFormatError
from onnx_files import branches, convolution, half_weights, two_layers, write_feeds

pytest.importorskip("onnxruntime")
from typer.testing import CliRunner

ONE = {"int8-dynamic": "auto", "int8": "minmax"}
"""One way to find ranges is enough here, and dynamic quantization finds none."""


def feeds(directory: Path, dtype: type = np.float32, shape: tuple[int, ...] = (2, 64), *, choose: bool = False) -> Path:
    directory.mkdir()
    rng = np.random.default_rng(1)
    for run in range(4):
        chosen = {"c": np.array(run % 2 == 0)} if choose else {}
        np.savez(directory / f"{run}.npz", **{"x": rng.standard_normal(shape).astype(dtype), **chosen})  # type: ignore[arg-type]
    return directory


@pytest.mark.parametrize("kind", ["int8-dynamic", "int8"])
def test_a_model_of_which_nothing_becomes_int8_is_refused(kind: str, tmp_path: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    data = feeds(tmp_path / "in", np.float16) if kind == "int8" else None
    out = tmp_path / "out.onnx"
    with pytest.raises(UnsupportedFormatError, match=r"half.onnx: none of it .*2 MatMul .* have float16.*in float32"):
        quantize_int8(half_weights(tmp_path / "half.onnx"), kind, out, data=data, method=ONE[kind], threads=1)
    assert not out.exists()


def test_the_way_that_takes_a_model_is_named_and_taken(tmp_path: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    model = convolution(tmp_path / "model.onnx")
    data = feeds(tmp_path / "in", shape=(2, 3, 8, 8))
    with pytest.raises(
        UnsupportedFormatError, match=r"1 Conv .* are not among what int8-dynamic takes. Use int8-static"
    ):
        quantize_int8(model, "int8-dynamic", tmp_path / "a.onnx", threads=1)
    # Of both ways, the one that leaves the model as it is loses nothing and must not be taken.
    made = quantize_int8(model, "int8", tmp_path / "b.onnx", data=data, method="minmax", threads=1, max_drop=0.5)
    assert made.kind == "int8-static"
    assert made.n_quantized >= 1


def test_branches_become_int8_or_are_said_to_stay(tmp_path: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    model, data = branches(tmp_path / "model.onnx"), feeds(tmp_path / "in", choose=True)
    dynamic = quantize_int8(model, "int8-dynamic", tmp_path / "a.onnx", threads=1)
    assert (dynamic.n_quantized, dynamic.left_float) == (3, ())
    assert dynamic.after.size_bytes < 0.3 * dynamic.before.size_bytes
    static = ["quantize", str(model), "-t", "int8-static", "--calibration-data", str(data), "--max-drop", "0.5"]
    static += ["--calibration-method", "minmax"]
    shown = CliRunner().invoke(app, [*static, "-o", str(tmp_path / "b.onnx")])
    assert shown.exit_code == 0, shown.output
    assert "2 MatMul" in shown.stdout
    assert "are inside other nodes (If, Loop), where int8-static does not reach" in shown.stdout


def test_the_limit_that_is_advised_holds_the_loss(tmp_path: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    model, data = two_layers(tmp_path / "mine.onnx"), write_feeds(tmp_path / "feeds.npz")
    with pytest.raises(BudgetError, match=r"mine\.onnx: no int8 version loses at most 1e-09") as caught:
        quantize_int8(model, "int8-dynamic", tmp_path / "a.onnx", data=data, threads=1, max_drop=1e-9)
    lost, limit = (
        float(str(caught.value).partition(words)[2].split()[0].rstrip(".")) for words in ("best loses ", "max-drop ")
    )
    assert limit >= lost > 0
