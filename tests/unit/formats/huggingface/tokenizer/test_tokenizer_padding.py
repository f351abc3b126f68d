import numpy as np
import pytest

from kvant.formats.huggingface.tokenizer.padding import pad_to_rows
from kvant.formats.huggingface.tokenizer.vocabulary import AddedToken, beyond_remarks, beyond_vocabulary
from kvant.metadata import TokenType, Value, ValueType, array, string


def keys(model: str = "gpt2", tokens: tuple[str, ...] = ("a", "b")) -> dict[str, Value]:
    found = {
        "tokenizer.ggml.model": string(model),
        "tokenizer.ggml.tokens": array(ValueType.STRING, list(tokens)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.asarray([1] * len(tokens), "<i4")),
    }
    if model == "llama":
        found["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, np.asarray([0.0] * len(tokens), "<f4"))
    return found


@pytest.mark.parametrize(("model", "text"), [("gpt2", "[PAD2]"), ("llama", "[PAD2]"), ("bert", "\u2581[PAD2]")])
def test_rows_beyond_the_tokens_get_unused_tokens(model: str, text: str) -> None:
    said: list[str] = []

    padded = pad_to_rows(keys(model), 4, said)

    assert list(padded["tokenizer.ggml.tokens"].value)[2:] == [text, text.replace("2]", "3]")]  # type: ignore[arg-type]
    assert np.asarray(padded["tokenizer.ggml.token_type"].value).tolist() == [1, 1, *[int(TokenType.UNUSED)] * 2]
    if model == "llama":
        assert np.asarray(padded["tokenizer.ggml.scores"].value).tolist() == [0, 0, -10000, -10000]
    assert said == ["The embedding has 4 rows for 2 tokens: 2 unused tokens, [PAD2] and on, are written for the rest."]


@pytest.mark.parametrize("n_rows", [0, 1, 2, 1 << 40])
def test_as_many_fewer_or_impossibly_many_rows_change_nothing(n_rows: int) -> None:
    said: list[str] = []

    assert list(pad_to_rows(keys(), n_rows, said)["tokenizer.ggml.tokens"].value) == ["a", "b"]  # type: ignore[arg-type]
    assert said == []


def test_a_token_that_has_the_text_of_a_padding_is_left_to_the_check_of_rows() -> None:
    padded = pad_to_rows(keys(tokens=("a", "[PAD2]")), 4, [])

    assert list(padded["tokenizer.ggml.tokens"].value) == ["a", "[PAD2]"]  # type: ignore[arg-type]


def test_added_tokens_beyond_the_models_vocabulary_are_named() -> None:
    added = {7: AddedToken(7, "<image>", True), 2: AddedToken(2, "<bos>", True)}

    assert set(beyond_vocabulary({"vocab_size": 5}, added)) == {7}
    assert beyond_vocabulary({}, added) == {}
    assert "first '<image>', id 7" in beyond_remarks(beyond_vocabulary({"text_config": {"vocab_size": 5}}, added))[0]
    assert beyond_remarks({}) == []
