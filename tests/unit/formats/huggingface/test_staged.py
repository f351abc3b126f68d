"""Directories laid out for another program: what is refused, what stays behind, what is the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter_files import write_model
from kvant.errors import FormatError, KvantError, LimitError, UnsupportedFormatError
from kvant.formats.huggingface import staged
from kvant.formats.huggingface.staged import check_directory, lay_out
from kvant.testing.tiny_models import write_safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "some-model")


def names(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def test_what_describes_a_model_and_its_weights_are_there(model: Path, tmp_path: Path) -> None:
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    checked = check_directory(model)
    made = lay_out(checked, tmp_path / "laid")
    assert made == tmp_path / "laid" / "some-model"
    assert names(made) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "1_Pooling/config.json",
    }  # fmt: skip
    assert all((made / name).read_bytes() == (model / name).read_bytes() for name in names(made))
    assert checked.architecture == "OrionForCausalLM"
    assert checked.n_weights == 32
    assert checked.exact.name == "BF16"
    assert checked.remarks == ()


def test_nothing_that_runs_is_there(model: Path, tmp_path: Path) -> None:
    for name in ("modeling_x.py", "pytorch_model.bin", "evil.so", "training_args.bin", "x.pt"):
        (model / name).write_bytes(b"x")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**content, "auto_map": {"AutoModel": "modeling_x.X"}}))
    checked = check_directory(model)
    made = lay_out(checked, tmp_path / "laid")
    assert not any(name.endswith((".py", ".bin", ".so", ".pt")) for name in names(made))
    assert "auto_map" not in (made / "config.json").read_text() + (made / "tokenizer_config.json").read_text()
    assert [r.partition(" asks")[0] for r in checked.remarks] == ["config.json", "tokenizer_config.json"]


def test_a_snapshot_of_the_hub_s_cache_is_named_after_its_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models--org--name" / "snapshots" / ("a" * 40))
    assert check_directory(model).name == "name"


def test_one_file_has_the_name_that_converters_look_for(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    assert "model.safetensors" in names(lay_out(check_directory(model), tmp_path / "laid"))


def test_shards_keep_their_names_and_their_index(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    for number in (1, 2):
        write_safetensors(model / f"part-{number}.safetensors", {f"w{number}": np.ones((2, 2), np.float32)}, "F16")
    index = {"weight_map": {"w1": "part-1.safetensors", "w2": "part-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    found = names(lay_out(check_directory(model), tmp_path / "laid"))
    assert {"part-1.safetensors", "part-2.safetensors", "model.safetensors.index.json"} <= found
    assert "model.safetensors" not in found


def test_an_index_that_is_left_over_stays_behind(model: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"w1": "part-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    checked = check_directory(model)
    assert "left over" in checked.remarks[0]
    assert "model.safetensors.index.json" not in names(lay_out(checked, tmp_path / "laid"))


def test_modules_after_the_model_are_named(model: Path) -> None:
    entries: list[Any] = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}, {"type": 3}, 4]
    (model / "modules.json").write_text(json.dumps(entries))
    (remark,) = check_directory(model).remarks
    assert remark.startswith("The modules 2_Dense after the model are left out")


@pytest.mark.parametrize(
    ("kinds", "exact"), [(("F16",), "F16"), (("BF16",), "BF16"), (("F32",), "F32"), (("F16", "BF16"), "F32")]
)
def test_the_type_that_holds_every_matrix(kinds: tuple[str, ...], exact: str, model: Path) -> None:
    (model / "model.safetensors").unlink()
    for kind in kinds:
        write_safetensors(model / f"{kind}.safetensors", {kind: np.ones((2, 2), np.float32)}, kind)
    index = {"weight_map": {kind: f"{kind}.safetensors" for kind in kinds}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check_directory(model).exact.name == exact


def damage(model: Path, what: str) -> None:
    if what == "link":
        (model / "tokenizer.json").unlink()
        (model / "tokenizer.json").symlink_to("/etc/hostname")
    elif what == "header":
        (model / "model.safetensors").write_bytes(b"\xff" * 64)
    elif what == "pickles":
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
    elif what == "adapter":
        (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
        (model / "adapter_model.safetensors").write_bytes(b"x")
    elif what == "json":
        (model / "tokenizer_config.json").write_text("{")
    elif what == "class":
        (model / "config.json").write_text('{"architectures": []}')


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("link", FormatError, "is not a file of this directory"),
        ("header", FormatError, "model.safetensors"),
        ("pickles", UnsupportedFormatError, "weights_only=True"),
        ("adapter", UnsupportedFormatError, "org/base"),
        ("json", FormatError, "tokenizer_config.json: is not valid JSON"),
        ("class", FormatError, "Add the model's class"),
    ],
)
def test_what_must_not_reach_another_program_is_refused(
    what: str, kind: type[KvantError], words: str, model: Path
) -> None:
    damage(model, what)
    with pytest.raises(kind, match=words):
        check_directory(model)


def test_files_and_their_number_are_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "MAX_FILE_BYTES", 10)
    with pytest.raises(LimitError, match="more than the limit of 10"):
        check_directory(model)
    monkeypatch.setattr(staged, "MAX_FILES", 2)
    with pytest.raises(LimitError, match="files are more than a model has"):
        check_directory(model)
