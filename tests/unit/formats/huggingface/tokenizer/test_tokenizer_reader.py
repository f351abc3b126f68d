import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.reader import describe, name_for_engine, tokenizer_metadata
from kvant.formats.huggingface.tokenizer.sources import read_tokenizer_files
from kvant.metadata import ValueType
from kvant.testing.tiny_tokenizers import KINDS, write_tokenizer


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def values(directory: Path, **config: Any) -> dict[str, Any]:
    metadata = tokenizer_metadata(directory, {"model_type": "llama", **config})
    return {
        key.removeprefix("tokenizer.").removeprefix("ggml."): v.value.tolist()
        if isinstance(v.value, np.ndarray)
        else v.value
        for key, v in metadata.items()
    }


def test_byte_level_keys_in_upstream_order(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)

    metadata = tokenizer_metadata(tmp_path, {"model_type": "llama", "vocab_size": 602})

    assert [key.removeprefix("tokenizer.") for key in metadata] == [
        "ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.merges", "ggml.bos_token_id",
        "ggml.eos_token_id", "ggml.unknown_token_id", "ggml.padding_token_id", "chat_template",
    ]  # fmt: skip
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert (tokens.item_type, types.item_type) == (ValueType.STRING, ValueType.INT32)
    assert list(tokens.value)[:5] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "!"]  # type: ignore[arg-type]
    assert list(tokens.value)[600:] == ["[PAD600]", "[PAD601]"]  # type: ignore[arg-type]
    assert np.asarray(types.value)[[0, 3, 4, 599, 601]].tolist() == [3, 3, 1, 1, 5]


def test_sentencepiece_scores_are_those_of_sentencepiece(tmp_path: Path) -> None:
    write_tokenizer("llama2-spm", tmp_path, 600)

    found = values(tmp_path)

    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["token_type"][:4] == [2, 3, 3, 6]
    # As in Llama 2's tokenizer.model: bytes 0, then minus the place of a piece after the last byte.
    assert found["scores"][:259] == [0.0, -1000.0, -1000.0] + [0.0] * 256
    assert found["scores"][259:] == [-float(i) for i in range(600 - 259)]


@pytest.mark.parametrize("kind", KINDS)
def test_habits_of_each_family(kind: str, tmp_path: Path) -> None:
    write_tokenizer(kind, tmp_path, 700)

    found = values(tmp_path)

    names = {
        "smollm": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "phi4-mini": "gpt-4o", "granite": "refact",
        "mistral-tekken": "tekken",
    }  # fmt: skip
    assert found["pre"] == names.get(kind, "default")
    adds_bos = {"llama3", "mistral-tekken", "llama2-spm", "mistral-spm", "gemma3"}
    assert found.get("add_bos_token", False) is (kind in adds_bos)
    assert found.get("add_space_prefix", True) is (kind not in {"qwen2", "granite", "gemma3", "mistral-spm"})
    assert found["tokens"][found["eos_token_id"]] in {
        "<|im_end|>",
        "<|eot_id|>",
        "<|endoftext|>",
        "</s>",
        "<eos>",
        "<|end_of_text|>",
    }


def test_bos_that_only_the_engine_would_add_is_switched_off(tmp_path: Path) -> None:
    write_tokenizer("llama3", tmp_path, 600)
    edit(tmp_path / "tokenizer.json", post_processor=None)

    assert values(tmp_path)["add_bos_token"] is False


def test_added_tokens_of_a_fine_tune(tmp_path: Path) -> None:
    write_tokenizer("qwen2", tmp_path, 600)
    path = tmp_path / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    n = 600
    added += [
        {"id": n, "content": "<think>", **flags, "special": False},
        {"id": n + 1, "content": "a\u2581b", **flags, "special": False},
        {"id": n + 2, "content": "<|mine|>", **flags, "special": False},
        {"id": n + 3, "content": "[X]", **flags, "special": True},
    ]
    edit(path, added_tokens=added)

    found = values(tmp_path)

    assert found["tokens"][n:] == ["<think>", "a b", "<|mine|>", "[X]"]
    assert found["token_type"][n:] == [4, 4, 3, 3]
    assert found["pre"] == "qwen2"


