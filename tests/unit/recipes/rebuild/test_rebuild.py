import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import LockError, OutputExistsError
from kvant.files import cache_dir, sha256_file
from kvant.formats.imatrix import read_imatrix, write_imatrix
from kvant.formats.open import open_model
from kvant.quant.importance import Entry, Importance
from kvant.quant.plan import Plan
from kvant.quant.presets import plan_preset
from kvant.recipes.measure.calibration import Calibration, calibrate
from kvant.recipes.optimize.delivery import keep_statistics
from kvant.recipes.rebuild.lock import Lock, LockedOutput, make_lock, write_lock
from kvant.recipes.rebuild.rebuild import rebuild
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy

TEXT = "A line of a book that is long enough to be cut into windows, whatever its number, {}.\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests here: one statistics pass, not nine."""
    return tmp_path_factory.mktemp("shared-home")


@pytest.fixture(autouse=True)
def shared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(home))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(TEXT.format(i) for i in range(150)))
    return path


@pytest.fixture(scope="module")
def moved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model where another machine keeps it."""
    return Path(shutil.copytree(tiny, tmp_path_factory.mktemp("elsewhere") / "renamed-7B-v2"))


def made(
    tiny: Path, out: Path, plan: Plan, calibration: Calibration | None = None, importance: Importance | None = None,
    *, is_fitted: bool = False,
) -> Lock:  # fmt: skip
    """Encode as `optimize` does, and return the lock."""
    model = open_model(tiny)
    curvatures = calibration.curvatures if calibration and is_fitted else None
    quantize(model, plan, out, importance=None if is_fitted else importance, curvatures=curvatures)
    output = LockedOutput(file=out.name, size_bytes=out.stat().st_size, sha256=sha256_file(out))
    return make_lock(model, plan, calibration, importance, output, is_fitted=is_fitted)


def fitted(tiny: Path, out: Path, book: Path) -> Lock:
    model = open_model(tiny)
    found = calibrate(model, str(book), windows=2)
    kinds = {name: "Q4_K" if name in found.curvatures.names else "F32" for name in model.tensors}
    return made(tiny, out, Plan(preset="kvant-4.50", file_type=15, types=kinds), found, is_fitted=True)


def test_a_preset_alone(tiny: Path, moved: Path, tmp_path: Path) -> None:
    lock = made(tiny, tmp_path / "first.gguf", plan_preset(open_model(tiny), "Q4_K_M"))
    assert (lock.calibration, lock.importance, lock.encoder) == (None, None, None)
    result = rebuild(lock, moved, out=tmp_path / "again.gguf")
    assert sha256_file(tmp_path / "again.gguf") == lock.output.sha256 == result.sha256
    assert {path.name for path in tmp_path.iterdir()} == {"first.gguf", "again.gguf"}


def test_a_preset_with_an_importance_file(tiny: Path, moved: Path, tmp_path: Path) -> None:
    model, rng = open_model(tiny), np.random.default_rng(0)
    entries = {
        name: Entry(sums=rng.random((1, tensor.shape[-1]), np.float32), counts=np.ones(1, np.float32))
        for name, tensor in model.tensors.items()
        if len(tensor.shape) > 1
    }
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "some.imatrix.gguf"
    write_imatrix(path, Importance(entries=entries, datasets=("book",), n_chunks=2, chunk_size=512))
    plan = plan_preset(model, "IQ4_XS", has_importance=True)
    lock = made(tiny, tmp_path / "first.gguf", plan, importance=read_imatrix(path))
    assert lock.importance is not None
    assert lock.importance.file == "some.imatrix.gguf"
    renamed = tmp_path / "renamed.gguf"
    shutil.copy(path, renamed)
    rebuild(lock, moved, out=tmp_path / "again.gguf", imatrix=renamed)
    assert sha256_file(tmp_path / "again.gguf") == lock.output.sha256
    with pytest.raises(LockError, match=r"encoded with some\.imatrix\.gguf\. Pass it with --imatrix"):
        rebuild(lock, moved, out=tmp_path / "x.gguf")
    write_imatrix(renamed, Importance(entries=entries, datasets=("other",), n_chunks=2), overwrite=True)
    with pytest.raises(LockError, match=r"is not the importance of the lock, some\.imatrix\.gguf"):
        rebuild(lock, moved, out=tmp_path / "x.gguf", imatrix=renamed)


def test_a_preset_with_the_importance_of_a_calibration(tiny: Path, moved: Path, book: Path, tmp_path: Path) -> None:
    model = open_model(tiny)
    found = calibrate(model, str(book), windows=2)
    plan = plan_preset(model, "Q4_K_M", has_importance=True)
    lock = made(tiny, tmp_path / "first.gguf", plan, found, found.importance)
    assert (lock.encoder, lock.importance) == (None, None)
    text = tmp_path / "renamed.txt"
    shutil.copy(book, text)
    rebuild(lock, moved, out=tmp_path / "again.gguf", text=text)
    assert sha256_file(tmp_path / "again.gguf") == lock.output.sha256
    assert open_model(tmp_path / "again.gguf").get("quantize.imatrix.dataset") == "book.txt"


@pytest.mark.parametrize("name", ["bundled", "self"])
def test_a_text_that_is_called_as_a_word(
    name: str, tiny: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(book, name)
    found = calibrate(open_model(tiny), f"./{name}", windows=2)
    plan = plan_preset(open_model(tiny), "Q4_K_M", has_importance=True)
    lock = made(tiny, tmp_path / "first.gguf", plan, found, found.importance)
    assert rebuild(lock, tiny, out=Path("again.gguf"), text=Path(name)).sha256 == lock.output.sha256


def test_a_fitted_mix_by_the_command(tiny: Path, moved: Path, book: Path, tmp_path: Path) -> None:
    lock = fitted(tiny, tmp_path / "first.gguf", book)
    write_lock(tmp_path / "first.lock.json", lock)
    arguments = ["rebuild", str(tmp_path / "first.lock.json"), "--source", str(moved), "--text", str(book)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "again.gguf")])
    assert result.exit_code == 0, result.stderr
    assert f"SHA-256 {lock.output.sha256} as in the lock" in result.stdout.replace("\n", " ")
    assert sha256_file(tmp_path / "again.gguf") == lock.output.sha256
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "again.gguf")])
    assert (result.exit_code, "exists already" in result.stderr) == (1, True)
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "again.gguf"), "--overwrite", "--json"])
    assert msgspec.json.decode(result.stdout)["sha256"] == lock.output.sha256


def test_what_differs_is_named_and_nothing_is_written(tiny: Path, book: Path, tmp_path: Path) -> None:
    lock = fitted(tiny, tmp_path / "first.gguf", book)
    out = tmp_path / "out" / "again.gguf"
    out.parent.mkdir()
    measured, zeros = lock.calibration, "0" * 64
    assert measured is not None
    assert lock.encoder is not None
    change = msgspec.structs.replace
    other = write_tiny_model("llama", tmp_path / "other", num_hidden_layers=1, seed=1)
    page = tmp_path / "page.txt"
    page.write_text("".join(TEXT.format(-i) for i in range(150)))
    for wrong, source, text, words in (
        (change(lock, kvant="0.0.1"), tiny, book, r"was made by 0\.0\.1.*Install kvant==0\.0\.1"),
        (change(lock, encoder=change(lock.encoder, damping=0.5)), tiny, book, "settings.*'damping': 0.5.*are not"),
        (change(lock, calibration=None), tiny, None, "names no calibration"),
        (change(lock, calibration=None), tiny, book, r"made without calibration\. Leave --text out"),
        (lock, other, book, r"little-llama: file model\.safetensors differs"),
        (lock, tiny, None, r"calibrated on book\.txt\. Pass it with --text FILE"),
        (lock, tiny, page, r"page\.txt: SHA-256 .* is not that of the lock's calibration text"),
        (change(lock, calibration=change(measured, windows=1)), tiny, book, "statistics: their digest"),
        (change(lock, versions={"numpy": "1.0"}, calibration=change(measured, statistics_sha256=zeros)), tiny, book,
         r"machine's instructions.*--keep-statistics\. Here is numpy .* in place of 1\.0"),
        (change(lock, calibration=change(measured, statistics_sha256=zeros, way="gradients")), tiny, book,
         r"calibration differs\. Report this"),
        (change(lock, output=change(lock.output, sha256=zeros)), tiny, book, "encoding differs"),
    ):  # fmt: skip
        with pytest.raises(LockError, match=words):
            rebuild(wrong, source, out=out, text=text)
        assert list(out.parent.iterdir()) == []
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        rebuild(lock, tiny, out=out, text=book)
    assert out.read_bytes() == b"mine"


def test_a_missing_and_an_added_file_are_named(tiny: Path, tmp_path: Path) -> None:
    lock = made(tiny, tmp_path / "first.gguf", plan_preset(open_model(tiny), "Q8_0"))
    less = Path(shutil.copytree(tiny, tmp_path / "less"))
    (less / "generation_config.json").unlink()
    with pytest.raises(LockError, match=r"generation_config\.json is missing"):
        rebuild(lock, less, out=tmp_path / "x.gguf")
    more = Path(shutil.copytree(tiny, tmp_path / "more"))
    (more / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(LockError, match=r"its card \(README\.md\) or chat templates differ"):
        rebuild(lock, more, out=tmp_path / "x.gguf")


def test_a_gguf_may_have_another_name(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "little.gguf"
    model = open_model(tiny)
    quantize(model, plan_preset(model, "F16"), source)
    lock = made(source, tmp_path / "first.gguf", plan_preset(open_model(source), "Q8_0"))
    assert (lock.source.name, list(lock.source.files)) == ("little.gguf", ["1"])
    source.rename(tmp_path / "other.gguf")
    rebuild(lock, tmp_path / "other.gguf", out=tmp_path / "again.gguf")
    assert open_model(tmp_path / "again.gguf").get("kvant.source.name") == "little.gguf"


def test_a_plan_holds_no_more_than_decides_bytes(tiny: Path, tmp_path: Path) -> None:
    plan = plan_preset(open_model(tiny), "Q4_K_M")
    lock = made(tiny, tmp_path / "first.gguf", plan)
    assert lock.plan.plan().sha256 == plan.sha256
    importance = Importance(entries={}, source="a.gguf")
    assert replace(importance, source="b.gguf").sha256 != importance.sha256


def test_a_lock_whose_size_is_not_its_files_is_refused(tiny: Path, moved: Path, tmp_path: Path) -> None:
    lock = made(tiny, tmp_path / "first.gguf", plan_preset(open_model(tiny), "Q8_0"))
    odd = msgspec.structs.replace(lock, output=msgspec.structs.replace(lock.output, size_bytes=5))
    with pytest.raises(LockError, match="sizes or hashes of files are not those of its own SHA-256"):
        rebuild(odd, moved, out=tmp_path / "again.gguf")
    assert not (tmp_path / "again.gguf").exists()


def test_statistics_that_were_kept_are_taken_and_checked(tiny: Path, book: Path, tmp_path: Path) -> None:
    lock = fitted(tiny, tmp_path / "first.gguf", book)
    write_lock(tmp_path / "first.lock.json", lock)
    kept = tmp_path / "first.statistics"
    keep_statistics(calibrate(open_model(tiny), str(book), windows=2).directory, kept)
    for directory in cache_dir("statistics").iterdir():
        shutil.rmtree(directory)
    rebuild(tmp_path / "first.lock.json", tiny, out=tmp_path / "again.gguf", text=book)
    assert not list(cache_dir("statistics").iterdir())
    changed = next(kept.glob("*.hessian.npy"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    with pytest.raises(LockError, match=r"first\.statistics: are not the statistics of the lock"):
        rebuild(tmp_path / "first.lock.json", tiny, out=tmp_path / "other.gguf", text=book)
    with pytest.raises(LockError, match=r"absent: no such directory"):
        rebuild(lock, tiny, out=tmp_path / "other.gguf", text=book, statistics=tmp_path / "absent")
    plain = made(tiny, tmp_path / "plain.gguf", plan_preset(open_model(tiny), "Q4_K_M"))
    with pytest.raises(LockError, match=r"made without calibration\. Leave --statistics out"):
        rebuild(plain, tiny, out=tmp_path / "other.gguf", statistics=kept)
