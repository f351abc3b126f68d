"""Requests of the shapes that coding clients and everyday tools send: what can be ignored is, what cannot is said."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest

from calling_model import write_thinking_model
from kvant.serve.api import answer, run
from served import TOOLS_TEMPLATE, Served, served, write_gguf

STRICT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('There is no place for instructions') }}{%- endif %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
ASK = [{"role": "user", "content": "Hello"}]
CONTEXT = 1536


def function(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "name": name, "strict": False, "parameters": schema}


RUN = function("run", command={"type": "string", "minLength": 3, "maxLength": 6})
FLAG = function("flag", on={"type": "boolean"})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_gguf(root / "plain.gguf", context=4096)
    write_gguf(root / "tools.gguf", template=TOOLS_TEMPLATE, seed=1, context=4096)
    write_thinking_model(root / "thinks.gguf", "Easy.", "Five.")
    write_gguf(root / "strict.gguf", template=STRICT_TEMPLATE, seed=2, context=4096)
    with served(root, context=CONTEXT) as running:
        yield running


@pytest.fixture
def http(gateway: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=60) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


# Coding clients


def of_claude_code(**more: Any) -> dict[str, Any]:
    """A request with the fields, blocks and roles of Claude Code 2.1."""
    short_lived = {"cache_control": {"type": "ephemeral"}}
    return {
        "model": "tools", "max_tokens": 4, "stream": True, "metadata": {"user_id": '{"device_id": "0"}'},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cc_entrypoint=cli;"},
            {"type": "text", "text": "You write code."} | short_lived,
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "Run it"}]},
            {"role": "system", "content": "Agents: none."},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "run", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "fine", "is_error": False} | short_lived]},
        ],
        "tools": [
            {"name": "run", "description": "Runs.", "input_schema": {"$schema": "x"} | RUN["parameters"]},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    } | more  # fmt: skip


def test_a_request_of_claude_codes_shape(http: httpx2.Client) -> None:
    streamed = http.post("/v1/messages?beta=true", json=of_claude_code())

    assert streamed.status_code == 200, streamed.text
    told = {"context_management", "tools.web_search_20250305", "system.x-anthropic-billing-header"}
    assert set(streamed.headers["x-kvant-ignored"].split(", ")) == told
    begun, *_, last, stop = events(streamed.text)
    counted = begun["message"]["usage"]
    n_tokens = counted["input_tokens"] + counted["cache_read_input_tokens"]
    assert n_tokens > 100
    assert (last["delta"]["stop_reason"], stop["type"]) == ("max_tokens", "message_stop")
    count = http.post("/v1/messages/count_tokens?beta=true", json=of_claude_code())
    assert count.status_code == 200, count.text
    assert "context_management" in count.headers["x-kvant-ignored"]
    assert count.json()["input_tokens"] == n_tokens


def test_a_server_tool_that_must_be_called_is_refused(http: httpx2.Client) -> None:
    choice = {"type": "tool", "name": "web_search"}
    answer = http.post("/v1/messages", json=of_claude_code(tool_choice=choice))

    assert answer.status_code == 400
    assert "'web_search' is not among the tools that can be offered" in answer.json()["error"]["message"]


def of_codex(**more: Any) -> dict[str, Any]:
    """A request with the fields, items and tools of Codex CLI 0.171."""
    patch = {"type": "custom", "name": "patch", "description": "Edits.",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}}  # fmt: skip
    return {
        "model": "tools", "max_output_tokens": 4, "stream": True, "store": False, "parallel_tool_calls": True,
        "input": [
            {"type": "message", "id": "m1", "role": "developer", "content": [{"type": "input_text", "text": "Code."}]},
            {"type": "message", "id": "m2", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
            {"type": "message", "id": "m3", "role": "user", "content": [{"type": "input_text", "text": "Run it"}]},
            {"type": "reasoning", "id": "r1", "summary": [], "encrypted_content": "xyz"},
            {"type": "function_call", "id": "f1", "call_id": "c1", "namespace": "agents", "name": "flag",
             "arguments": "", "status": "completed"},
            {"type": "function_call_output", "id": "o1", "call_id": "c1", "output": "Exit code: 0"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "xx", "status": "completed"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
            {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "call_id": "c3", "output": "{}"},
            {"type": "web_search_call", "id": "w1", "status": "completed", "action": {"type": "search", "query": "q"}},
        ],
        "tools": [
            RUN, {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [FLAG]}, patch,
            {"type": "web_search", "external_web_access": True}, {"type": "local_shell"},
        ],
        "tool_choice": "auto", "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k", "client_metadata": {"session_id": "1"},
    } | more  # fmt: skip


def test_a_request_of_codexs_shape(http: httpx2.Client) -> None:
    answer = http.post("/v1/responses", json=of_codex())

    assert answer.status_code == 200, answer.text
    told = {"client_metadata", "tools.web_search", "tools.local_shell", "input.web_search_call"}
    assert set(answer.headers["x-kvant-ignored"].split(", ")) == told
    kinds = [event["type"] for event in events(answer.text)]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "item"),
    [
        ({"type": "function", "name": "flag"}, {"type": "function_call", "name": "flag"}),
        ({"type": "custom", "name": "patch"}, {"type": "custom_tool_call", "name": "patch"}),
    ],
)
def test_calls_come_back_as_the_client_knows_them(
    http: httpx2.Client, choice: dict[str, Any], item: dict[str, Any], stream: bool
) -> None:
    body = of_codex(tool_choice=choice, max_output_tokens=300, temperature=1, stream=stream)

    answer = http.post("/v1/responses", json=body)

    response = events(answer.text)[-1]["response"] if stream else answer.json()
    [made] = [item for item in response["output"] if item["type"].endswith("_call")]
    assert {name: made[name] for name in item} == item
    if item["name"] == "flag":
        assert made["namespace"] == "agents"
        assert isinstance(json.loads(made["arguments"])["on"], bool)
    elif response["status"] == "completed":
        assert not made["input"].startswith("{")
    if stream:
        ended = [event for event in events(answer.text) if event["type"] == "response.output_item.done"]
        assert ended[-1]["item"] == made


def test_a_tool_nobody_can_run_cannot_be_demanded(http: httpx2.Client) -> None:
    for choice in ({"type": "web_search"}, {"type": "function", "name": "web_search"}):
        answer = http.post("/v1/responses", json=of_codex(tool_choice=choice))
        assert answer.status_code == 400
        assert "tool_choice" in answer.json()["error"]["message"]


def test_a_template_that_takes_turns_alone_is_given_turns(http: httpx2.Client) -> None:
    body = of_claude_code(model="strict", tools=[])
    body["messages"] = [*body["messages"][:2], {"role": "user", "content": "Now"}]

    assert http.post("/v1/messages", json=body).status_code == 200
    n_tokens = http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    asked = http.post("/v1/messages", json=body | {"stream": False}).json()["usage"]
    assert n_tokens == asked["input_tokens"] + asked["cache_read_input_tokens"]
    items = [item for item in of_codex()["input"] if item["type"] == "message"]
    assert http.post("/v1/responses", json=of_codex(model="strict", tools=[], input=items)).status_code == 200
    odd = [{"role": "assistant", "content": "I begin"}, *ASK]
    refused = http.post("/v1/chat/completions", json={"model": "strict", "messages": odd})
    assert refused.status_code == 400
    assert "Roles must alternate" in refused.text


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_api_thinks_only_where_it_is_asked(http: httpx2.Client, stream: bool) -> None:
    body = {"model": "thinks", "max_tokens": 20, "messages": [{"role": "user", "content": "2+3?"}], "stream": stream}

    def kinds(**more: Any) -> list[str]:
        answer = http.post("/v1/messages", json=body | more)
        if not stream:
            return [block["type"] for block in answer.json()["content"]]
        return [event["content_block"]["type"] for event in events(answer.text) if "content_block" in event]

    assert kinds() == kinds(thinking={"type": "disabled"}) == ["text"]
    assert kinds(thinking={"type": "adaptive"}) == ["thinking", "text"]


# Everyday fields


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/api/generate", "/api/embed", "/v1/embeddings"])
def test_options_nobody_knows_are_named(http: httpx2.Client, path: str) -> None:
    body = {"model": "plain", "messages": ASK, "prompt": "x", "input": "x", "stream": False}
    answer = http.post(path, json=body | {"options": {"num_predict": 1, "num_guess": 1}})

    assert answer.status_code == 200, answer.text
    assert "options.num_guess" in answer.headers["x-kvant-ignored"]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_ctx": 512}, {"options": {"num_ctx": 512, "temperature": 0, "num_predict": 2}}, {"think": False},
        {"repetition_penalty": 1.1}, {"cache_prompt": True}, {"n_predict": 2}, {"reasoning_format": "auto"},
        {"reasoning": {"effort": "low"}}, {"prediction": {"type": "content", "content": "x"}},
        {"functions": [{"name": "f", "parameters": {}}]}, {"web_search_options": {}}, {"prompt_cache_retention": "24h"},
        {"chat_template_kwargs": {"thinking": False}}, {"max_tokens": -1}, {"stop": None, "seed": -1, "logit_bias": {}},
        {"stop": "", "temperature": None, "top_p": None, "tools": [], "tool_choice": None, "user": 3},
        {"reasoning_effort": "max", "metadata": {"a": 1}, "parallel_tool_calls": None, "n": None, "echo": False},
        {"top_logprobs": 0, "logprobs": False, "response_format": None, "stream_options": None, "best_of": None},
    ],
)  # fmt: skip
def test_fields_of_everyday_clients_do_no_harm(http: httpx2.Client, fields: dict[str, Any]) -> None:
    body = {"model": "plain", "messages": ASK, "max_completion_tokens": 2} | fields
    answer = http.post("/v1/chat/completions", json=body)

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_a_template_is_told_only_so_many_values(http: httpx2.Client) -> None:
    for told in ({f"k{i}": i for i in range(65)}, {"k" * 101: 1}):
        body = {"model": "plain", "messages": ASK, "chat_template_kwargs": told, "max_tokens": 1}
        answer = http.post("/v1/chat/completions", json=body)

        assert (answer.status_code, "chat_template_kwargs" in answer.json()["error"]["param"]) == (400, True)


@pytest.mark.parametrize("grammar", ["root ::= [z-a]", "root ::= <[99999999]>"])
def test_a_grammar_that_leads_nowhere_is_the_clients(http: httpx2.Client, grammar: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "plain", "messages": ASK, "grammar": grammar})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "grammar"), answer.text


def test_older_functions_are_tools(http: httpx2.Client) -> None:
    old = {"name": "flag", "parameters": FLAG["parameters"]}
    talk = [
        *ASK,
        {"role": "assistant", "content": None, "function_call": {"name": "flag", "arguments": '{"on": true}'}},
        {"role": "function", "name": "flag", "content": "ok"},
    ]
    body = {"model": "tools", "messages": talk, "functions": [old], "function_call": {"name": "flag"}}

    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]

    assert choice["finish_reason"] == "function_call"
    assert isinstance(json.loads(choice["message"]["function_call"]["arguments"])["on"], bool)


def test_models_are_listed_for_every_kind_of_client(http: httpx2.Client) -> None:
    listed = http.get("/v1/models").json()
    one = {model["id"]: model for model in listed["data"]}["plain"]

    assert (one["object"], one["type"], one["display_name"], listed["has_more"]) == ("model", "model", "plain", False)
    assert one["max_model_len"] == one["context_length"] == CONTEXT
    assert http.get("/api/v0/models").json() == listed
    assert http.get("/v1/models/plain").json() == one
    assert http.head("/").status_code == 200


# History


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("arguments", ["{}", "", "null", None, "{", '{"a": 1', "[]"])
def test_arguments_in_a_conversations_history(http: httpx2.Client, path: str, arguments: str | None) -> None:
    call = {"name": "f", "arguments": arguments}
    if path == "/v1/responses":
        where = "input[1].arguments"
        talk = [*ASK, {"type": "function_call", "call_id": "1"} | call,
                {"type": "function_call_output", "call_id": "1", "output": "ok"}]  # fmt: skip
        body: dict[str, Any] = {"input": talk, "max_output_tokens": 1}
    elif path == "/v1/messages":
        where = "messages[1].content[0].input"
        use = {"type": "tool_use", "id": "1", "name": "f", "input": arguments}
        result = {"type": "tool_result", "tool_use_id": "1", "content": "ok", "is_error": True}
        talk = [*ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        body = {"messages": talk, "max_tokens": 1}
    else:
        where = "messages[1].tool_calls[0].function.arguments"
        talk = [*ASK, {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
                {"role": "tool", "content": "ok"}]  # fmt: skip
        body = {"messages": talk, "max_tokens": 1}

    answer = http.post(path, json=body | {"model": "tools"})

    if arguments in ("{", '{"a": 1', "[]"):
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(where)
    else:
        assert answer.status_code == 200, answer.text


# Streams and endings


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_that_is_cut_is_a_call(http: httpx2.Client, stream: bool) -> None:
    long = function("write", text={"type": "string", "minLength": 200})
    body = {"model": "tools", "messages": ASK, "max_tokens": 70, "stream": stream}
    tools = [{"type": "function", "function": {k: v for k, v in long.items() if k != "type"}}]

    answer = http.post("/v1/chat/completions", json=body | {"tools": tools, "tool_choice": "required"})

    if stream:
        choices = [event["choices"][0] for event in events(answer.text)]
        assert choices[0]["delta"]["role"] == "assistant"
        parts = [part for choice in choices for part in choice["delta"].get("tool_calls", ())]
        assert [part["function"].get("name") for part in parts][:2] == ["write", None]
        arguments = "".join(part["function"]["arguments"] for part in parts)
        assert not any(choice["delta"].get("content") for choice in choices)
        finish = choices[-1]["finish_reason"]
        assert len(parts) > 2
    else:
        [choice] = answer.json()["choices"]
        assert choice["message"]["content"] is None
        arguments, finish = choice["message"]["tool_calls"][0]["function"]["arguments"], choice["finish_reason"]
    assert arguments.startswith("{")
    assert finish == "length"
    body = {"model": "tools", "messages": ASK, "max_tokens": 70, "stream": stream, "tool_choice": {"type": "any"},
            "tools": [{"name": "write", "input_schema": long["parameters"]}]}  # fmt: skip
    answer = http.post("/v1/messages", json=body)
    told = json.dumps(events(answer.text)) if stream else answer.text
    assert "tool_use" in told
    assert '"max_tokens"' in told
    body = {"model": "tools", "input": "x", "max_output_tokens": 70, "stream": stream, "tools": [long]}
    answer = http.post("/v1/responses", json=body | {"tool_choice": "required"})
    response = events(answer.text)[-1]["response"] if stream else answer.json()
    assert (response["status"], response["output"][-1]["status"]) == ("incomplete", "incomplete")
    assert response["output"][-1]["type"] == "function_call"


OVERFLOWS = [
    ("/v1/messages", {"max_tokens": 1}, f"prompt is too long: 2018 tokens > {CONTEXT} maximum."),
    ("/v1/chat/completions", {}, f"maximum context length is {CONTEXT} tokens, and the prompt has 2018."),
    ("/v1/responses", {}, f"maximum context length is {CONTEXT} tokens, and the prompt has 2018."),
    ("/api/chat", {"stream": True}, "the input length exceeds the context length. Shorten it, or give the model more: "
     "options.num_ctx 2304 in the request"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "more", "words"), OVERFLOWS)
def test_a_prompt_that_does_not_fit_is_said_as_clients_look_for_it(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, more: dict[str, Any], words: str
) -> None:
    talk = [{"role": "user", "content": "word " * 1000}]
    body = {"model": "plain", "input" if "responses" in path else "messages": talk, "stream": True} | more

    refused = http.post(path, json=body)
    assert refused.status_code == 400
    assert words in refused.text
    assert "kvant serve --context 2304, or PARAMETER num_ctx 2304 in its Modelfile" in refused.text
    monkeypatch.setattr(run, "HEAD_S", 0.0)  # the head goes out before the engine says a word
    late = http.post(path, json=body)
    assert late.status_code == 200
    assert words in late.text
    longest = http.post(path, json=body | ({"input": "word " * 4000} if "responses" in path else {
        "messages": [{"role": "user", "content": "word " * 4000}]}))  # fmt: skip
    assert "Shorten it: that is all that the model can." in longest.text


def test_clients_pass_over_signs_of_life(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "BEAT_S", 0.01)  # many, and time for the engine between them
    talk: Any = [{"role": "user", "content": "word " * 400}]

    of_ollama = ollama.Client(host=gateway.url)
    lines = list(of_ollama.chat("plain", talk, options={"num_predict": 3}, stream=True))
    of_ollama._client.close()
    assert [line.done for line in lines] == [False, False, False, True]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as of_openai:
        chunks = list(of_openai.chat.completions.create(model="plain", messages=talk, max_tokens=3, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len(chunks) == 5
        told = list(of_openai.responses.create(model="plain", input=talk, max_output_tokens=3, stream=True))
        assert told[-1].type == "response.incomplete"
    with anthropic.Anthropic(base_url=gateway.url, api_key="none") as of_anthropic:
        with of_anthropic.messages.stream(model="plain", messages=talk, max_tokens=3) as stream:
            message = stream.get_final_message()
        assert message.usage.output_tokens == 3


def test_progress_is_told_where_the_api_has_a_place(http: httpx2.Client) -> None:
    body = {"model": "plain", "messages": ASK, "max_tokens": 1, "stream": True}
    told = events(http.post("/v1/chat/completions", json=body | {"return_progress": True}).text)

    assert told[0]["prompt_progress"]["total"] > 0
    assert told[0]["choices"][0]["delta"]["role"] == "assistant"
    plain = events(http.post("/v1/chat/completions", json=body).text)
    assert not any("prompt_progress" in event for event in plain)
    assert plain[0]["choices"][0]["delta"]["role"] == "assistant"