def test_merges_in_either_spelling(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    path = tmp_path / "tokenizer.json"
    as_pairs = values(tmp_path)["merges"]
    model = json.loads(path.read_text())["model"]
    edit(path, model={**model, "merges": [" ".join(pair) for pair in model["merges"]]})

    assert values(tmp_path)["merges"] == as_pairs
    assert as_pairs[0].count(" ") == 1


def test_a_space_inside_a_merge_is_written_as_byte_level_text(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    path = tmp_path / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    n = len(model["vocab"])
    model["vocab"] |= {"x y": n, "x yz": n + 1}
    edit(path, model={**model, "merges": [*model["merges"], ["x y", "z"]]})

    assert values(tmp_path)["merges"][-1] == "x\u0120y z"


def test_ends_that_the_engine_cannot_guess_become_eot_and_eom(tmp_path: Path) -> None:
    write_tokenizer("llama3", tmp_path, 600)
    edit(tmp_path / "tokenizer_config.json", eos_token=None)
    ids = {t["content"]: t["id"] for t in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]}
    ends = [ids[t] for t in ("<|end_of_text|>", "<|eot_id|>", "<|python_tag|>", "<|start_header_id|>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))

    found = values(tmp_path)

    # <|eot_id|> is an end by its name.
    assert [found[f"{role}_token_id"] for role in ("eos", "eot", "eom")] == [ends[0], ends[2], ends[3]]


def test_starcoder_vocabulary_of_a_llama_wants_no_bos(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)

    assert list(tokenizer_metadata(tmp_path, {"model_type": "llama", "vocab_size": 49152}))[-1].endswith(
        "add_bos_token"
    )


def test_chat_templates_file_string_and_list(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    named = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
    edit(tmp_path / "tokenizer_config.json", chat_template=named)

    found = values(tmp_path)
    assert (found["chat_template"], found["chat_template.tool_use"]) == ("D", "T")
    assert found["chat_templates"] == ["tool_use"]

    (tmp_path / "chat_template.jinja").write_text("file")
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("R")
    found = values(tmp_path)
    assert (found["chat_template"], found["chat_template.rag"]) == ("file", "R")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none of tokenizer\.json, tekken\.json and tokenizer\.model"):
        tokenizer_metadata(tmp_path, {})


@pytest.mark.parametrize("model", [{"type": "WordLevel", "vocab": []}, {"type": "Other"}, {}, None, 3])
def test_other_kinds_of_tokenizers_are_refused_by_name(model: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))

    with pytest.raises(UnsupportedModelError, match="SentencePiece-style BPE"):
        tokenizer_metadata(tmp_path, {})


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model"])
def test_a_note_of_a_file_is_told_from_the_file(name: str, tmp_path: Path) -> None:
    write_tokenizer("llama2-spm", tmp_path, 600)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 5\n")
    with pytest.raises(UnsupportedFormatError, match=r"Git LFS pointer.*git lfs pull"):
        values(tmp_path)


def test_a_chat_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    edit(tmp_path / "tokenizer_config.json", chat_template={"default": "x"})
    with pytest.raises(FormatError, match=r"chat_template is a dict.*Correct it"):
        values(tmp_path)


def test_the_name_of_a_model_is_no_key_of_its_tokenizer(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    files, remarks = read_tokenizer_files(tmp_path), list[str]()
    keys = describe(files, {"model_type": "llama"}, remarks)
    assert {key.partition(".")[0] for key in keys} == {"tokenizer"}
    assert name_for_engine("my-phi3", files, keys, remarks) == "my-phi 3"
    assert name_for_engine("my model", files, keys, remarks) == "my model"


def test_tokens_that_are_never_written_come_along(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    (tmp_path / "generation_config.json").write_text('{"suppress_tokens": [5, 7, 99999999, "x"]}')
    remarks: list[str] = []
    found = tokenizer_metadata(tmp_path, {"model_type": "llama"}, remarks)["tokenizer.ggml.suppress_tokens"]
    assert np.asarray(found.value).tolist() == [5, 7]
    assert any("2 of the 4 suppress_tokens are no token's id" in remark for remark in remarks)
    (tmp_path / "generation_config.json").write_text('{"suppress_tokens": []}')
    assert "tokenizer.ggml.suppress_tokens" not in tokenizer_metadata(tmp_path, {"model_type": "llama"})
