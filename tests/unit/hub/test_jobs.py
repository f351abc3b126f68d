"""What is done with stored models, from Python."""

import json
from pathlib import Path

import pytest

import kvant
from kvant.errors import FormatError, ModelNotFoundError, OutputExistsError, UnsupportedFormatError, ValueRangeError
from store_files import family


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return family(tmp_path / "Tiny-1B-Q4_K_M.gguf", "one")


def test_a_models_way_through_the_functions(file: Path, tmp_path: Path) -> None:
    done = kvant.import_(file)
    (model,) = done.models
    assert model.name.tagged == "tiny-1b:Q4_K_M"
    assert done.grown_bytes >= model.size_bytes
    assert kvant.copy("tiny-1b:q4_k_m", "other").digest == model.digest
    with pytest.raises(OutputExistsError, match="other: is in the store already"):
        kvant.copy("tiny-1b:q4_k_m", "other")
    assert kvant.copy("tiny-1b:q4_k_m", "other", overwrite=True).name.tagged == "other:latest"
    held = kvant.list_()
    assert [one.name.tagged for one in held.models] == ["other:latest", "tiny-1b:Q4_K_M"]
    assert held.usage_bytes < 2 * model.size_bytes
    assert kvant.show("other").path.read_bytes() == file.read_bytes()
    bundle = kvant.export(["other"], tmp_path / "models.tar")
    with pytest.raises(ModelNotFoundError):
        kvant.rm(["other", "absent"])
    assert len(kvant.list_().models) == 2
    removed = kvant.rm(["other", "tiny-1b:q4_k_m"])
    assert [one.name.tagged for one in removed.models] == ["other:latest", "tiny-1b:Q4_K_M"]
    assert removed.freed_bytes >= model.size_bytes
    with pytest.raises(ValueRangeError, match="is a bundle, which is copied from"):
        kvant.import_(bundle, move=True)
    assert [one.digest for one in kvant.import_(bundle).models] == [model.digest]
    assert kvant.fsck().is_clean


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"is not a file\. Give the path of a GGUF file or a bundle"):
        kvant.import_(tmp_path)


def test_a_passport_comes_along_unless_it_is_of_a_newer_form(file: Path) -> None:
    passport = {"passport": 1, "score": {"size_bytes": file.stat().st_size, "kld_mean": 0.1}}
    beside = file.with_suffix(".passport.json")
    beside.write_text(json.dumps(passport))
    (model,) = kvant.import_(file, "known").models
    assert model.settings.passport == passport
    beside.write_text(json.dumps(passport | {"passport": 2}))
    with pytest.raises(UnsupportedFormatError, match=r"passport\.json: passport: 2 is newer than 1"):
        kvant.import_(file, "newer")


def test_a_quota_is_set_kept_and_lifted() -> None:
    assert kvant.gc(quota=10**9).quota_bytes == 10**9
    assert kvant.gc().quota_bytes == kvant.list_().quota_bytes == 10**9
    assert kvant.gc(quota="none").quota_bytes is None
