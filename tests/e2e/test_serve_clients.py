"""The official clients of Ollama, OpenAI and Anthropic against a gateway on loopback, real engines behind it."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from served import TOOLS_TEMPLATE, Served, served, write_gguf

ASK: list[Any] = [{"role": "user", "content": "Hello"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "Tell the weather.", "parameters": CITY}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_gguf(root / "plain.gguf")
    write_gguf(root / "tools.gguf", template=TOOLS_TEMPLATE, seed=1)
    with served(root, context=1024) as running:
        yield running


@pytest.fixture
def of_ollama(gateway: Served) -> Iterator[ollama.Client]:
    client = ollama.Client(host=gateway.url)
    yield client
    client._client.close()


@pytest.fixture
def of_openai(gateway: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def of_anthropic(gateway: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        yield client


# Ollama


def test_ollama_streams_what_it_gives_whole(of_ollama: ollama.Client) -> None:
    options = {"num_predict": 5, "temperature": 0, "seed": 1}

    whole = of_ollama.chat("plain", ASK, options=options)
    parts = list(of_ollama.chat("plain", ASK, options=options, stream=True))

    assert whole.message.role == "assistant"
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 5)
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].total_duration is not None
    assert parts[-1].total_duration > 0


def test_ollama_generates_and_goes_on_from_its_context(of_ollama: ollama.Client) -> None:
    options = {"num_predict": 3, "temperature": 0}
    first = of_ollama.generate("plain", "Hello", options=options)
    assert first.context is not None

    second = of_ollama.generate("plain", "More", context=first.context, options=options)

    assert second.context is not None
    assert second.context[: len(first.context)] == first.context
    assert second.prompt_eval_count is not None
    assert second.prompt_eval_count > len(first.context)


def test_ollama_loads_and_unloads(of_ollama: ollama.Client) -> None:
    assert of_ollama.generate("plain").done_reason == "load"
    assert "plain:latest" in [model.model for model in of_ollama.ps().models]
    assert of_ollama.generate("plain", keep_alive=0).done_reason == "unload"
    assert "plain:latest" not in [model.model for model in of_ollama.ps().models]


def test_ollama_formats(of_ollama: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

    answer = of_ollama.chat("tools", ASK, format=schema, options={"num_predict": 200, "temperature": 1, "seed": 3})

    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.message.content or "")["ok"], bool)


def test_ollama_tells_of_models(of_ollama: ollama.Client) -> None:
    listed = {model.model: model for model in of_ollama.list().models}
    assert set(listed) == {"plain:latest", "tools:latest"}
    shown = of_ollama.show("tools")
    assert shown.template == TOOLS_TEMPLATE
    assert shown.capabilities is not None
    assert "tools" in shown.capabilities
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    details = listed["tools:latest"].details
    assert details is not None
    assert details.family == "llama"


def test_ollama_embeds(of_ollama: ollama.Client) -> None:
    made = of_ollama.embed("plain", ["one text", "another"])

    assert len(made.embeddings) == 2
    assert [round(sum(x * x for x in vector), 4) for vector in made.embeddings] == [1.0, 1.0]
    older = of_ollama.embeddings("plain", "one text").embedding
    assert older == pytest.approx(made.embeddings[0], abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ({"model": "nope", "messages": ASK}, 404, "model 'nope' not found"),
        ({"model": "plain", "messages": ASK, "tools": TOOLS}, 400, "plain does not support tools"),
        ({"model": "plain", "messages": ASK, "think": True}, 400, '"plain" does not support thinking'),
        ({"model": "plain", "messages": ASK, "options": {"top_k": "x"}}, 400, 'option "top_k" must be of type integer'),
        ({"model": "plain", "messages": [{"role": "user", "content": "word " * 2000}]}, 400, "exceed the context of"),
    ],
)
def test_ollamas_errors(of_ollama: ollama.Client, arguments: dict[str, Any], status: int, message: str) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(of_ollama.chat(**arguments, stream=stream))

        assert caught.value.status_code == status
        assert message in caught.value.error


# OpenAI


def test_openai_streams_what_it_gives_whole(of_openai: openai.OpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "seed": 1}

    whole = of_openai.chat.completions.create(model="plain", messages=ASK, **options)
    with of_openai.chat.completions.create(
        model="plain:latest", messages=ASK, stream=True, stream_options={"include_usage": True}, **options
    ) as stream:
        chunks = list(stream)

    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 5)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"plain:latest"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_openai_calls_tools(of_openai: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tools", "messages": ASK, "tools": TOOLS, "max_tokens": 100}

    whole = of_openai.chat.completions.create(tool_choice="required", **arguments)
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    with of_openai.chat.completions.stream(tool_choice=named, **arguments) as stream:
        streamed = stream.get_final_completion()

    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        calls: Any = answer.choices[0].message.tool_calls
        assert calls[0].function.name == "get_weather"
        assert json.loads(calls[0].function.arguments)["city"] in ("Paris", "Rome")


def test_openai_goes_on_after_a_tools_result(of_openai: openai.OpenAI) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    talk: Any = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "Sunny"},
    ]

    answer = of_openai.chat.completions.create(model="tools", messages=talk, tools=TOOLS, max_tokens=3)

    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_openai_tells_probabilities(of_openai: openai.OpenAI) -> None:
    for top in (None, 3):
        extra: Any = {} if top is None else {"top_logprobs": top}
        answer = of_openai.chat.completions.create(
            model="plain", messages=ASK, max_tokens=2, logprobs=True, temperature=0, **extra
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [len(token.top_logprobs) for token in logprobs.content] == [top or 0] * 2
        assert all(token.logprob <= 0 for token in logprobs.content)


def test_openai_takes_a_grammar(of_openai: openai.OpenAI) -> None:
    answer = of_openai.chat.completions.create(
        model="plain", messages=ASK, max_tokens=9, extra_body={"grammar": 'root ::= "yes"'}
    )

    assert answer.choices[0].message.content == "yes"
    assert answer.choices[0].finish_reason == "stop"


def test_openai_completes_texts(of_openai: openai.OpenAI) -> None:
    whole = of_openai.completions.create(model="plain", prompt=["One", "Two"], max_tokens=2, logprobs=1, temperature=0)
    with of_openai.completions.create(model="plain", prompt="One", max_tokens=2, temperature=0, stream=True) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    assert [choice.index for choice in whole.choices] == [0, 1]
    assert text == whole.choices[0].text
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.token_logprobs is not None
    assert whole.choices[0].logprobs.tokens is not None
    assert len(whole.choices[0].logprobs.token_logprobs) == len(whole.choices[0].logprobs.tokens)


def test_openai_embeds(of_openai: openai.OpenAI) -> None:
    packed = of_openai.embeddings.create(model="plain", input=["one text", "x"])  # the client asks for base64
    plain = of_openai.embeddings.create(model="plain", input="one text", encoding_format="float", dimensions=8)

    assert len(packed.data) == 2
    assert len(plain.data[0].embedding) == 8
    assert packed.usage.prompt_tokens > plain.usage.prompt_tokens


def test_openai_lists_models(of_openai: openai.OpenAI) -> None:
    assert {model.id for model in of_openai.models.list()} == {"plain", "tools"}
    assert of_openai.models.retrieve("plain").id == "plain"
    with pytest.raises(openai.NotFoundError):
        of_openai.models.retrieve("../../etc/passwd")


def test_openais_responses(of_openai: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["yes"]}}}
    cut = of_openai.responses.create(model="plain", input="Hello", max_output_tokens=1)
    whole = of_openai.responses.create(model="plain", input="Hello", text=text)
    with of_openai.responses.stream(model="plain", input="Hello", text=text) as stream:
        events = list(stream)
        streamed = stream.get_final_response()

    assert (cut.status, whole.status, streamed.status) == ("incomplete", "completed", "completed")
    assert whole.output_text == streamed.output_text == '"yes"'
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == list(
        range(len([event for event in events if hasattr(event, "sequence_number")]))
    )
    function: Any = {"type": "function", **FUNCTION}
    called: Any = of_openai.responses.create(
        model="tools", input="Weather?", tools=[function], tool_choice="required", max_output_tokens=100
    ).output[0]
    assert (called.type, called.name) == ("function_call", "get_weather")
    talk: Any = [
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": called.call_id, "name": called.name, "arguments": called.arguments},
        {"type": "function_call_output", "call_id": called.call_id, "output": "Sunny"},
    ]
    again = of_openai.responses.create(model="tools", input=talk, tools=[function], max_output_tokens=3)
    assert again.usage is not None
    assert again.usage.output_tokens > 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": "nope"}, openai.NotFoundError, "nope"),
        ({"n": 2}, openai.BadRequestError, "n: 2 answers"),
        ({"extra_body": {"guided_regex": "a+"}}, openai.BadRequestError, "guided_regex: is not known here. Use"),
        ({"tools": TOOLS}, openai.BadRequestError, "does not support tools"),
        (
            {"messages": [{"role": "user", "content": "word " * 2000}]},
            openai.BadRequestError,
            "maximum context length is",
        ),
        ({"extra_body": {"grammar": "root = (("}}, openai.BadRequestError, "grammar"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            openai.BadRequestError,
            "image_url",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "bogus"}}}},
            openai.BadRequestError,
            "bogus",
        ),
    ],
)
def test_openais_errors(
    of_openai: openai.OpenAI, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    for stream in (False, True):
        with pytest.raises(kind, match=message):
            of_openai.chat.completions.create(**{"model": "plain", "messages": ASK, "stream": stream} | arguments)


# Anthropic


def test_anthropic_streams_what_it_gives_whole(of_anthropic: anthropic.Anthropic) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "system": "Be brief.", "extra_body": {"temperature": 0}}

    whole = of_anthropic.messages.create(model="plain", messages=ASK, **options)
    with of_anthropic.messages.stream(model="plain", messages=ASK, **options) as stream:
        streamed = stream.get_final_message()

    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 4)
    assert streamed.stop_reason == "max_tokens"
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]


def test_anthropic_calls_tools(of_anthropic: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "get_weather", "description": "Tell the weather.", "input_schema": CITY}]
    arguments: dict[str, Any] = {"model": "tools", "max_tokens": 100, "tools": tools}

    whole = of_anthropic.messages.create(messages=ASK, tool_choice={"type": "any"}, **arguments)
    choice: Any = {"type": "tool", "name": "get_weather"}
    with of_anthropic.messages.stream(messages=ASK, tool_choice=choice, **arguments) as stream:
        streamed = stream.get_final_message()

    for answer in (whole, streamed):
        block: Any = answer.content[0]
        assert (answer.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "get_weather")
        assert block.input["city"] in ("Paris", "Rome")
    use: Any = whole.content[0]
    talk: Any = [
        *ASK,
        {"role": "assistant", "content": [use.to_dict()]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny"}]},
    ]
    again = of_anthropic.messages.create(messages=talk, **arguments | {"max_tokens": 3})
    assert again.usage.output_tokens > 0


def test_anthropic_counts_the_tokens_that_it_reads(of_anthropic: anthropic.Anthropic) -> None:
    count = of_anthropic.messages.count_tokens(model="plain", messages=ASK, system="Be brief.")
    answer = of_anthropic.messages.create(model="plain", messages=ASK, system="Be brief.", max_tokens=1)

    cached = answer.usage.cache_read_input_tokens or 0
    assert count.input_tokens == answer.usage.input_tokens + cached


def test_anthropics_errors(of_anthropic: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        of_anthropic.messages.create(model="nope", messages=ASK, max_tokens=1)
    long: Any = [{"role": "user", "content": "word " * 2000}]
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1024 maximum"):
            of_anthropic.messages.create(model="plain", messages=long, max_tokens=1, stream=stream)
    picture: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match="'image'"):
        of_anthropic.messages.create(model="plain", messages=picture, max_tokens=1)
