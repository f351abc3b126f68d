"""Answers held to schemas and grammars, over every API and with a real engine; what cannot be is refused or told."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from served import TOOLS_TEMPLATE, Served, served, write_gguf

IGNORED = "x-kvant-ignored"
ASK = [{"role": "user", "content": "Hello"}]
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
DIGITS = {"type": "string", "pattern": "^[0-9]{2}$"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_gguf(root / "plain.gguf")
    write_gguf(root / "tools.gguf", template=TOOLS_TEMPLATE)
    write_gguf(root / "thinks.gguf", template=THINKS)
    with served(root, context=2048) as running:
        yield running


def holding(value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"s": value}, "required": ["s"]}


def requests(schema: Any, *, strict: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every way in which a client can ask for a schema: path and body."""
    inner = {"name": "x", "schema": schema, "strict": strict}
    function = {"name": "f", "parameters": schema, "strict": strict}
    chat: dict[str, Any] = {"model": "plain", "messages": ASK, "max_tokens": 120, "temperature": 0}
    called = chat | {"model": "tools", "tool_choice": "required", "tools": [{"type": "function", "function": function}]}
    flat = {"type": "function", **function}
    return {
        "json_schema": ("/v1/chat/completions", chat | {
            "response_format": {"type": "json_schema", "json_schema": inner}}),
        "json_object": ("/v1/chat/completions", chat | {
            "response_format": {"type": "json_object", "schema": schema, "strict": strict}}),
        "tool": ("/v1/chat/completions", called),
        "responses": ("/v1/responses", {"model": "plain", "input": "Hello", "max_output_tokens": 120, "temperature": 0,
                                        "text": {"format": {"type": "json_schema", **inner}}}),
        "responses tool": ("/v1/responses", {"model": "tools", "input": "Hello", "max_output_tokens": 120,
                                             "temperature": 0, "tool_choice": "required", "tools": [flat]}),
    }  # fmt: skip


