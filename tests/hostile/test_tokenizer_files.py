"""Tokenizer files made to break a reader: a clear error, in bounded time and memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FormatError, KvantError, LimitError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer import files, vocabulary
from kvant.formats.huggingface.tokenizer.pretokenizers import identify
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.testing.tiny_tokenizers import write_tokenizer

Document = dict[str, Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tokenizer("smollm", tmp_path, 600)
    return tmp_path


def set_added(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["added_tokens"][0].update(changes)


def set_vocab(text: str, number: Any) -> Callable[[Document], None]:
    return lambda document: document["model"]["vocab"].update({text: number})


def add_merge(merge: Any) -> Callable[[Document], None]:
    return lambda document: document["model"]["merges"].append(merge)


def put(*path: str, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_added(id=-1), set_added(id="0"), set_added(id=True), set_added(id=2**31), set_added(content=7),
        set_added(id=1), set_added(content="!"), set_added(content="x" * (1 << 17)),
        set_vocab("new", 5), set_vocab("new", -1), set_vocab("new", 1.5), set_vocab("new", None),
        set_vocab("new", 10**30), set_vocab("y" * (1 << 17), 600),
        add_merge("a"), add_merge("a b c"), add_merge(["a"]), add_merge(["a", 3]), add_merge(7),
        add_merge(["unknown", "tokens"]), add_merge(["!", "zz"]), add_merge(["", "a"]),
        put("added_tokens", value={"a": 1}), put("added_tokens", value=[[]]), put("model", "vocab", value=[]),
        put("model", "merges", value={}), put("model", "merges", value=None), put("pre_tokenizer", value=3),
    ],
)  # fmt: skip
def test_malformed_tokenizer_json(change: Callable[[Document], None], directory: Path) -> None:
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))

    with pytest.raises(KvantError):
        tokenizer_metadata(directory, {})


def test_long_tokens_and_patterns_take_no_time(tmp_path: Path) -> None:
    write_tokenizer("llama2-spm", tmp_path, 600)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["x" * 60_000] = 600
    path.write_text(json.dumps(document))
    with pytest.raises(LimitError, match="60000 characters"):
        tokenizer_metadata(tmp_path, {})

    for pattern in ("[" + r"\p{L}" * 800, "[" * 4000, r"(\p{L}" * 500):
        steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}] * 16
        with pytest.raises(UnsupportedModelError, match="is none that the engine has"):
            identify({"model": {}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})


@pytest.mark.parametrize("size", [0, -5, 599, 2**40, "600", 600.5])
def test_vocabulary_size_of_the_model(size: Any, directory: Path) -> None:
    with pytest.raises(FormatError, match="vocab_size"):
        tokenizer_metadata(directory, {"vocab_size": size})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a":' * 100_000, b'{"model": {"type": "BPE"}}', b"null"]
)
def test_not_a_tokenizer(data: bytes, directory: Path) -> None:
    (directory / "tokenizer.json").write_bytes(data)

    with pytest.raises(KvantError):
        tokenizer_metadata(directory, {})


def test_too_large_a_file_is_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)

    with pytest.raises(LimitError, match="more than the limit of 1000"):
        tokenizer_metadata(directory, {})


def test_too_many_tokens(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 500)

    with pytest.raises(KvantError, match=r"500|499"):
        tokenizer_metadata(directory, {})


@pytest.mark.parametrize(
    "template", ["x" * (2 << 20), [{"name": "a"}], [3], [{"name": f"n{i}", "template": ""} for i in range(70)]]
)
def test_templates(template: Any, directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))

    with pytest.raises(FormatError):
        tokenizer_metadata(directory, {})


def test_template_file(directory: Path) -> None:
    path = directory / "chat_template.jinja"
    path.write_bytes(b"\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        tokenizer_metadata(directory, {})

    path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(LimitError):
        tokenizer_metadata(directory, {})


def test_two_ids_with_one_text_after_writing_spaces_plainly(directory: Path) -> None:
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    flags = {"special": False, "normalized": False}
    document["added_tokens"] += [{"id": 600 + i, "content": text, **flags} for i, text in enumerate(["a b", "a▁b"])]
    path.write_text(json.dumps(document))

    with pytest.raises(FormatError, match="ids 600 and 601 are both 'a b'"):
        tokenizer_metadata(directory, {})


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json"]
)
def test_a_link_out_of_the_directory_is_not_followed(name: str, directory: Path, tmp_path_factory: Any) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.json"
    secret.write_text("{}")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(secret)

    with pytest.raises(FormatError, match="leads to"):
        tokenizer_metadata(directory, {})
