"""`kvant quantize`, command and call: bytes against libgguf, sizes, resuming after a kill, refusals."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import libgguf
import numpy as np
import pytest
from typer.testing import CliRunner

from kvant import kernels
from kvant.cli.main import app
from kvant.dtypes import F32
from kvant.errors import OutputExistsError, PlanError, UnsupportedModelError, ValueRangeError
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.imatrix import write_imatrix
from kvant.formats.open import open_model
from kvant.metadata import u32
from kvant.model import Model
from kvant.progress import Silent
from kvant.quant.importance import Entry, Importance
from kvant.quant.plan import read_plan
from kvant.quant.presets import plan_preset
from kvant.recipes.targets.gguf.kept import encoded
from kvant.recipes.targets.gguf.write import predict_size, quantize
from kvant.tensors import array_tensor, n_rows, row_length
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "tiny", num_hidden_layers=2)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return open_model(directory)


@pytest.fixture(scope="module")
def importance(model: Model) -> Importance:
    rng = np.random.default_rng(5)
    entries = {
        name: Entry(
            sums=(rng.standard_t(3, (1, row_length(tensor))) ** 2 * 20).astype(np.float32),
            counts=np.array([20], np.float32),
        )
        for name, tensor in model.tensors.items()
        if name.startswith("blk") and len(tensor.shape) == 2
    }
    return Importance(entries=entries, datasets=("some.txt",), n_chunks=20, source="some.imatrix.gguf")


def rows(model: Model, name: str) -> np.ndarray:
    tensor = model.tensors[name]
    return tensor.read_bytes(0, n_rows(tensor))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["quantize", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize("preset", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q3_K_S", "Q4_0", "IQ2_XXS", "F16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_equal_libgguf(model: Model, importance: Importance, preset: str, weighted: bool, tmp_path: Path) -> None:
    given = importance if weighted else None
    plan = plan_preset(model, preset, has_importance=weighted)
    if preset == "IQ2_XXS" and not weighted:
        with pytest.raises(PlanError, match="IQ2_XXS without importance loses the model"):
            quantize(model, plan, tmp_path / "out.gguf")
        assert not list(tmp_path.iterdir())
        return
    result = quantize(model, plan, tmp_path / "out.gguf", importance=given, threads=2)
    assert result.size_bytes == predict_size(model, plan, given) == (tmp_path / "out.gguf").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    written = read_gguf(tmp_path / "out.gguf")
    assert {name: t.block_type.name for name, t in written.tensors.items()} == plan.types
    for name, tensor in written.tensors.items():
        x = kernels.decode(rows(model, name), model.tensors[name].block_type, row_length(tensor))
        entry = importance.entries.get(name) if weighted else None
        weights = entry.weights()[0] if entry else None
        kind = libgguf.GGMLQuantizationType[tensor.block_type.name]
        expected = x if tensor.block_type == F32 else np.asarray(libgguf.quantize_rows(x, kind, imatrix=weights))
        np.testing.assert_array_equal(rows(written, name), expected.reshape(n_rows(tensor), -1).view(np.uint8), name)


def test_metadata_is_the_sources_with_upstreams_keys_and_our_provenance(
    model: Model, importance: Importance, tmp_path: Path
) -> None:
    plan = plan_preset(model, "Q4_K_S", has_importance=True)
    quantize(model, plan, tmp_path / "out.gguf", importance=importance)
    written = read_gguf(tmp_path / "out.gguf")
    moved = ("general.quantization_version", "general.file_type")
    added = {key: written.get(key) for key in written.metadata if key not in model.metadata or key in moved}
    assert [key for key in written.metadata if key not in added] == [key for key in model.metadata if key not in moved]
    size = sum(file.stat().st_size for file in model.files)
    assert list(added.items()) == [
        ("general.quantization_version", 2),
        ("general.file_type", 14),
        ("quantize.imatrix.file", "some.imatrix.gguf"),
        ("quantize.imatrix.dataset", "some.txt"),
        ("quantize.imatrix.entries_count", 14),
        ("quantize.imatrix.chunks_count", 20),
        ("kvant.version", added["kvant.version"]),
        ("kvant.preset", "Q4_K_S"),
        ("kvant.plan.sha256", plan.sha256),
        ("kvant.source.name", "tiny"),
        ("kvant.source.size", size),
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from kvant.formats.open import open_model
from kvant.metadata import u32
from kvant.progress import Silent
from kvant.quant.presets import plan_preset
from kvant.recipes.targets.gguf import write as recipe

class Killer(Silent):
    seen = 0
    def advance(self, task, amount):
        self.seen += amount
        if self.seen > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

recipe.SYNC_BYTES = 1
model = open_model(Path(sys.argv[1]))
recipe.quantize(model, plan_preset(model, "Q4_K_M"), Path(sys.argv[2]), progress=Killer(), resume=True)
"""


