"""The converter's process: what it may do, and what is said of it when it fails, whichever way."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from converter_files import use_converter, write_converter, write_model
from kvant.errors import EngineError, UnsupportedModelError
from kvant.runtime.converter import environment, process

pytestmark = pytest.mark.heavy


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> environment.Converter:
    use_converter(monkeypatch, write_converter(tmp_path / "llama.cpp"))
    found = environment.find()
    assert found is not None
    return found


@pytest.fixture
def task(tmp_path: Path) -> process.Task:
    (tmp_path / "made").mkdir()
    return process.Task(
        subject=tmp_path / "model", directory=write_model(tmp_path / "model"), out=tmp_path / "made" / "m.gguf",
        kind="f32", pre="smollm", no_pre="", expected_bytes=1 << 20, max_bytes=1 << 30,
    )  # fmt: skip


def with_entries(task: process.Task, **entries: Any) -> process.Task:
    path = task.directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return task


def test_a_file_is_written_and_the_pretokenizer_is_put_in(converter: environment.Converter, task: process.Task) -> None:
    assert process.run(converter, task) == process.Answer(pre="smollm")
    assert task.out.read_bytes()[:4] == b"GGUF"


def test_a_published_vocabulary_keeps_its_name(converter: environment.Converter, task: process.Task) -> None:
    path = task.directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test_published": True}))
    assert process.run(converter, dataclasses.replace(task, pre="other")).pre == ""


def test_a_tokenizer_that_nobody_knows_is_said(converter: environment.Converter, task: process.Task) -> None:
    with pytest.raises(UnsupportedModelError, match=r"hashes of published vocabularies.*\(patterns \[x\]\)"):
        process.run(converter, dataclasses.replace(task, pre="", no_pre="patterns [x]"))
    assert not task.out.exists()


def test_entries_that_transformers_renamed_are_found(converter: environment.Converter, task: process.Task) -> None:
    with pytest.raises(EngineError, match="KeyError: 'rotary_pct'"):
        process.run(converter, with_entries(task, test_old_name=True, rope_parameters=1))
    process.run(converter, with_entries(task, rope_parameters={"partial_rotary_factor": 0.25}))
    process.run(converter, with_entries(task, rope_parameters=None, rotary_pct=0.25))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"test_raises": "the experts do not add up"}, r"fails \(ValueError: the experts do not add up\)"),
        ({"test_unsupported": True}, "Model is not supported"),
        ({"test_dies": True}, "ended with signal 9"),
        ({"test_raises": "x" * 10_000}, r"x{100}"),
    ],
)
def test_failures_are_said_in_a_sentence(
    entries: dict[str, Any], words: str, converter: environment.Converter, task: process.Task
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        process.run(converter, with_entries(task, **entries))
    assert len(str(caught.value)) < 1200


def test_it_reads_and_writes_nothing_else(converter: environment.Converter, task: process.Task, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(EngineError, match="PermissionError"):
        process.run(converter, with_entries(task, test_reads=str(tmp_path / "secret")))
    with pytest.raises(EngineError, match="PermissionError"):
        process.run(converter, with_entries(task, test_reads=None, test_writes=str(tmp_path / "model" / "new")))
    assert not (tmp_path / "model" / "new").exists()


def test_the_file_is_bounded(converter: environment.Converter, task: process.Task) -> None:
    with pytest.raises(EngineError, match=r"File too large|ended with"):
        process.run(converter, dataclasses.replace(task, max_bytes=1000))


def test_it_takes_no_longer_than_allowed(
    converter: environment.Converter, task: process.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TIMEOUT_S", 1.0)
    with pytest.raises(EngineError, match="took longer than"):
        process.run(converter, with_entries(task, test_sleeps=60))
