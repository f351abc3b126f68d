"""A lock makes the same bytes on what stands for other machines: threads, instruction sets, settings of libraries."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import FormatError, LockError
from kvant.files import sha256_file
from kvant.formats.open import open_model
from kvant.kernels import isa
from kvant.quant.presets import plan_preset
from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import calibrate
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.schema import read_recipe
from kvant.recipes.rebuild.lock import read_lock
from kvant.recipes.rebuild.rebuild import rebuild
from kvant.recipes.targets.gguf.write import predict_size
from kvant.testing.tiny_models import write_tiny_model

MACHINES: dict[str, tuple[int, dict[str, str]]] = {
    "one thread": (1, {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"}),  # the file was made with two
    "AVX2": (2, {
        isa.ENVIRONMENT: "avx2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OMP_NUM_THREADS": "1", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX",
    }),
    "the least": (1, {isa.ENVIRONMENT: "baseline", "ATEN_CPU_CAPABILITY": "default"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(
        "qwen2", tmp_path_factory.mktemp("tiny") / "little-qwen", num_hidden_layers=2, intermediate_size=256
    )


def test_the_same_bytes_elsewhere_and_the_recipe_runs_again(tiny: Path, tmp_path: Path) -> None:
    model = open_model(tiny)
    limit = predict_size(model, plan_preset(model, "Q5_K_M"))
    asked = Request(
        source=tiny, out=tmp_path / "out", presets=("Q8_0",), chunks=1, calibrate="bundled", calibrate_windows=2,
        refinements=0, budget=Budget(max_size_bytes=limit), threads=2,
    )  # fmt: skip
    report = optimize(asked)
    lock_path = (tmp_path / "out" / report.file).with_suffix(".lock.json")
    assert read_lock(lock_path).encoder is not None
    assert report.commands[1] == f"kvant rebuild {lock_path} --source {tiny}"
    usable = {name: m for name, m in MACHINES.items() if m[1].get(isa.ENVIRONMENT, "") in ("", *isa.levels())}
    children = {}
    for number, (name, (threads, settings)) in enumerate(usable.items()):
        environment = {**os.environ, **settings, "KVANT_HOME": str(tmp_path / f"home-{number}")}
        command = [
            sys.executable, "-m", "kvant.cli.main", "rebuild", str(lock_path), "--source", str(tiny),
            "--threads", str(threads), "-o", str(tmp_path / f"{number}.gguf"), "--json",
        ]  # fmt: skip
        children[name] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for number, (name, child) in enumerate(children.items()):
        printed, errors = child.communicate(timeout=300)
        assert child.returncode == 0, (name, errors.decode())
        assert msgspec.json.decode(printed)["sha256"] == report.sha256, name
        assert sha256_file(tmp_path / f"{number}.gguf") == report.sha256, name

    recipe = tmp_path / "out" / "recipe.yaml"
    assert read_recipe(recipe).budget.max_size_bytes == limit
    arguments = ["optimize", "--recipe", str(recipe), "-o", str(tmp_path / "second"), "--threads", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert msgspec.json.decode(result.stdout)["sha256"] == report.sha256


def test_options_beside_a_recipe_are_refused_and_a_model_is_needed(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("recipe: 1\n")
    for arguments, words in (
        (["--recipe", str(recipe), "--max-size", "1MB"], "--max-size is the recipe's to say"),
        (["--recipe", str(recipe), "--all"], "--all is the recipe's to say"),
        ([], "give a model, or a recipe"),
    ):
        result = CliRunner().invoke(app, ["optimize", *arguments])
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.replace("│", " ").split())
    result = CliRunner().invoke(app, ["optimize", "--recipe", str(recipe)])
    assert (result.exit_code, "names no source" in result.stderr) == (1, True)


def test_a_text_that_the_model_wrote_is_kept_as_tokens_beside_the_lock(tiny: Path, tmp_path: Path) -> None:
    asked = Request(
        source=tiny, out=tmp_path / "out", presets=("Q8_0",), chunks=1, calibrate="self", calibrate_windows=2,
        refinements=0, measure_all=True, threads=1, budget=Budget(max_kld=9.0),
    )  # fmt: skip
    report = optimize(asked)
    recipe = ["--recipe", str(tmp_path / "out" / "recipe.yaml"), "-o", str(tmp_path / "second"), "--threads", "1"]
    repeated = CliRunner().invoke(app, ["optimize", *recipe, "--json"])
    assert repeated.exit_code == 0, repeated.stderr
    assert msgspec.json.decode(repeated.stdout)["sha256"] == report.sha256
    made = tmp_path / "out" / report.file
    lock_path = made.with_suffix(".lock.json")
    lock, tokens = read_lock(lock_path), made.with_suffix(".tokens.npz")
    assert lock.calibration is not None
    assert lock.calibration.text == tokens.name
    again = rebuild(lock_path, tiny, out=tmp_path / "again.gguf", threads=1)
    assert again.sha256 == sha256_file(made)
    found = calibrate(open_model(tiny), str(tokens))
    assert found.sha256 == lock.calibration.statistics_sha256
    with np.load(tokens) as kept:
        other = {**kept, "tokens": kept["tokens"][::-1]}
    np.savez(tmp_path / "other.npz", **other)
    with pytest.raises(LockError, match="is not that of the lock's calibration text"):
        rebuild(lock_path, tiny, out=tmp_path / "other.gguf", text=tmp_path / "other.npz")
    with pytest.raises(LockError, match=r"i\.dat: the lock's file was made without an importance file"):
        rebuild(lock_path, tiny, out=tmp_path / "other.gguf", imatrix=tmp_path / "i.dat")
    for name, damaged in {
        "large": {**other, "tokens": kept_plus(other["tokens"])}, "short": {**other, "tokens": other["tokens"][:1]},
    }.items():  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **damaged)
        with pytest.raises(FormatError, match=r"the model they are of|with a domain each"):
            calibrate(open_model(tiny), str(tmp_path / f"{name}.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(FormatError, match="no token file"):
        calibrate(open_model(tiny), str(tmp_path / "text.npz"))


def kept_plus(tokens: np.ndarray) -> np.ndarray:
    """Tokens of a larger vocabulary."""
    return np.asarray(tokens + np.int32(1_000_000))
