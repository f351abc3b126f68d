"""Requests read as typed messages: wrong types name their field, unknown fields are as their API has them."""

import pytest

from kvant.errors import ApiError
from kvant.serve.api.anthropic.types import CountRequest, MessagesRequest
from kvant.serve.api.ollama.types import ChatRequest as OllamaChat
from kvant.serve.api.openai.responses_types import ResponsesRequest
from kvant.serve.api.openai.types import ChatRequest, EmbeddingRequest
from kvant.serve.api.wire import decode, unknown_fields
from kvant.serve.failure import describe


def test_a_wrong_type_names_the_field() -> None:
    with pytest.raises(ApiError, match=r"^messages\[0\]\.role: ") as caught:
        decode(b'{"model": "m", "messages": [{"role": 3}]}', ChatRequest)

    assert (caught.value.status, caught.value.param) == (400, "messages[0].role")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages": []}', "model"),
        (b'{"model": "m", "messages": [], "max_tokens": "3"}', "max_tokens"),
        (b'{"model": "m", "messages": [], "tools": [{"type": "function", "function": {}}]}', "tools[0].function.name"),
    ],
)
def test_what_is_wrong_names_its_field(body: bytes, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(body, ChatRequest)

    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "kind", "names"),
    [
        (b'{"model": "m", "messages": [], "temprature": 1}', ChatRequest, ["temprature"]),
        (b'{"model": "m", "messages": [], "stream_options": {"x": 1}}', ChatRequest, ["stream_options.x"]),
        (b'{"model": "m", "messages": [], "prediction": {}, "user": "u"}', ChatRequest, ["prediction"]),
        (b'{"model": "m", "messages": [], "bogus": [1]}', OllamaChat, ["bogus"]),
        (b'{"model": "m", "messages": [], "context_management": {"edits": []}}', CountRequest, ["context_management"]),
        (b'{"model": "m", "input": "x", "client_metadata": {}, "reasoning": {"context": 1}}', ResponsesRequest,
         ["client_metadata", "reasoning.context"]),
        (b'{"model": "m", "input": "x", "input_type": "query"}', EmbeddingRequest, ["input_type"]),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out_and_named(body: bytes, kind: type, names: list[str]) -> None:
    decode(body, kind)
    assert unknown_fields(body, kind) == names


@pytest.mark.parametrize(
    ("field", "kind"),
    [("guided_json", ChatRequest), ("best_of", ChatRequest), ("audio", ChatRequest), ("mcp_servers", MessagesRequest)],
)
def test_what_asks_for_something_else_is_refused(field: str, kind: type) -> None:
    for nothing in (b"null", b"false", b"{}", b"[]"):
        assert unknown_fields(b'{"%s": %s}' % (field.encode(), nothing), kind) == [field]
    with pytest.raises(ApiError, match=f"^{field}: ") as caught:
        unknown_fields(b'{"%s": {"x": 1}}' % field.encode(), kind)
    assert (caught.value.status, caught.value.param) == (400, field)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"{" * 100, b"[" * 100_000, b'{"model": 1e999}'])
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode(body, OllamaChat)

    assert describe(caught.value).status == 400


def test_an_unexpected_error_tells_nothing_of_itself() -> None:
    failure = describe(RuntimeError("secret"))

    assert failure.status == 500
    assert "secret" not in failure.message
