"""Options that would not be used are refused and not passed over."""

from pathlib import Path

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
        ("optimize m --calibrate none --refine 2", "--refine"),
        ("calibrate m --seed 3", "--seed"),
        ("calibrate m --text mine.txt --seed 3", "--seed"),
        ("advise --use-case mobile", "--use-case"),
        ("advise --device browser", "--device"),
        ("advise --context 512", "--context"),
        ("create m -f nosuch --imatrix i.gguf", "--imatrix"),
        ("pull hf:org/name --context 512", "--context"),
        ("show m --modelfile --json", "--json"),
        ("key list --scope metrics", "--scope"),
        ("key revoke me --expires 3d", "--expires"),
        ("top --once --every 3", "--every"),
        ("top --json --every 3", "--every"),
        ("serve --json --log-format text", "--log-format"),
        ("quantize m.onnx --to mlx -t int8", "--to"),
        ("quantize m.onnx -t int8-dynamic --max-drop 0.1", "--max-drop"),
        ("quantize m.onnx -t int8-dynamic --metric m:f", "--metric"),
        ("quantize m.onnx -t int8-dynamic --calibration-data d --calibration-method entropy", "--calibration-method"),
        ("quantize m --to onnx -t int4 --calibrate bundled --max-size 1MB", "-t"),
        ("quantize m --plan p.json --type a=Q8_0", "--type"),
        ("quantize m --plan p.json --keep a", "--keep"),
        ("quantize m --plan p.json --pure", "--pure"),
        ("quantize m --plan p.json --output-tensor-type Q8_0", "--output-tensor-type"),
        ("quantize m --plan p.json --token-embedding-type Q8_0", "--token-embedding-type"),
    ],
)
def test_an_option_without_a_use_is_refused(words: str, option: str) -> None:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert option in result.stderr
    assert "Leave it out" in result.stderr


def test_a_bundle_is_not_taken_away(tmp_path: Path) -> None:
    from kvant.hub.store import Store
    from kvant.recipes.convert.convert import convert
    from kvant.testing.tiny_models import write_tiny_model

    convert(write_tiny_model("llama", tmp_path / "m"), tmp_path / "m.gguf", to="gguf", type="F16")
    store = Store.open()
    store.import_file(tmp_path / "m.gguf", "m")
    store.export(["m"], tmp_path / "m.tar")
    result = CliRunner().invoke(app, ["import", str(tmp_path / "m.tar"), "--move"])
    assert result.exit_code == 2
    assert "--move" in result.stderr
    assert (tmp_path / "m.tar").exists()
