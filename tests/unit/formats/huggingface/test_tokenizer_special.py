from pathlib import Path
from typing import Any

import pytest

from kvant.formats.huggingface.tokenizer_files import TokenizerFiles
from kvant.formats.huggingface.tokenizer_special import SpecialTokens, read_special_tokens
from kvant.formats.huggingface.tokenizer_vocab import AddedToken

ADDED = {i: AddedToken(i, text, True) for i, text in enumerate(["<s>", "</s>", "<end>", "<sep>"])}


def read(post: Any = None, config: Any = None, model_config: Any = None, size: int = 10) -> SpecialTokens:
    files = TokenizerFiles(
        directory=Path(), tokenizer={"post_processor": post}, config=config or {}, generation={}, sentencepiece=None
    )
    return read_special_tokens(files, model_config or {}, ADDED, {"x": 5}, size)


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
