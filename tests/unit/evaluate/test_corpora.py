import hashlib
from pathlib import Path

import pytest

from kvant.errors import FormatError, LimitError, ValueRangeError
from kvant.evaluate import corpora
from kvant.evaluate.corpora import SPLITS, check_unseen, corpus, manifest, names, text_file
from kvant.metadata import Value, string

DOMAINS = {"prose", "code", "dialogue", "other-languages"}


def test_the_bundled_set_is_whole() -> None:
    assert names() == ["default"]
    for split in SPLITS:
        found = corpus("default", split)
        assert {part.domain for part in found.parts} == DOMAINS
        assert found.sha256 == hashlib.sha256(found.text.encode()).hexdigest()
        assert sorted(found.text) == sorted("".join(part.text for part in found.parts))
    assert all(entry.licence in ("public domain", "Apache-2.0") and entry.source for entry in manifest())


def test_the_halves_share_no_line_of_substance() -> None:
    lines = {s: {line.strip() for line in corpus("default", s).text.splitlines() if len(line) > 90} for s in SPLITS}
    assert not lines["held-out"] & lines["calibration"]


def test_any_beginning_is_a_mixture() -> None:
    found = corpus("default", "held-out")
    start = found.text[: 5 * corpora.PIECE_CHARACTERS]
    assert all(part.text[:500] in start for part in found.parts)


def test_an_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(ValueRangeError, match="Use one of default"):
        corpus("wiki")


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = corpora._data
    monkeypatch.setattr(corpora, "_data", lambda name: real(name) + (b"" if name.endswith(".json") else b"x"))
    with pytest.raises(FormatError, match="hash is not the manifest's"):
        corpus()


def test_any_utf8_file_is_a_text_of_one_domain(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("Ein Satz über Straßen.\n", encoding="utf-8")
    found = text_file(path)
    assert (found.label, found.split, len(found.parts)) == ("own.txt", "", 1)
    assert found.sha256 == found.parts[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_that_are_no_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="no such file"):
        text_file(tmp_path / "absent.txt")
    path = tmp_path / "bad.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(FormatError, match="byte 3 is not UTF-8"):
        text_file(path)
    path.write_bytes(b" \n")
    with pytest.raises(FormatError, match="is empty"):
        text_file(path)
    path.write_bytes(b"long enough")
    monkeypatch.setattr(corpora, "MAX_TEXT_BYTES", 4)
    with pytest.raises(LimitError, match="11 bytes break the limit of 4"):
        text_file(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"kvant.calibration.sha256": string(corpus().sha256)},
        {"kvant.calibration.sha256": string(f"0123,{corpus().parts[2].sha256}")},
        {"quantize.imatrix.dataset": string("kvant:default:held-out")},
    ],
)
def test_text_that_a_variant_was_calibrated_on_is_refused(metadata: dict[str, Value]) -> None:
    with pytest.raises(ValueRangeError, match="was calibrated on kvant:default:held-out"):
        check_unseen(corpus(), Path("v.gguf"), metadata)


def test_a_file_used_under_the_same_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text("some text")
    with pytest.raises(ValueRangeError, match=r"was calibrated on wiki\.txt"):
        check_unseen(text_file(path), Path("v.gguf"), {"quantize.imatrix.dataset": string("C:\\data\\wiki.txt")})


def test_other_calibration_texts_are_fine() -> None:
    check_unseen(corpus(), Path("v.gguf"), {})
    other = corpus("default", "calibration")
    check_unseen(
        corpus(), Path("v.gguf"),
        {"kvant.calibration.sha256": string(other.sha256), "quantize.imatrix.dataset": string(other.label)},
    )  # fmt: skip
