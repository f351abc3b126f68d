from pathlib import Path
from typing import Any

import pytest

from kvant.formats.huggingface.tokenizer.files import TokenizerFiles
from kvant.formats.huggingface.tokenizer.special import SpecialTokens, read_special_tokens, unnamed_roles
from kvant.formats.huggingface.tokenizer.vocabulary import AddedToken, Vocabulary
from kvant.metadata import TokenType

ADDED = {i: AddedToken(i, text, True) for i, text in enumerate(["<s>", "</s>", "<end>", "<sep>"])}


def read(
    post: Any = None, config: Any = None, model_config: Any = None, size: int = 10, remarks: list[str] | None = None
) -> SpecialTokens:
    files = TokenizerFiles(
        directory=Path(), tokenizer={"post_processor": post}, config=config or {}, generation={}, sentencepiece=None
    )
    return read_special_tokens(files, model_config or {}, ADDED, {"x": 5}, size, remarks)


def template(single: str, pair: str = "") -> dict[str, Any]:
    def pieces(text: str) -> list[dict[str, Any]]:
        return [{("Sequence" if t in "AB" else "SpecialToken"): {"id": t, "type_id": 0}} for t in text.split()]

    return {"type": "TemplateProcessing", "single": pieces(single), "pair": pieces(pair)}


def test_bos_before_each_text() -> None:
    found = read(template("<s> A", "<s> A <s> B"), {"bos_token": "<s>", "eos_token": {"content": "</s>"}})

    assert found.ids == {"bos": 0, "eos": 1}
    assert found.add == {"bos": True, "sep": False}


def test_a_template_names_what_the_configuration_leaves_out() -> None:
    found = read(template("<s> A </s>"))

    assert found.ids == {"bos": 0, "eos": 1}
    assert found.add == {"bos": True, "eos": True}


def test_another_end_in_the_template_makes_the_configured_one_end_of_turn() -> None:
    found = read(template("A <end>"), {"eos_token": "</s>"})

    assert found.ids == {"eos": 2, "eot": 1}
    assert found.add == {"eos": True}


def test_separator_between_two_texts() -> None:
    found = read(template("<s> A", "<s> A <sep> B"), {"bos_token": "<s>", "sep_token": "<sep>"})

    assert found.add == {"bos": True, "sep": True}
    assert found.ids["sep"] == 3


def test_byte_level_post_processor_adds_nothing_and_configuration_does_not_change_that() -> None:
    assert read({"type": "ByteLevel"}, {"add_bos_token": True}).add == {"bos": False, "eos": False}
    assert read(None, {"add_bos_token": True}).add == {"bos": True}


def test_ids_from_the_models_configuration_and_the_vocabulary() -> None:
    found = read(
        None, {"unk_token": "x"}, {"bos_token_id": 0, "eos_token_id": [2, 1], "text_config": {"pad_token_id": 4}}
    )

    # </s> ends an answer by its name; <end> is the first of the list.
    assert found.ids == {"bos": 0, "pad": 4, "unk": 5, "eos": 2}


def test_id_outside_the_vocabulary() -> None:
    assert read(None, {}, {"pad_token_id": 99}).ids == {}


@pytest.mark.parametrize(
    "post", [3, [], {"processors": 3}, {"processors": [3]}, {"type": "TemplateProcessing", "single": 3}]
)
def test_malformed_post_processor_adds_nothing(post: Any) -> None:
    assert read(post).add == {}


def test_roles_that_the_configuration_leaves_out_are_in_the_map(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}, "bos_token": "<s>"}')
    files = TokenizerFiles(directory=tmp_path, tokenizer={}, config={"bos_token": None}, generation={},
                           sentencepiece=None)  # fmt: skip

    special = read_special_tokens(files, {}, ADDED, {}, 10)

    assert special.ids == {"eos": 1}  # null in tokenizer_config.json says that there is none


