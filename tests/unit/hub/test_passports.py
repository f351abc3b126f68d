"""What was measured of a model, read from passports and reports, good and bad."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvant.errors import FormatError, UnsupportedFormatError
from kvant.evaluate.loss import DISTANCE
from kvant.hub.manifest import ModelSettings
from kvant.hub.passports import MAX_BYTES, Measured, read
from kvant.hub.passports import beside as passport_beside
from kvant.serve.library import ModelFile
from kvant.serve.passports import measured
from serving import MB, model_file

SCORE: dict[str, Any] = {
    "size_bytes": MB, "kld_mean": 0.04, "kld_se": 0.001, "kld_p99": 0.4, "top1": 0.9, "ppl": 20.0, "ppl_ratio": 1.03,
    "tg_tok_s": 61.5, "pp_tok_s": None, "rss_bytes": 285_000_000, "n_positions": 4096, "n_threads": 2,
}  # fmt: skip
PASSPORT = {
    "file": "a.gguf", "sha256": "aa", "base_sha256": "bb", "preset": "Q4_K_M", "text": "default", "text_sha256": "cc",
    "machine": "A processor", "score": SCORE,
}  # fmt: skip


def beside(path: Path, document: Any) -> ModelFile:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    (path / "a.passport.json").write_bytes(data)
    return model_file("a", path=path / "a.gguf")


def test_a_passport_tells_its_figures_and_hashes() -> None:
    assert read(PASSPORT) == Measured(
        kld_mean=0.04, kld_se=0.001, kld_p99=0.4, top1=0.9, ppl=20.0, ppl_ratio=1.03, tg_tok_s=61.5,
        rss_bytes=285_000_000, n_positions=4096, n_threads=2, machine="A processor", base_sha256="bb", text="default",
        text_sha256="cc", sha256="aa",
    )  # fmt: skip


def test_a_report_tells_those_of_its_pick() -> None:
    other = {"preset": "Q8_0", "score": SCORE | {"kld_mean": 0.001}}
    report = {
        "pick": "Q4_K_M", "variants": [other, {"preset": "Q4_K_M", "score": SCORE}], "model": {"name": "smol"},
        "text": {"name": "default", "sha256": "cc"}, "machine": {"cpu": "A processor"}, "sha256": "aa",
    }  # fmt: skip

    found = read(report)

    assert found is not None
    assert (found.kld_mean, found.base, found.text, found.text_sha256) == (0.04, "smol", "default", "cc")
    assert found.machine == "A processor"


def test_a_passport_of_vectors_tells_their_distance() -> None:
    score = {"measure": "distance", "size_bytes": MB, "distance_mean": 0.01, "distance_se": 0.001, "overlap": 0.93}

    found = read(PASSPORT | {"score": score})

    assert found is not None
    assert found.measure is DISTANCE
    assert (found.distance_mean, found.overlap, found.kld_mean) == (0.01, 0.93, None)


@pytest.mark.parametrize("kld", [None, "0.1", True, -1, float("nan"), float("inf"), 10**400, [0.1]])
def test_a_divergence_that_is_no_number_is_no_measurement(kld: Any) -> None:
    assert read(PASSPORT | {"score": SCORE | {"kld_mean": kld}}) is None


def test_what_is_not_as_it_should_be_is_left_out() -> None:
    wrong = {"top1": "high", "tg_tok_s": float("inf"), "rss_bytes": 1 << 60, "n_threads": 1.5}
    found = read(PASSPORT | {"text": ["x"], "machine": {"cpu": 3}, "base_sha256": "b" * 999, "score": SCORE | wrong})

    assert found is not None
    assert (found.top1, found.tg_tok_s, found.rss_bytes, found.n_threads) == (None, None, None, None)
    assert (found.text, found.machine, found.base_sha256) == (None, None, "b" * 200)


@pytest.mark.parametrize("document", [{}, {"score": []}, {"variants": [1, None]}, {"variants": [], "score": SCORE}])
def test_other_documents_are_no_measurement(document: dict[str, Any]) -> None:
    assert read(document) is None


def test_the_passport_beside_a_file_counts_if_it_is_of_that_size(tmp_path: Path) -> None:
    file = beside(tmp_path, PASSPORT)

    assert measured(file) is not None
    assert measured(msgspec.structs.replace(file, size_bytes=MB + 1)) is None


def test_settings_go_before_the_passport_beside_the_file(tmp_path: Path) -> None:
    settings = ModelSettings(passport=PASSPORT | {"score": SCORE | {"kld_mean": 0.5}})
    found = measured(msgspec.structs.replace(beside(tmp_path, PASSPORT), settings=settings))

    assert found is not None
    assert found.kld_mean == 0.5


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (MAX_BYTES + 1)],
    ids=["empty", "list", "bytes", "deep", "long"],
)
def test_a_damaged_passport_beside_a_file_is_none(tmp_path: Path, data: bytes) -> None:
    assert measured(beside(tmp_path, data)) is None


def test_shards_share_the_passport_of_their_name(tmp_path: Path) -> None:
    beside(tmp_path, PASSPORT)

    assert measured(model_file("a", path=tmp_path / "a-00001-of-00002.gguf")) is not None


@pytest.mark.parametrize("form", [{}, {"passport": 1}, {"report": 1}])
def test_documents_of_the_first_form_are_read_with_their_number_and_without(form: dict[str, Any]) -> None:
    assert read(PASSPORT | form) is not None


@pytest.mark.parametrize("kind", ["passport", "report"])
def test_a_newer_form_is_refused_with_what_to_do(kind: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=rf"^a.json: {kind}: 2 is newer than 1, .* Update kvant"):
        read(PASSPORT | {kind: 2}, "a.json")


@pytest.mark.parametrize("form", [0, -1, "1", 1.0, True, None, [1]])
def test_what_is_no_number_of_a_form_is_refused(form: Any) -> None:
    with pytest.raises(FormatError, match="is no number of its form"):
        read(PASSPORT | {"passport": form})


def test_a_newer_passport_beside_a_file_stops_an_import_and_not_a_gateway(tmp_path: Path) -> None:
    file = beside(tmp_path, PASSPORT | {"passport": 2})

    with pytest.raises(UnsupportedFormatError, match=r"a\.passport\.json: passport: 2 is newer than 1"):
        passport_beside(file.path, file.size_bytes)
    assert measured(file) is None