def test_a_killed_run_resumes_to_the_same_file(directory: Path, model: Model, tmp_path: Path) -> None:
    plan = plan_preset(model, "Q4_K_M")
    quantize(model, plan, tmp_path / "whole.gguf")
    out = tmp_path / "out.gguf"
    for fraction in (0.4, 0.3):
        command: list[str | Path] = [
            sys.executable,
            "-c",
            KILLED,
            directory,
            out,
            str(int(model.tensor_bytes * fraction)),
        ]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert not out.exists()
    result = quantize(model, plan, out, resume=True)
    assert 8 < result.resumed_tensors < len(plan.types)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "whole.gguf"]


def test_a_partial_file_of_other_work_is_not_continued(directory: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command: list[str | Path] = [sys.executable, "-c", KILLED, directory, out, str(model.tensor_bytes // 2)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    result = quantize(model, plan_preset(model, "Q4_K_S"), out, resume=True)
    assert result.resumed_tensors == 0
    quantize(model, plan_preset(model, "Q4_K_S"), tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


class Interrupter(Silent):
    """Presses Ctrl-C after the first tensors."""

    def __init__(self) -> None:
        self.advances, self.said = 0, ""

    def advance(self, task: str, amount: float) -> None:
        super().advance(task, amount)
        self.advances += 1
        if self.advances == 9:
            raise KeyboardInterrupt

    def say(self, message: str) -> None:
        self.said += message


def test_an_interrupted_run_says_how_to_continue_and_does(model: Model, tmp_path: Path) -> None:
    plan, out, interrupter = plan_preset(model, "Q4_K_M"), tmp_path / "out.gguf", Interrupter()
    with pytest.raises(KeyboardInterrupt):
        quantize(model, plan, out, progress=interrupter)
    assert "--resume" in interrupter.said
    assert not out.exists()
    assert quantize(model, plan, out, resume=True).resumed_tensors == 9
    quantize(model, plan, tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_weight_that_is_no_number_is_named_by_its_row(model: Model, tmp_path: Path) -> None:
    broken = np.zeros((9000, 256), np.float32)
    broken[8123, 45] = np.inf
    values = {"up": broken, "gate": np.zeros_like(broken), "down": np.zeros((256, 9000), np.float32)}
    wide = {f"blk.{i}.ffn_{part}.weight": matrix for part, matrix in values.items() for i in range(2)}
    tensors = {**model.tensors, **{name: array_tensor(name, matrix, F32) for name, matrix in wide.items()}}
    metadata = {**model.metadata, "llama.feed_forward_length": u32(9000)}
    other = dataclasses.replace(model, tensors=tensors, metadata=metadata)
    with pytest.raises(
        ValueRangeError, match=r"blk\.0\.ffn_up\.weight: row 8123, column 45: inf is not a finite weight"
    ):
        quantize(other, plan_preset(other, "Q8_0"), tmp_path / "out.gguf")


def test_after_an_error_nothing_is_left(model: Model, tmp_path: Path) -> None:
    broken = np.zeros(model.tensors["output_norm.weight"].shape, np.float32)
    broken[3] = np.nan
    tensors = {**model.tensors, "output_norm.weight": array_tensor("output_norm.weight", broken, F32)}
    with pytest.raises(ValueRangeError, match=r"output_norm.weight: row 0, column 3: nan is not"):
        quantize(dataclasses.replace(model, tensors=tensors), plan_preset(model, "Q8_0"), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_what_the_engine_would_not_load_is_not_written(model: Model, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in model.tensors.items() if name != "blk.1.ffn_norm.weight"}
    write_gguf(tmp_path / "source.gguf", model.metadata, tensors.values())
    with pytest.raises(
        UnsupportedModelError, match=r"out\.gguf: was not written: .*'blk\.1\.ffn_norm\.weight' not found"
    ):
        quantize(tmp_path / "source.gguf", "Q8_0", tmp_path / "out.gguf")
    with pytest.raises(UnsupportedModelError, match=r"source\.gguf lacks what the engine needs"):
        quantize(tmp_path / "source.gguf", "Q8_0", tmp_path / "out.gguf", max_file_bytes=1 << 20)
    with pytest.raises(UnsupportedModelError, match=r"was not written"):
        encoded(open_model(tmp_path / "source.gguf"), plan_preset(open_model(tmp_path / "source.gguf"), "Q8_0"))
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_the_call_takes_paths_and_names_of_presets(directory: Path, model: Model, tmp_path: Path) -> None:
    quantize(str(directory), "q4_k_m", str(tmp_path / "a.gguf"))
    quantize(model, plan_preset(model, "Q4_K_M"), tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_outputs_are_not_overwritten_unasked(model: Model, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        quantize(model, plan_preset(model, "Q8_0"), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == b"mine"
    quantize(model, plan_preset(model, "Q8_0"), tmp_path / "out.gguf", overwrite=True)
    read_gguf(tmp_path / "out.gguf")


def test_quantizing_twice_is_refused_unless_asked_for(model: Model, tmp_path: Path) -> None:
    quantize(model, plan_preset(model, "Q8_0"), tmp_path / "q8.gguf")
    code, output = run(tmp_path / "q8.gguf", "-t", "Q4_K_M", "-o", tmp_path / "q4.gguf")
    assert code == 1
    assert "is Q8_0 already" in output
    code, _ = run(tmp_path / "q8.gguf", "-t", "Q4_K_M", "-o", tmp_path / "q4.gguf", "--allow-requantize")
    assert code == 0
    # The same type is a copy, which loses nothing.
    assert run(tmp_path / "q8.gguf", "-t", "Q8_0", "-o", tmp_path / "copy.gguf")[0] == 0
    copy, first = read_gguf(tmp_path / "copy.gguf"), read_gguf(tmp_path / "q8.gguf")
    assert all(np.array_equal(rows(copy, name), rows(first, name)) for name in first.tensors)


def test_dry_run_says_the_size_to_the_byte_and_writes_nothing(directory: Path, tmp_path: Path) -> None:
    code, output = run(directory, "-t", "q4_k_m", "--dry-run", "--json", "-o", tmp_path / "out.gguf")
    assert code == 0
    assert not list(tmp_path.iterdir())
    predicted = json.loads(output)["size_bytes"]
    code, output = run(directory, "-t", "q4_k_m", "--json", "-o", tmp_path / "out.gguf")
    assert code == 0
    assert json.loads(output)["size_bytes"] == predicted == (tmp_path / "out.gguf").stat().st_size


def test_fallbacks_are_always_said(tmp_path: Path) -> None:
    odd = write_tiny_model("llama", tmp_path / "odd", num_hidden_layers=2, hidden_size=192, num_attention_heads=6,
                           num_key_value_heads=3)  # fmt: skip
    for options in (["--dry-run"], ["-o", tmp_path / "out.gguf"]):
        code, output = run(odd, "-t", "Q4_K_M", *options)
        assert code == 0, output
        assert "13 of 20 tensors have rows that do not divide" in output
        assert "Q4_K -> Q5_0" in output
        assert "Q6_K -> Q8_0" in output
    document = json.loads(run(odd, "-t", "Q4_K_M", "--dry-run", "--json")[1])
    assert len(document["plan"]["fallbacks"]) == 13


def test_plan_files_go_out_and_come_in(directory: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    options = ["--type", r"blk\.0\.attn_v=Q8_0", "--keep", "ffn_up", "--output-tensor-type", "Q5_K"]
    assert run(directory, "-t", "Q4_K_M", *options, "--write-plan", plan, "-o", tmp_path / "a.gguf")[0] == 0
    written = read_plan(plan)
    assert written.types["blk.0.attn_v.weight"] == "Q8_0"
    assert written.types["blk.1.ffn_up.weight"] == "BF16"
    assert written.types["token_embd.weight"] == "Q5_K"
    assert written.predicted_bytes == (tmp_path / "a.gguf").stat().st_size
    assert run(directory, "--plan", plan, "-o", tmp_path / "b.gguf")[0] == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_importance_files_are_used(directory: Path, importance: Importance, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", importance)
    code, output = run(directory, "-t", "IQ2_XS", "--dry-run")
    assert code == 0
    assert "need importance" in output
    assert run(directory, "-t", "IQ2_XS", "--imatrix", tmp_path / "i.gguf", "-o", tmp_path / "out.gguf")[0] == 0
    assert read_gguf(tmp_path / "out.gguf").get("quantize.imatrix.entries_count") == 14


def test_split_output_holds_the_same_tensors(directory: Path, model: Model, tmp_path: Path) -> None:
    assert run(directory, "-t", "Q4_K_M", "--max-file-size", "400kB", "-o", tmp_path / "out.gguf")[0] == 0
    shards = sorted(tmp_path.iterdir())
    assert len(shards) > 2
    assert all(path.stat().st_size <= 400_000 for path in shards)
    quantize(model, plan_preset(model, "Q4_K_M"), tmp_path / "whole.gguf")
    split, whole = read_gguf(shards[0]), read_gguf(tmp_path / "whole.gguf")
    assert all(np.array_equal(rows(split, name), rows(whole, name)) for name in whole.tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a preset"),
        (["-t", "Q4_K_M", "--plan", "x.json"], "Leave -t or --plan out"),
        (["-t", "Q4_K_M", "--resume", "--max-file-size", "1GB"], "Leave --resume or --max-file-size out"),
        (["-t", "Q4_K_M", "--type", "attn_v"], "is not REGEX=TYPE"),
    ],
)
def test_wrong_use(directory: Path, options: list[str], message: str) -> None:
    code, output = run(directory, *options)
    assert code == 2
    assert message in " ".join(output.split())


def test_an_unknown_preset_lists_the_known(directory: Path) -> None:
    code, output = run(directory, "-t", "Q4_K_XXL")
    assert code == 1
    assert "IQ4_XS" in output


MEASURED = """
import sys
from pathlib import Path
from kvant.formats.open import open_model
from kvant.metadata import u32
from kvant.quant.presets import plan_preset
from kvant.recipes.targets.gguf.write import quantize
model = open_model(Path(sys.argv[1]))
quantize(model, plan_preset(model, "Q4_K_M"), Path(sys.argv[2]), threads=2)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_stays_bounded_and_the_size_is_known(reference_model: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", MEASURED, reference_model, tmp_path / "out.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    model = open_model(reference_model)
    largest = max(n_rows(t) * row_length(t) for t in model.tensors.values()) * 4
    assert int(done.stdout) * 1024 < 2 * largest + 100e6
    plan = plan_preset(model, "Q4_K_M")
    assert predict_size(model, plan) == (tmp_path / "out.gguf").stat().st_size
    # What upstream's quantizer (b11434) writes for this model.
    assert open_model(tmp_path / "out.gguf").tensor_bytes == 103_668_480
