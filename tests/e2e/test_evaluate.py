"""Measuring variants of a tiny random model, offline, with the real engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from kvant.cli import evaluate as cli_evaluate
from kvant.cli.main import app
from kvant.errors import EngineError, FormatError, ValueRangeError
from kvant.evaluate import baselogits
from kvant.files import cache_dir
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.open import open_model
from kvant.metadata import string
from kvant.quant.presets import plan_preset
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.evaluate import Comparison, evaluate
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model

runner = CliRunner()
KEYS = (
    "size_bytes", "bpw", "kld_mean", "kld_se", "kld_median", "kld_p95", "kld_p99", "kld_p999", "top1", "rms_dp",
    "ppl", "ppl_ratio", "pp_tok_s", "tg_tok_s", "rss_bytes",
)  # fmt: skip
FAST: Any = {"context": 64, "chunks": 4, "threads": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("evaluate")
    made = {"hf": write_tiny_model("llama", directory / "tiny-llama")}
    for kind in ("F32", "F16", "Q8_0"):
        made[kind] = directory / f"tiny-{kind}.gguf"
        convert(made["hf"], made[kind], to="gguf", type=kind)
    return made


def test_figures_are_ordered_and_floors_are_floors(tiny: dict[str, Path]) -> None:
    fast = FAST | {"chunks": 8}  # two windows of every domain: of one alone an error cannot be told
    result = evaluate([tiny["F16"], tiny["Q8_0"]], against=tiny["hf"], speed=False, **fast)
    f16, q8 = result.scores
    assert 0 <= f16.kld_mean < q8.kld_mean < 0.01
    assert 0 < q8.kld_se < q8.kld_mean
    assert q8.kld_median <= q8.kld_p95 <= q8.kld_p99 <= q8.kld_p999
    assert q8.ppl / q8.ppl_ratio == pytest.approx(result.base_ppl)
    assert set(q8.domains) == {"prose", "code", "dialogue", "other-languages"}
    assert sum(d.n_positions for d in q8.domains.values()) == q8.n_positions == result.n_positions == 8 * 31
    floors = {floor.name: floor for floor in result.floors}
    assert floors["F32"].kld_mean < 1e-9
    assert floors["Q8_0"].kld_mean == pytest.approx(sum(q8.windows[:4]) / 4, rel=1e-6)
    assert (q8.pp_tok_s, q8.rss_bytes, q8.energy_reason) == (None, None, "speed was not measured")
    assert q8.size_bytes == tiny["Q8_0"].stat().st_size
    assert 8 < q8.bpw < 9 < f16.bpw < 17


def test_base_logits_are_computed_once(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate([tiny["Q8_0"]], against=tiny["F32"], speed=False, floors=False, **FAST)

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(baselogits, "_compute", refuse)
    second = evaluate([tiny["Q8_0"]], against=tiny["F32"], speed=False, floors=False, **FAST)
    assert second.scores[0].kld_mean == first.scores[0].kld_mean
    with pytest.raises(AssertionError, match="computed again"):
        evaluate([tiny["Q8_0"]], against=tiny["F32"], speed=False, floors=False, context=32, chunks=4, threads=1)


def test_the_base_is_run_from_f32_whatever_holds_it(tiny: dict[str, Path]) -> None:
    from_hf = evaluate([tiny["F16"]], against=tiny["hf"], speed=False, floors=False, **FAST)
    from_f32 = evaluate([tiny["F16"]], against=tiny["F32"], speed=False, floors=False, **FAST)
    assert from_hf.scores[0].kld_mean == from_f32.scores[0].kld_mean
    assert [path.suffix for path in cache_dir("base").iterdir()] == [".gguf"]


def test_damaged_cache_is_computed_again(tiny: dict[str, Path]) -> None:
    first = evaluate([tiny["F16"]], against=tiny["F32"], speed=False, floors=False, **FAST)
    (file,) = cache_dir("logits").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-700])
    second = evaluate([tiny["F16"]], against=tiny["F32"], speed=False, floors=False, **FAST)
    assert second.scores[0].kld_mean == first.scores[0].kld_mean


def test_json_holds_every_key_and_speed(tiny: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The rain in the hills keeps falling on the old stone bridge. " * 60, encoding="utf-8")
    result = runner.invoke(
        app,
        ["evaluate", str(tiny["Q8_0"]), "--against", str(tiny["F32"]), "--text", str(text), "--context", "64",
         "--chunks", "2", "--threads", "1", "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (score,) = document["scores"]
    assert all(score[key] is not None for key in KEYS)
    assert score["pp_tok_s"] > 0 < score["tg_tok_s"]
    assert score["rss_bytes"] > score["rss_model_bytes"] > 0
    assert (score["energy_j_per_token"] is None) == (score["energy_reason"] is not None)
    assert document["text"] == "own.txt"
    assert "xllamacpp" in document["versions"]["engine"]


def test_table_for_people(tiny: dict[str, Path]) -> None:
    result = runner.invoke(
        app,
        ["evaluate", str(tiny["Q8_0"]), "--against", str(tiny["F32"]), "--context", "64", "--chunks", "4",
         "--threads", "1", "--no-speed"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for part in ("tiny-Q8_0", "KLD by domain", "Floor F32: KLD 0.000000", "Energy per token: not measured", "SHA-256"):
        assert part in result.stdout


def test_a_degraded_variant_says_what_it_lost_beside_the_original(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(tiny["F32"])
    low = tmp_path / "ternary.gguf"
    quantize(model, plan_preset(model, "TQ1_0"), low)
    arguments = [str(tiny["Q8_0"]), str(low), "--against", str(tiny["F32"]), "--context", "64", "--chunks", "4"]
    result = runner.invoke(app, ["evaluate", *arguments, "--threads", "1", "--no-speed", "--no-floors", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["scores"][1]["kld_mean"] >= 0.15
    assert document["samples"]["original"]
    assert [sample["name"] for sample in document["samples"]["variants"]] == ["ternary"]
    lines = cli_evaluate.notes(msgspec.json.decode(result.stdout, type=Comparison))
    assert lines[0].startswith("ternary is ")
    assert "nats per token" in lines[0]
    assert any(line.startswith("  original: ") for line in lines)


def test_calibration_text_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(tiny["Q8_0"])
    tainted = tmp_path / "tainted.gguf"
    metadata = {**model.metadata, "quantize.imatrix.dataset": string("kvant:default:held-out")}
    write_gguf(tainted, metadata, model.tensors.values())
    with pytest.raises(ValueRangeError, match="was calibrated on kvant:default:held-out"):
        evaluate([tainted], against=tiny["F32"], **FAST)


def test_what_cannot_be_compared_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no full-precision base"):
        evaluate([tiny["F16"]], against=tiny["Q8_0"], **FAST)
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    with pytest.raises(ValueRangeError, match="no part holds a window"):
        evaluate([tiny["F16"]], against=tiny["F32"], text=short, **FAST)
    other = write_tiny_model("llama", tmp_path / "other", vocab_size=520)
    convert(other, tmp_path / "other.gguf", to="gguf", type="F16")
    with pytest.raises(ValueRangeError, match=r"vocabulary has \d+ tokens, the base's 512"):
        evaluate([tmp_path / "other.gguf"], against=tiny["F32"], speed=False, floors=False, **FAST)


def test_a_file_the_engine_cannot_load_is_an_error(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(tiny["F16"])
    tensors = [t for t in model.tensors.values() if t.name != "blk.1.ffn_down.weight"]
    write_gguf(tmp_path / "holed.gguf", model.metadata, tensors)
    with pytest.raises(EngineError, match=r"cannot load it \(.*blk.1.ffn_down.weight"):
        evaluate([tmp_path / "holed.gguf"], against=tiny["F32"], speed=False, floors=False, **FAST)


def test_command_line_reports_errors_in_one_line(tiny: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvant.cli.main", "evaluate", str(tiny["F16"]), "--against", "/nowhere/model"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kvant: /nowhere/model:")
    assert done.stderr.count("\n") == 1