def loose_requests(schema: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """As `requests`, of APIs that know no `strict`."""
    options = {"num_predict": 120, "temperature": 0}
    tools = [{"name": "f", "input_schema": schema}]
    claude: dict[str, Any] = {"messages": ASK, "max_tokens": 120, "temperature": 0}
    return {
        "ollama chat": ("/api/chat", {"model": "plain", "messages": ASK, "stream": False, "format": schema,
                                      "options": options}),
        "ollama generate": ("/api/generate", {"model": "plain", "prompt": "Hello", "stream": False, "format": schema,
                                              "options": options}),
        "ollama raw": ("/api/generate", {"model": "plain", "prompt": "Hello", "raw": True, "stream": False,
                                         "format": schema, "options": options}),
        "anthropic": ("/v1/messages", claude | {
            "model": "plain", "output_config": {"format": {"type": "json_schema", "schema": schema}}}),
        "anthropic tool": ("/v1/messages", claude | {"model": "tools", "tools": tools, "tool_choice": {"type": "any"}}),
    }  # fmt: skip


WAYS = [*requests({}, strict=False), *loose_requests({})]


def said(answer: dict[str, Any]) -> Any:
    """The JSON that a model wrote, whatever the API."""
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls")
        return json.loads(calls[0]["function"]["arguments"] if calls else message["content"])
    if "output" in answer:
        item = answer["output"][0]
        return json.loads(item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    if "response" in answer:
        return json.loads(answer["response"])
    if isinstance(answer.get("content"), list):
        block = answer["content"][0]
        return block["input"] if block["type"] == "tool_use" else json.loads(block["text"])
    return json.loads(answer["message"]["content"])


def post(gateway: Served, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(gateway.url + path, json=body, timeout=60)


@pytest.mark.parametrize("way", WAYS)
def test_what_can_be_enforced_is(gateway: Served, way: str) -> None:
    schema = holding(DIGITS) | {"properties": {"s": DIGITS, "n": {"type": "number", "minimum": 2, "maximum": 3}}}
    schema["required"] = ["s", "n"]
    schema["properties"]["n"]["multipleOf"] = 0.5
    path, body = (requests(schema, strict=True) | loose_requests(schema))[way]

    answer = post(gateway, path, body)

    assert answer.status_code == 200, answer.text
    assert IGNORED not in answer.headers
    value = said(answer.json())
    assert value["s"].isdigit()
    assert len(value["s"]) == 2
    assert value["n"] in (2, 2.5, 3)


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_enforced_is_told(gateway: Served, way: str) -> None:
    schema = holding({"type": "array", "items": {"const": 1}, "maxItems": 2, "uniqueItems": True})
    path, body = (requests(schema, strict=False) | loose_requests(schema))[way]

    answer = post(gateway, path, body)

    assert answer.status_code == 200, answer.text
    assert answer.headers[IGNORED].endswith(".properties.s.uniqueItems")
    assert said(answer.json())["s"] in ([], [1], [1, 1])


@pytest.mark.parametrize("way", requests({}, strict=True))
def test_what_cannot_be_enforced_is_refused_under_strict(gateway: Served, way: str) -> None:
    path, body = requests(holding({"not": {"const": 1}}), strict=True)[way]

    answer = post(gateway, path, body)

    assert answer.status_code == 400
    assert "properties.s.not cannot be enforced" in answer.json()["error"]["message"]


def test_a_tool_that_may_be_called_is_held_to_less(gateway: Served) -> None:
    function = {"name": "f", "parameters": holding({"type": "number", "minimum": 1}), "strict": True}
    body = {"model": "tools", "messages": ASK, "max_tokens": 4, "tools": [{"type": "function", "function": function}]}
    refused = post(gateway, "/v1/chat/completions", body)
    del function["strict"]
    told = post(gateway, "/v1/chat/completions", body)

    assert refused.status_code == 400
    assert "minimum" in refused.json()["error"]["message"]
    assert told.status_code == 200
    assert told.headers[IGNORED] == "tools[0].minimum"


@pytest.mark.parametrize("think", [None, False, True])
def test_a_model_that_thinks_may_do_so_first(gateway: Served, think: bool | None) -> None:
    body = {"model": "thinks", "messages": ASK, "stream": False, "format": DIGITS, "think": think,
            "options": {"num_predict": 60, "temperature": 0}}  # fmt: skip
    answer = post(gateway, "/api/chat", body).json()

    if think:  # and this one never ends it
        assert answer["message"]["content"].strip() == ""
    else:
        assert said(answer).isdigit()


@pytest.mark.parametrize("n", [2000, 20_000])
def test_long_honest_lists_of_values_work(gateway: Served, n: int) -> None:
    values = [f"value {i}" for i in range(n)]
    path, body = requests(holding({"enum": values}), strict=True)["json_schema"]

    answer = post(gateway, path, body)

    assert said(answer.json())["s"] in values


HOSTILE: dict[str, Any] = {
    "200,000 values": {"enum": [f"v{i}" for i in range(200_000)]},
    "a long text": {"type": "string", "minLength": 10**9},
    "many items": {"type": "array", "items": DIGITS, "minItems": 10**8},
    "a factor": {"type": "array", "items": {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}], "type": "integer"}},
    "products": {"allOf": [{"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {"type": "integer"}}}
                                      for j in range(6)]} for i in range(12)]},
    "optional properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
    "no value": {"allOf": [{"const": 1}, {"const": 2}]},
    "a reference to nothing": {"$ref": "#/$defs/nothing"},
}  # fmt: skip


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_schemas_that_cost_too_much_never_reach_the_engine(gateway: Served, schema: Any) -> None:
    path, body = requests(schema, strict=False)["json_schema"]
    before = [model.pid for model in gateway.loaded()]

    answer = post(gateway, path, body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "response_format.json_schema.schema"
    assert [model.pid for model in gateway.loaded()] == before


def test_grammars_are_bounded_and_tried(gateway: Served) -> None:
    def ask(grammar: str) -> httpx2.Response:
        body = {"model": "plain", "messages": ASK, "max_tokens": 8, "temperature": 0}
        return post(gateway, "/v1/chat/completions", body | {"grammar": grammar})

    assert ask('root ::= "yes" | "no"').json()["choices"][0]["message"]["content"] in ("yes", "no")
    for grammar in ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, 'root ::= "' + "a" * 70_000 + '"',
                    "root ::= root", 'other ::= "a"', "%llguidance {}\nstart: other"):  # fmt: skip
        refused = ask(grammar)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "grammar"
