"""int8 versions of ONNX models: what destroys one is found and avoided, and every number is of the file written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kvant.cli.main import app
from kvant.errors import BudgetError, FormatError, OutputExistsError, ValueRangeError
from onnx_files import two_layers, write_feeds

pytest.importorskip("onnxruntime")
from typer.testing import CliRunner


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_feeds(tmp_path / "feeds.npz")


def test_static_finds_that_one_scale_per_tensor_destroys_the_model(tmp_path: Path, data: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    model = two_layers(tmp_path / "model.onnx", outlier=1000.0)
    result = quantize_int8(model, "int8-static", tmp_path / "out.onnx", data=data, threads=1, max_drop=0.005)
    first = result.trials[0]
    assert not first.settings.per_channel
    assert first.drop > 0.05
    assert result.settings.per_channel
    assert result.score is not None
    assert result.score.drop <= 0.005
    assert result.after.size_bytes == (tmp_path / "out.onnx").stat().st_size
    assert (result.n_calibration, result.n_held_out) == (12, 4)

    import onnx
    import onnxruntime

    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    feeds = np.load(data)["x"][3]
    (old,), (new,) = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"x": feeds})
        for p in (model, tmp_path / "out.onnx")
    )
    assert 1 - np.sum(old * new) / np.sqrt(np.sum(old**2) * np.sum(new**2)) < 0.005


def test_nodes_stay_float_until_the_limit_is_kept(tmp_path: Path, data: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    model, out = two_layers(tmp_path / "model.onnx", outlier=1000.0), tmp_path / "out.onnx"
    result = quantize_int8(model, "int8-dynamic", out, data=data, threads=1, max_drop=0.002)
    assert [t.drop > 0.002 for t in result.trials] == [True, True, False]
    assert len(result.noise) == 2
    assert result.kept_float == (result.noise[0].node,)
    assert result.n_quantized == 1
    with pytest.raises(BudgetError, match="--max-drop"):
        quantize_int8(model, "int8-dynamic", tmp_path / "none.onnx", data=data, threads=1, max_drop=1e-9)
    assert not (tmp_path / "none.onnx").exists()


def test_command_prints_a_table_and_json(tmp_path: Path, data: Path) -> None:
    model = two_layers(tmp_path / "model.onnx", external=True)
    arguments = ["quantize", str(model), "-t", "int8-dynamic", "--calibration-data", str(data), "--threads", "1"]
    shown = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "a.onnx")])
    assert shown.exit_code == 0, shown.output
    assert "loss on held-out runs" in shown.output
    found = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "b.onnx"), "--json"])
    document = json.loads(found.stdout)
    assert document["after"]["size_bytes"] == (tmp_path / "b.onnx").stat().st_size
    assert document["score"]["drop"] < 0.01


def test_a_metric_of_the_users(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    (tmp_path / "scores_of_mine.py").write_text(
        "import numpy as np\n"
        "def spread(run):\n"
        "    return -float(np.abs(run({'x': np.ones((2, 32), np.float32)})['y']).mean())\n"
    )
    monkeypatch.chdir(tmp_path)
    model = two_layers(tmp_path / "model.onnx")
    result = quantize_int8(
        model, "int8-dynamic", tmp_path / "out.onnx", data=data, threads=1, metric="scores_of_mine:spread", max_drop=9
    )
    assert result.before.metric is not None
    assert result.after.metric is not None
    assert result.score is not None
    assert result.score.drop == pytest.approx(result.before.metric - result.after.metric)


def test_wrong_use_is_refused(tmp_path: Path, data: Path) -> None:
    from kvant.recipes.int8.quantize import quantize_int8

    model, out = two_layers(tmp_path / "model.onnx"), tmp_path / "out.onnx"
    with pytest.raises(ValueRangeError, match="calibration-data"):
        quantize_int8(model, "int8-static", out)
    with pytest.raises(ValueRangeError, match="int8-dynamic"):
        quantize_int8(model, "int7", out, data=data)
    with pytest.raises(ValueRangeError, match="metric: m:f is measured on inputs"):
        quantize_int8(model, "int8-dynamic", out, metric="m:f")
    with pytest.raises(ValueRangeError, match="int8-dynamic has none"):
        quantize_int8(model, "int8-dynamic", out, data=data, method="entropy")
    np.savez(tmp_path / "wrong.npz", z=np.zeros((2, 4, 32), np.float32))
    with pytest.raises(ValueRangeError, match="'x'"):
        quantize_int8(model, "int8-static", out, data=tmp_path / "wrong.npz")
    np.savez(tmp_path / "double.npz", x=np.zeros((2, 4, 32)))
    with pytest.raises(ValueRangeError, match="float32"):
        quantize_int8(model, "int8-static", out, data=tmp_path / "double.npz")
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        quantize_int8(model, "int8-dynamic", out)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.inf, "'first' holds NaN or infinity"),
        (np.nan, "'first' holds NaN or infinity"),
        (-1e38, "'first' holds a weight of 1e+38"),
    ],
)
def test_a_weight_that_no_scale_holds_is_named(tmp_path: Path, weight: float, words: str) -> None:
    import onnx
    from onnx import numpy_helper

    from kvant.recipes.int8.quantize import quantize_int8

    path = two_layers(tmp_path / "model.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = weight
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    with pytest.raises(FormatError, match=re.escape(words)):
        quantize_int8(path, "int8-dynamic", tmp_path / "out.onnx", threads=1)
    assert not (tmp_path / "out.onnx").exists()
