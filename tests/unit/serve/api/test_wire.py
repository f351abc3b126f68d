"""Requests read as typed messages: wrong types name their field, unknown fields are as their API has them."""

import pytest

from kvant.serve.api.anthropic_types import MessagesRequest
from kvant.serve.api.failure import ApiError, describe
from kvant.serve.api.ollama_types import ChatRequest as OllamaChat
from kvant.serve.api.openai_types import ChatRequest
from kvant.serve.api.wire import decode


def test_a_wrong_type_names_the_field() -> None:
    with pytest.raises(ApiError, match=r"^messages\[0\]\.role: ") as caught:
        decode(b'{"model": "m", "messages": [{"role": 3}]}', ChatRequest)

    assert (caught.value.status, caught.value.param) == (400, "messages[0].role")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages": []}', "model"),
        (b'{"model": "m", "messages": [], "temprature": 1}', "temprature"),
        (b'{"model": "m", "messages": [], "max_tokens": "3"}', "max_tokens"),
        (b'{"model": "m", "messages": [], "tools": [{"type": "function", "function": {}}]}', "tools[0].function.name"),
        (b'{"model": "m", "messages": [], "chat_template_kwargs": {"__class__": 1}}', "chat_template_kwargs.__class__"),
    ],
)
def test_openai_refuses(body: bytes, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(body, ChatRequest)

    assert caught.value.param == param


def test_ollama_ignores_unknown_fields_and_anthropic_does_not() -> None:
    assert decode(b'{"model": "m", "bogus": 1}', OllamaChat).model == "m"
    with pytest.raises(ApiError, match="bogus"):
        decode(b'{"model": "m", "max_tokens": 1, "messages": [], "bogus": 1}', MessagesRequest)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"{" * 100, b"[" * 100_000, b'{"model": 1e999}'])
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode(body, OllamaChat)

    assert describe(caught.value).status == 400


def test_an_unexpected_error_tells_nothing_of_itself() -> None:
    failure = describe(RuntimeError("secret"))

    assert failure.status == 500
    assert "secret" not in failure.message
