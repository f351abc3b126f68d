"""What the engine's tokenizer does otherwise is carried over by the model's name, said, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.tokenizer.limits import (
    added_around,
    byte_level_remarks,
    engine_name,
    sentencepiece_remarks,
)
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.vocabulary import AddedToken
from kvant.formats.huggingface.tokenizer.words import by_name
from kvant.testing.tiny_tokenizers import KINDS, write_tokenizer

PHI3 = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "word"]
TYPES = [2, 3, 3, 3, 3, 3, 1]


def stripping(*texts: str) -> list[AddedToken]:
    return [AddedToken(PHI3.index(t), t, special=True, rstrip=t in texts) for t in PHI3[:-1]]


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("Phi 3 Mini 4k Instruct", "Phi-3 Mini 4k Instruct"),
        ("Phi-3 Mini", "Phi-3 Mini"),
        ("my phi3", "my phi3"),
        ("Helpdesk", "Helpdesk (phi-3)"),
        ("Phi 35", "Phi 35 (phi-3)"),
    ],
)
def test_a_name_makes_special_tokens_swallow_white_space(name: str, spelled: str) -> None:
    found, said = engine_name(name, stripping("</s>", "<|user|>", "<|end|>"), PHI3, TYPES)

    assert found == spelled
    assert bool(said) == spelled.endswith("(phi-3)")


@pytest.mark.parametrize(("name", "spelled"), [("Phi-3 clone", "Phi 3 clone"), ("my-phi3", "my-phi 3"), ("X", "X")])
def test_a_name_does_not_make_them_swallow_it_where_they_should_not(name: str, spelled: str) -> None:
    assert engine_name(name, stripping(), PHI3, TYPES)[0] == spelled
    assert engine_name(name, [], ["a", "b"], [1, 1])[0] == spelled  # with this name the engine would not load it


def test_what_the_name_cannot_say_is_said() -> None:
    assert "after '</s>' is swallowed" in engine_name("Phi-3", stripping("<|user|>", "<|end|>"), PHI3, TYPES)[1][0]
    assert "after '<|end|>' is kept" in engine_name("X", stripping("<|end|>"), PHI3[4:], TYPES[4:])[1][0]


@pytest.mark.parametrize(
    ("name", "swallows", "spelled"),
    [
        ("ModernBERT Base", True, "Modern-BERT Base"), ("Helpdesk", True, "Helpdesk (modern-bert)"),
        ("my modern-bert", True, "my modern-bert"), ("my Modern-BERT", False, "my Modern BERT"),
        ("ModernBERT Base", False, "ModernBERT Base"),
    ],
)  # fmt: skip
def test_a_name_makes_the_mask_swallow_what_stands_before_it(name: str, swallows: bool, spelled: str) -> None:
    found, said = engine_name(name, [AddedToken(0, "[MASK]", special=True, lstrip=swallows)], ["[MASK]"], [3])
    assert found == spelled
    assert [f"general.name is written {spelled!r}" in one for one in said] == [True] * (name != spelled)


def test_a_name_cannot_say_both() -> None:
    added = [*stripping("</s>", "<|user|>", "<|end|>"), AddedToken(9, "[MASK]", special=True, lstrip=True)]
    found, said = engine_name("Phi-3", added, [*PHI3, "[MASK]"], [*TYPES, 3])
    assert found == "Phi-3"
    assert any("before '[MASK]' is kept" in one for one in said)


def remarks(kind: str, directory: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> list[str]:
    write_tokenizer(kind, directory, 700)
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    found: list[str] = []
    tokenizer_metadata(directory, {"model_type": "llama"}, found)
    return found


USUAL = {
    "qwen2": "composes accents", "phi4-mini": "combining marks", "mistral-tekken": "combining marks",
    "mistral-spm": "prepend_scheme first",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_tokenizer_needs_no_more_than_a_word(kind: str, tmp_path: Path) -> None:
    found = remarks(kind, tmp_path)

    assert len(found) == (kind in USUAL)
    assert USUAL.get(kind, "") in "".join(found)


def set_in(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("smollm", set_in("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True), "add_prefix_space"),
        ("smollm", set_in("model", "ignore_merges", value=True), "ignore_merges"),
        ("llama3", set_in("model", "dropout", value=0.1), "dropout 0.1"),
        ("smollm", set_in("added_tokens", 0, "lstrip", value=True), "White space before"),
        ("smollm", set_in("added_tokens", 0, "single_word", value=True), "inside words"),
        ("llama2-spm", set_in("added_tokens", 1, "normalized", value=True), "after its normalizer"),
        ("mistral-spm", set_in("pre_tokenizer", "prepend_scheme", value="always"), "puts a second one"),
    ],
)
def test_what_the_engine_does_otherwise_is_said(
    kind: str, change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    assert words in "\n".join(remarks(kind, tmp_path, change))


def test_spaces_inside_tokens_are_said_where_the_source_cuts_before_them() -> None:
    tokenizer = {"model": {}, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "split": True}}

    assert "Metaspace with split" in next(sentencepiece_remarks(tokenizer, ["\u2581a", "a\u2581b"]))
    assert list(sentencepiece_remarks(tokenizer, ["\u2581a"])) == []


def test_tokens_around_a_text_that_the_engine_does_not_put_are_said(tmp_path: Path) -> None:
    special = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [special, special, text], "pair": [], "special_tokens": {}}

    found = remarks("smollm", tmp_path, set_in("post_processor", value=template))

    assert any("puts '<|im_start|>', '<|im_start|>' before a text, llama.cpp" in remark for remark in found)


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_pieces_that_merges_cannot_have_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        remarks("smollm", tmp_path, set_in("model", key, value="##"))


def test_bytes_without_a_token_are_refused(tmp_path: Path) -> None:
    def drop(document: dict[str, Any]) -> None:
        del document["model"]["vocab"]["<0x0A>"]

    with pytest.raises(UnsupportedModelError, match="<0x0A>"):
        remarks("llama2-spm", tmp_path, drop)


def test_of_two_chat_templates_the_one_that_counts_is_said(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 700)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    found: list[str] = []

    keys = tokenizer_metadata(tmp_path, {}, found)

    assert keys["tokenizer.chat_template"].value == "{{ messages }}"
    assert any("chat_template.jinja counts" in remark for remark in found)


def test_an_entry_of_the_configuration_that_nobody_reads_is_said(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 700)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "split_special_tokens": True, "padding_side": "left"}))
    found: list[str] = []

    tokenizer_metadata(tmp_path, {}, found)

    assert any("nobody reads split_special_tokens = True." in remark for remark in found)


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_tokens_that_other_post_processors_put_around_a_text_are_said(kind: str) -> None:
    step = {"type": kind, "cls": ["<s>", 1], "sep": ["</s>", 2]}
    before, after = added_around(step, {"bos": False, "eos": False}, {"bos": "<s>", "eos": "</s>"})
    assert before == "tokenizer.json puts '<s>' before a text, llama.cpp nothing."
    assert after == "tokenizer.json puts '</s>' after a text, llama.cpp nothing."
    assert list(added_around(step, {"bos": True, "eos": True}, {"bos": "<s>", "eos": "</s>"})) == []


def test_a_normalizer_of_no_steps_composes_nothing() -> None:
    pre = by_name("smollm")
    for normalizer, count in ((None, 0), ({"type": "Sequence", "normalizers": []}, 0), ({"type": "NFC"}, 1)):
        assert len(list(byte_level_remarks({"model": {}, "normalizer": normalizer}, pre))) == count