@pytest.mark.parametrize(
    ("config", "model_config", "words"),
    [
        ({"eos_token": "<nosuch>"}, {}, "eos_token '<nosuch>' is no token of the tokenizer"),
        ({"pad_token": ["</s>"]}, {}, "pad_token is ['</s>'], not a token's text"),
        ({"eos_token": 5}, {}, "eos_token is 5, not a token's text"),
        ({}, {"eos_token_id": "2"}, "eos_token_id is '2', not a token's id"),
        ({}, {"eos_token_id": [2, "3"]}, "eos_token_id is [2, '3'], not a token's id"),
        ({}, {"bos_token_id": [2, 3]}, "bos_token_id is [2, 3], not a token's id"),
        ({}, {"pad_token_id": True}, "pad_token_id is True, not a token's id"),
    ],
)
def test_entries_that_name_no_token_are_said(config: Any, model_config: Any, words: str) -> None:
    remarks: list[str] = []
    read(None, config, model_config, remarks=remarks)
    assert [words in said for said in remarks] == [True]


def test_the_usual_entries_are_not_remarked_upon() -> None:
    remarks: list[str] = []
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "unk_token": "x"}
    read(None, config, {"eos_token_id": [1, 2], "bos_token_id": None, "pad_token_id": 0}, remarks=remarks)
    assert remarks == []


def test_what_the_engine_takes_where_no_token_is_named() -> None:
    vocabulary = Vocabulary([str(i) for i in range(20)], [int(TokenType.NORMAL)] * 20)
    special = SpecialTokens(add={"bos": True})
    bos, eos = unnamed_roles("gpt2", special, vocabulary)
    assert "no bos token is named" in bos
    assert special.add == {"bos": False}
    assert "llama.cpp takes token 11 ('11')" in eos
    assert list(unnamed_roles("gpt2", SpecialTokens(ids={"bos": 0, "eos": 1}, add={"bos": True}), vocabulary)) == []


def test_the_engines_own_choice_is_right_for_sentencepiece() -> None:
    vocabulary = Vocabulary(["<unk>", "<s>", "</s>"], [int(TokenType.UNKNOWN), *[int(TokenType.CONTROL)] * 2])
    special = SpecialTokens(add={"bos": True})
    assert list(unnamed_roles("llama", special, vocabulary)) == []
    assert special.add == {"bos": True}


def test_an_encoders_class_token_is_bos_and_its_separator_eos() -> None:
    found = read(template("<s> A </s>", "<s> A </s> B </s>"), {"cls_token": "<s>", "sep_token": "</s>"})

    assert found.ids == {"bos": 0, "eos": 1, "sep": 1}
    assert found.add == {"bos": True, "eos": True, "sep": False}


def test_roberta_puts_its_tokens_around_and_between() -> None:
    post = {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 1]}

    assert read(post, {"bos_token": "<s>", "eos_token": "</s>"}).add == {"bos": True, "eos": True, "sep": True}
    assert read(post, {"bos_token": "<s>", "eos_token": "</s>"}).ids == {"bos": 0, "eos": 1, "sep": 1}


def test_what_upstream_knows_of_a_family_comes_after_what_the_files_say() -> None:
    added = {i: AddedToken(i, text, True) for i, text in enumerate(["[gMASK]", "<|user|>", "<|endoftext|>"])}
    files = TokenizerFiles(
        directory=Path(), tokenizer={}, config={"eos_token": "<|endoftext|>"}, generation={}, sentencepiece=None
    )

    moe = read_special_tokens(files, {"model_type": "glm4_moe"}, added, {}, 9)
    dense = read_special_tokens(files, {"model_type": "glm4", "bos_token_id": 0}, added, {}, 9)

    assert moe.ids == {"eos": 2, "bos": 0, "eot": 1, "unk": 2}
    assert dense.ids == {"eos": 2, "bos": 0, "eot": 1, "unk": 2}
    assert read(model_config={"model_type": "modernbert"}).add == {"bos": True, "eos": True, "sep": True}


def test_a_token_that_the_engine_has_no_default_for_is_not_added() -> None:
    special = SpecialTokens(add={"bos": True, "eos": True}, ids={"eos": 1})
    vocabulary = Vocabulary([str(number) for number in range(12)], [1] * 12)

    assert list(unnamed_roles("glm4", special, vocabulary)) == [
        "add_bos_token is true, but no bos token is named: none is added."
    ]
    assert special.add == {"bos": False, "eos": True}


def test_hunyuans_end_of_text_is_its_own_entry() -> None:
    config = {"model_type": "hunyuan_v1_dense", "eod_token_id": 2, "eos_token_id": 1}

    assert read(model_config=config).ids["eos"] == 2
